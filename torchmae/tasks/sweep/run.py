"""`mae compare`, `mae partial`: a grid of fine-tunings, to a table, a picture and results.json."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torchmae.eval.intervals import paired_difference
from torchmae.report.sweep import draw_sweep, sweep_table
from torchmae.runfolder import add_result, last_validation
from torchmae.settings.options import flatten
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.sweep.config import Compare, Partial
from torchmae.tasks.sweep.grids import Grid, compare_grid, partial_grid
from torchmae.train.distributed import is_main

logger = logging.getLogger(__name__)


def compare(config: Compare) -> Path:
    """Trains pairs of pre-trained and from scratch; returns the folder of `run_grid`."""
    return run_grid(compare_grid(config))


def partial(config: Partial) -> Path:
    """Fine-tunes more and more blocks; returns the folder of `run_grid`."""
    return run_grid(partial_grid(config))


def run_grid(grid: Grid) -> Path:
    """Trains all of a grid, and writes a table, a picture and results.json.

    Every training is a run folder of its own: the same command resumes a sweep that was stopped,
    and a finished training is not repeated.

    Returns:
        The folder of the sweep. The results (`torchmae.runfolder.read_results`) are
        `{"rows": [...]}`, see `summarize`.
    """
    rows: list[dict[str, Any]] = []
    count, total = 0, len(grid.rows) * len(grid.arms) * len(grid.seeds)
    for row in grid.rows:
        scores: dict[str, list[dict[str, Any]]] = {arm: [] for arm in grid.arms}
        for seed, arm in product(grid.seeds, grid.arms):
            count += 1
            if is_main():
                prefix = f"{arm}, " if len(grid.arms) > 1 else ""
                logger.info(f"[{count}/{total}] {prefix}{row} {grid.row_title}, seed {seed}")
            # The plans of the first two show what differs: the arms, or head and blocks.
            run = finetune(grid.training(row, arm, seed), quiet=count > 2)
            scores[arm].append(last_validation(run))
        rows.append(summarize(grid, row, scores))
    if not is_main():
        return grid.out
    path = add_result(grid.out, grid.verb, flatten(grid.config), {"rows": rows})
    picture = grid.out / f"{grid.verb}.png"
    draw_sweep(rows, grid.row_title, picture, grid.beside)
    logger.info(sweep_table(rows, grid.row_title))
    logger.info(f"Written to {path} and {picture}; every training is a run folder beside them.")
    return grid.out


def summarize(
    grid: Grid, row: str, scores: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """What results.json holds of a row of the grid.

    Args:
        grid: what was trained.
        row: the name of the row.
        scores: of each arm, the last validation of each seed.

    Returns:
        "name"; "settings": what the row changes; "images": how many were validated on; "arms": by
        name, "top1" of each seed, their "mean" and "std" (None for a single seed), and for a
        single seed its 95 % interval "low", "high"; "differences": by name, the paired difference
        of each other arm to the baseline; "best": the name of the arm with the highest mean, where
        the grid chooses it, else None.
    """
    arms: dict[str, dict[str, Any]] = {}
    for arm, found in scores.items():
        top1 = [score["top1"] for score in found]
        arms[arm] = {"top1": top1, "mean": statistics.mean(top1), "std": None}
        if len(top1) > 1:
            arms[arm]["std"] = statistics.stdev(top1)
        else:
            arms[arm] |= {"low": found[0]["low"], "high": found[0]["high"]}
    differences = {
        f"{arm} - {grid.baseline}": paired_difference(
            arms[arm]["top1"], arms[grid.baseline]["top1"]
        )._asdict()
        for arm in arms
        if grid.baseline is not None and arm != grid.baseline
    }
    return {
        "name": row,
        "settings": dict(grid.rows[row]),
        "images": found[0]["count"],
        "arms": arms,
        "differences": differences,
        "best": max(arms, key=lambda arm: arms[arm]["mean"]) if grid.choose_best else None,
    }
