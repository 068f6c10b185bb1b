"""`mae compare`: pre-trained against from scratch, on the same images, labels, steps and seeds."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from torchmae.errors import UserError
from torchmae.models.weights import read_config
from torchmae.tasks import classify
from torchmae.tasks.recipe import Finetune, plain
from torchmae.train.checkpoint import write_text
from torchmae.train.distributed import is_main


@dataclass(frozen=True)
class Compare(Finetune):
    """Fine-tune a run and, as its partner, the same encoder from scratch: same images, labels, steps and seeds.

    Flags are those of mae finetune and hold for both; what is left open follows each one's own recipe.
    """

    labels_per_class: tuple[int, ...] = ()  # type: ignore[assignment]
    """Numbers of training images of each class, one comparison each. Default: all images."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of split, subset, head, order and augmentation: a pair of trainings each."""
    seed: Annotated[int, tyro.conf.Suppress] = 0
    model: Annotated[str | None, tyro.conf.Suppress] = None  # these two are the run's
    patch_size: Annotated[int | None, tyro.conf.Suppress] = None


class Difference(NamedTuple):
    """Of paired figures: the mean of their differences and its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float


def run(config: Compare) -> Path:
    """Trains all pairs (those that are finished already are taken as they are), prints the table, and gives the folder with
    `results.json` and `compare.png`."""
    if config.run == "none":
        raise UserError("mae compare needs a run: from scratch is the partner that it trains by itself")
    if len(set(config.seeds)) != len(config.seeds) or len(config.seeds) < 2:
        raise UserError(f"--seeds {' '.join(map(str, config.seeds))}: at least two, all different, for a spread")
    if config.model or config.patch_size:
        raise UserError("mae compare takes model and patch size from the run, for both")
    read_config(config.run)
    out = Path(config.out or f"{config.run.rstrip('/')}-compare")
    rows, done = [], 0
    for labels in config.labels_per_class or (None,):
        found: dict[str, list[float]] = {"pre-trained": [], "from scratch": []}
        for seed in config.seeds:
            for arm, start in (("pre-trained", config.run), ("from scratch", "none")):
                place = out / f"{arm.replace(' ', '-')}-{labels or 'all'}-labels-seed-{seed}"
                asked = plain(config, labels_per_class=labels, seed=seed, out=str(place), run=start)
                if start == "none":
                    asked = replace(asked, model=config.run, train="all")
                many = 2 * len(config.seeds) * max(1, len(config.labels_per_class))
                done += 1
                if is_main():
                    print(f"[{done}/{many}] {arm}, {labels or 'all'} labels a class, seed {seed}", flush=True)
                last = classify.last_scores(classify.run(asked, quiet=done > 2))  # one plan for each side
                found[arm].append(last["top1"])
        rows.append({"labels_per_class": labels, "seeds": list(config.seeds), **found, "images": last["count"]})
        rows[-1]["difference"] = difference(found["pre-trained"], found["from scratch"])._asdict()
    if not is_main():
        return out
    write_text(out / "results.json", json.dumps({"compare": rows, "run": config.run, "data": config.data}, indent=1))
    draw(rows, out / "compare.png")
    print(table(rows))
    print(f"Written to {out / 'results.json'} and {out / 'compare.png'}; every training is a run folder beside them.")
    print("More --seeds narrow the intervals; trainings that are finished are kept.")
    return out


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The 95 % interval of the mean of the paired differences."""
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, half = statistics.mean(pairs), t_quantile(len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(mean, mean - half, mean + half)


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: half its width holds 95 %."""
    exact = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 1 to 10 degrees of freedom
    if degrees <= len(exact):
        return exact[degrees - 1]
    z = 1.959964  # Cornish-Fisher's expansion around the normal distribution: three digits from 11 degrees on
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (z**3 + z) / (4 * degrees) + second / degrees**2 + third / degrees**3


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each number of labels, in percent."""
    lines = [
        f"Accuracy of the last epoch in %, mean (deviation) over {len(rows[0]['seeds'])} seeds, "
        f"{rows[0]['images']} validation images",
        f"{'labels a class':>15} {'pre-trained':>15} {'from scratch':>15}  difference (95 % interval)",
    ]
    for row in rows:
        cells = [
            f"{100 * statistics.mean(row[arm]):.1f} ({100 * statistics.stdev(row[arm]):.1f})"
            for arm in ("pre-trained", "from scratch")
        ]
        mean, low, high = (100 * row["difference"][name] for name in ("mean", "low", "high"))
        word = "" if low > 0 or high < 0 else "  not clear: it includes zero"
        lines.append(
            f"{row['labels_per_class'] or 'all':>15} {cells[0]:>15} {cells[1]:>15}  "
            f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){word}"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Every training as a point, the means as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for arm, colour in (("pre-trained", "tab:blue"), ("from scratch", "tab:orange")):
        axis.plot(range(len(rows)), [100 * statistics.mean(row[arm]) for row in rows], color=colour, label=arm)
        for place, row in enumerate(rows):
            axis.plot([place] * len(row[arm]), [100 * value for value in row[arm]], "o", color=colour, alpha=0.5)
    axis.set_xticks(range(len(rows)), [str(row["labels_per_class"] or "all") for row in rows])
    axis.set(xlabel="labels a class", ylabel="accuracy of the last epoch in %", title=f"{len(rows[0]['seeds'])} seeds")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
