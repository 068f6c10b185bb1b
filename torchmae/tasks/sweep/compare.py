"""`mae compare`: pre-trained against from scratch, on the same images, labels, steps and seeds."""

import json
import logging
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from torchmae.disk import write_text
from torchmae.errors import UserError
from torchmae.eval.intervals import difference
from torchmae.runfolder import last_validation, read_config
from torchmae.tasks.finetune import run as classify
from torchmae.tasks.finetune.config import Finetune, plain
from torchmae.train.distributed import is_main

logger = logging.getLogger(__name__)


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


def run(config: Compare) -> Path:
    """Trains all pairs (those that are finished already are taken as they are), prints the table, and gives the folder with
    `results.json` and `compare.png`."""
    if config.run == "none":
        raise UserError(
            "mae compare needs a run: from scratch is the partner that it trains by itself"
        )
    if len(set(config.seeds)) != len(config.seeds) or len(config.seeds) < 2:
        raise UserError(
            f"--seeds {' '.join(map(str, config.seeds))}: at least two, all different, for a spread"
        )
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
                    logger.info(
                        f"[{done}/{many}] {arm}, {labels or 'all'} labels a class, seed {seed}"
                    )
                last = last_validation(
                    classify.run(asked, quiet=done > 2)
                )  # one plan for each side
                found[arm].append(last["top1"])
        rows.append(
            {
                "labels_per_class": labels,
                "seeds": list(config.seeds),
                **found,
                "images": last["count"],
            }
        )
        rows[-1]["difference"] = difference(found["pre-trained"], found["from scratch"])._asdict()
    if not is_main():
        return out
    write_text(
        out / "results.json",
        json.dumps({"compare": rows, "run": config.run, "data": config.data}, indent=1),
    )
    draw(rows, out / "compare.png")
    logger.info(table(rows))
    logger.info(
        f"Written to {out / 'results.json'} and {out / 'compare.png'}; every training is a run folder beside them."
    )
    logger.info("More --seeds narrow the intervals; trainings that are finished are kept.")
    return out


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
        axis.plot(
            range(len(rows)),
            [100 * statistics.mean(row[arm]) for row in rows],
            color=colour,
            label=arm,
        )
        for place, row in enumerate(rows):
            axis.plot(
                [place] * len(row[arm]),
                [100 * value for value in row[arm]],
                "o",
                color=colour,
                alpha=0.5,
            )
    axis.set_xticks(range(len(rows)), [str(row["labels_per_class"] or "all") for row in rows])
    axis.set(
        xlabel="labels a class",
        ylabel="accuracy of the last epoch in %",
        title=f"{len(rows[0]['seeds'])} seeds",
    )
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
