"""`mae compare segment`, `mae compare detect`: encoders in a grid, to a table, a picture and
results.json."""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmae.data.config import listing_as_run
from torchmae.data.dense import detection, segmentation
from torchmae.data.dense.find import WITH_BOXES, WITH_MASKS
from torchmae.eval.intervals import LEAST_SEEDS, mean_interval, paired_difference
from torchmae.eval.verdict import by_sign, in_words
from torchmae.report.experiments.dense import dense_table, draw_dense
from torchmae.runfolder import add_result
from torchmae.settings.options import check_ranges, flatten
from torchmae.tasks.dense.detect.config import Detect
from torchmae.tasks.dense.detect.run import run as detect
from torchmae.tasks.dense.segment.config import Segment
from torchmae.tasks.dense.segment.run import run as segment
from torchmae.tasks.sweep.config import check_encoders
from torchmae.tasks.sweep.dense.config import CompareDetect, CompareSegment
from torchmae.tasks.sweep.grids import Grid, Trained, first_run, from_scratch, in_path, named
from torchmae.tasks.sweep.run import say_where, train_row
from torchmae.tasks.sweep.search import plan_dense_search, search_row
from torchmae.train.distributed import is_main

logger = logging.getLogger(__name__)

SCORE = "score"  # mIoU, or AP
METRICS = {"segment": "mIoU", "detect": "AP"}


def segmenters(config: CompareSegment) -> Path:
    """Compares encoders as segmenters; returns the folder of the comparison."""
    grid = dense_grid(config, Trained("segment", Segment, segment, SCORE))
    return compare(config, grid, WITH_MASKS, segmentation.open_sets)


def detectors(config: CompareDetect) -> Path:
    """Compares encoders as detectors; returns the folder of the comparison."""
    grid = dense_grid(config, Trained("detect", Detect, detect, SCORE))
    return compare(config, grid, WITH_BOXES, detection.open_sets)


def dense_grid(config: Any, trained: Trained) -> Grid:
    """A run against the same encoder from scratch, or several encoders, on the same images, crops,
    steps and seeds."""
    check_ranges(config)
    check_encoders(config)
    first = first_run(config)
    verb = f"compare {trained.verb}"
    # All take the images of the first run, also where they would take others by themselves.
    listing = listing_as_run(config.listing, config.source.data, first).settings(config.listing)
    scratch = {**from_scratch(first, config.decode), **listing}
    return Grid(
        verb=verb,
        config=config,
        out=Path(config.output.out or f"{first.rstrip('/')}-{verb.replace(' ', '-')}"),
        rows={str(n or "all"): {"train_images": n} for n in config.split.train_images or (None,)},
        arms={
            arm: scratch if place == "none" else {"run": place, **listing}
            for arm, place in named(config.run).items()
        },
        seeds=config.optim.seeds,
        row_title="training images",
        folder=lambda row, arm, seed: f"{in_path(arm)}-{row}-seed-{seed}",
        unit="images",
        trained=trained,
    )


def compare(config: Any, grid: Grid, kinds: Sequence[str], open_sets: Callable[..., Any]) -> Path:
    """Trains each encoder with each seed, and compares the last checkpoints with the first one's.

    Every training is a run folder of its own: the same command resumes what was stopped, and
    repeats nothing.

    Args:
        config: the settings.
        grid: what is trained.
        kinds: what the annotated images may be, see `find_layout`.
        open_sets: opens them.

    Returns:
        The folder. The results (`torchmae.runfolder.read_results`) are `{"metric", "search",
        "rows"}`, see `summarize`.
    """
    search = plan_dense_search(config, grid, kinds, open_sets)
    if is_main():
        logger.info(f"Settings of {' and '.join(grid.arms)}: {search.words}")
    rows = []
    for row in grid.rows:
        searched = search_row(grid, row, search)
        runs = train_row(grid, row, {arm: found["chosen"] for arm, found in searched.items()})
        if is_main():
            scores = {arm: list(map(grid.trained.scores, found)) for arm, found in runs.items()}
            rows.append(summarize(row, scores, searched))
    if not is_main():
        return grid.out
    metric, picture = METRICS[grid.trained.verb], grid.out / "compare.png"
    draw_dense(rows, metric, picture)
    logger.info(dense_table(rows, metric, search.words))
    results = {"metric": metric, "search": search.words, "rows": rows}
    say_where(add_result(grid.out, grid.verb, flatten(config), results), picture)
    return grid.out


def summarize(
    name: str,
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    searched: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What results.json holds of one number of training images.

    Args:
        name: the number.
        scores: of each encoder, "score" and "count" (of images) of each seed's last validation; the
            first is compared.
        searched: of each encoder, what `search_row` found.

    Returns:
        "name"; "images": validated on; "seeds"; "arms": by name "scores", "mean", "std", "low",
        "high" (95 % interval of the mean over seeds); "differences": the paired difference of the
        first to each other, by "first - other"; "verdict": "shown", "not shown" or "worse";
        "reason": in words; "search": what was searched.
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
        "search": dict(searched),
    }
