"""`mae compare segment`, `mae compare detect`: encoders in a grid, to a table, a picture and
results.json."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torchmae.errors import UserError
from torchmae.eval.intervals import LEAST_SEEDS, mean_interval, paired_difference
from torchmae.eval.verdict import by_sign, in_words
from torchmae.report.experiments.dense import dense_table, draw_dense
from torchmae.runfolder import add_result, read_any_config, read_results
from torchmae.settings.options import build, check_ranges, flatten
from torchmae.tasks.dense.compare.config import CompareDetect, CompareSegment, check_seeds
from torchmae.tasks.dense.detect.config import Detect
from torchmae.tasks.dense.detect.run import run as detect
from torchmae.tasks.dense.segment.config import Segment
from torchmae.tasks.dense.segment.run import run as segment
from torchmae.train.distributed import is_main

logger = logging.getLogger(__name__)

PRETRAINED, SCRATCH = "pre-trained", "from scratch"


class Train(Protocol):
    """The function of a verb of dense prediction."""

    def __call__(self, config: Any, quiet: bool = False) -> Path: ...


class Compared(NamedTuple):
    """What is compared.

    Attributes:
        verb: whose trainings these are.
        settings: the class of its settings.
        train: its function.
        metric: what `Scores.score` is called.
    """

    verb: str
    settings: type[Any]
    train: Train
    metric: str


def segmenters(config: CompareSegment) -> Path:
    """Compares encoders as segmenters; returns the folder of the comparison."""
    return compare(config, Compared("segment", Segment, segment, "mIoU"))


def detectors(config: CompareDetect) -> Path:
    """Compares encoders as detectors; returns the folder of the comparison."""
    return compare(config, Compared("detect", Detect, detect, "AP"))


def compare(config: Any, what: Compared) -> Path:
    """Trains each encoder with each seed, and compares the last checkpoints with the first one's.

    Every training is a run folder of its own: the same command resumes what was stopped, and
    repeats nothing.

    Args:
        config: the settings; tuples in `run`, `train_images`, `seeds`.
        what: whose trainings these are.

    Returns:
        The folder. The results (`torchmae.runfolder.read_results`) are `{"metric", "rows"}`, see
        `summarize`.
    """
    check_ranges(config)
    seeds, arms = config.optim.seeds, named(config.run)
    check_seeds(seeds)
    first = next((place for place in arms.values() if place != "none"), None)
    if first is None:
        raise UserError("a comparison needs a run: from scratch is the partner of one")
    out = Path(config.output.out or f"{first.rstrip('/')}-compare-{what.verb}")
    sizes = config.split.train_images or (None,)
    rows, done, total = [], 0, len(sizes) * len(seeds) * len(arms)
    for count in sizes:
        scores: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for seed in seeds:
            for arm, place in arms.items():
                done += 1
                name = f"{arm.replace(' ', '-').replace('/', '-')}-{count or 'all'}-seed-{seed}"
                if is_main():
                    logger.info(f"[{done}/{total}] {arm}, {count or 'all'} images, seed {seed}")
                changes = {"run": place, "train_images": count, "seed": seed}
                changes |= {"out": str(out / name), "model": first if place == "none" else None}
                training = build(what.settings, {**flatten(config), **changes})
                trained = what.train(training, quiet=done > len(arms))
                if is_main():
                    last = read_results(trained, what.verb)[-1]["results"]["last"]
                    images = read_any_config(trained)["data"]["val"]["count"]
                    scores[arm].append({"score": last["score"], "count": images})
        if is_main():
            rows.append(summarize(str(count or "all"), scores))
    if not is_main():
        return out
    picture = out / "compare.png"
    draw_dense(rows, what.metric, picture)
    logger.info(dense_table(rows, what.metric))
    results = {"metric": what.metric, "rows": rows}
    path = add_result(out, f"compare {what.verb}", flatten(config), results)
    logger.info(f"Written to {path} and {picture}; every training is a run folder beside them.")
    return out


def named(places: Sequence[str]) -> dict[str, str]:
    """The encoders by name: a run and its partner from scratch, or several.

    Raises:
        UserError: an encoder is named twice.
    """
    if len(places) == 1:
        return {PRETRAINED: places[0], SCRATCH: "none"}
    arms: dict[str, str] = {}
    for place in places:
        name = SCRATCH if place == "none" else Path(place).resolve().name
        if name in arms:
            name = f"{Path(place).resolve().parent.name}/{name}"
        if name in arms:
            raise UserError(f"{place} is named twice, or has the name of another run: {name}")
        arms[name] = place
    return arms


def summarize(name: str, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What results.json holds of one number of training images.

    Args:
        name: the number.
        scores: of each encoder, "score" and "count" (of images) of each seed's last validation; the
            first is compared.

    Returns:
        "name"; "images": validated on; "seeds"; "arms": by name "scores", "mean", "std", "low",
        "high" (95 % interval of the mean over seeds); "differences": the paired difference of the
        first to each other, by "first - other"; "verdict": "shown", "not shown" or "worse";
        "reason": in words.
    """
    arms: dict[str, dict[str, Any]] = {}
    for arm, found in scores.items():
        values = [float(one["score"]) for one in found]
        mean, low, high = mean_interval(values)
        std = statistics.stdev(values)
        arms[arm] = {"scores": values, "mean": mean, "std": std, "low": low, "high": high}
    first, *others = arms
    differences = {
        other: paired_difference(arms[first]["scores"], arms[other]["scores"]) for other in others
    }
    signs = by_sign(differences)
    seeds = len(arms[first]["scores"])
    reason = in_words(signs)
    verdict = "worse" if signs["below"] else "not shown" if signs["unclear"] else "shown"
    if seeds < LEAST_SEEDS:
        verdict = "not shown"
        reason = f"{seeds} seeds are too few to show a difference, {LEAST_SEEDS} may do"
    return {
        "name": name,
        "images": scores[first][0]["count"],
        "seeds": seeds,
        "arms": arms,
        "differences": {f"{first} - {arm}": d._asdict() for arm, d in differences.items()},
        "verdict": verdict,
        "reason": reason,
    }
