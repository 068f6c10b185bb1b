"""`mae compare`, `mae partial`: fine-tunings in a grid, to a table, a picture and results.json."""

import logging
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torchmae.eval.baselines import COMMONEST, FEATURES, baseline_logits
from torchmae.eval.classification import scores
from torchmae.report.experiments.comparison import comparison_table, draw_comparison
from torchmae.report.experiments.sweep import FIGURE_9, draw_sweep, sweep_table
from torchmae.runfolder import add_result, last_validation, stored_settings
from torchmae.settings.options import flatten
from torchmae.tasks.sweep.config import FEW_LABEL, MEASURES, Compare, Partial
from torchmae.tasks.sweep.frozen import commonest_scores, labelled_as, measure_frozen
from torchmae.tasks.sweep.grids import (
    NOTHING,
    SCRATCH,
    Changes,
    Grid,
    compare_grid,
    partial_grid,
)
from torchmae.tasks.sweep.search import Search, plan_search, search_row
from torchmae.tasks.sweep.verdict import FROZEN, summarize_comparison, training_losses
from torchmae.train.distributed import find_device, is_main

logger = logging.getLogger(__name__)


def compare(config: Compare) -> Path:
    """A run against the same encoder from scratch, or several encoders, by each measure, with the
    same search for all, beside baselines.

    Every training is a run folder of its own, and every measurement of frozen features is written
    down when it is made: the same command resumes what was stopped, and repeats nothing.

    Returns:
        The folder of the sweep. The results (`torchmae.runfolder.read_results`) are
        `{"search": words, "rows": [...]}`, see `summarize_comparison`.
    """
    grid = compare_grid(config)
    measures = chosen_measures(config)
    trains = FEW_LABEL in measures
    search = plan_search(config, grid) if trains else Search((), 0, "nothing is trained")
    if is_main():
        say_arms(config, grid, measures)
        if trains:
            logger.info(f"Settings of {' and '.join(grid.arms)}: {search.words}")
    # Trainings first: the processes of torchrun that measure nothing would wait for too long.
    tuned = [tune_row(config, grid, row, search) for row in grid.rows] if trains else []
    if not is_main():
        return grid.out
    frozen = [name for name in measures if name != FEW_LABEL]
    found = measure_frozen(config, grid, frozen) if frozen else {}
    features = [
        summarize_comparison(row, grid.rows[row], measure, scores, {})
        for (measure, row), scores in found.items()
    ]
    rows = sorted(
        features + [row for row in tuned if row], key=lambda r: measures.index(r["measure"])
    )
    results = {"search": search.words, "rows": rows}
    picture = grid.out / "compare.png"
    draw_comparison(rows, grid.row_title, picture)
    logger.info(comparison_table(rows, grid.row_title, search.words, MEASURES))
    alone = config.run[0] if len(config.run) == 1 else config.run
    settings = {**flatten(config), "run": alone}
    say_where(add_result(grid.out, "compare", settings, results), picture)
    return grid.out


def chosen_measures(config: Compare) -> tuple[str, ...]:
    """What is measured, each once."""
    default = (FEW_LABEL,) if len(config.run) == 1 else tuple(MEASURES)
    return tuple(dict.fromkeys(config.measures.measure or default))


def say_arms(config: Compare, grid: Grid, measures: Sequence[str]) -> None:
    """Says what is compared, where the command line does not."""
    if len(config.run) == 1:
        return
    places = zip(grid.arms, config.run)
    lines = [f"  {arm:<20} {'new weights' if p == 'none' else p}" for arm, p in places]
    first = next(iter(grid.arms))
    logger.info("\n".join(["Encoders, all against the first:", *lines]))
    count = len(grid.arms) * len(grid.seeds) * len(grid.rows) * (FEW_LABEL in measures)
    logger.info(f"Measures: {', '.join(measures)}; {count} fine-tunings; each minus {first}")


def tune_row(config: Compare, grid: Grid, row: str, search: Search) -> dict[str, Any] | None:
    """Trains all of a row, settings searched; what results.json holds of it, on the main
    process."""
    searched = search_row(grid, row, search)
    runs = train_row(grid, row, {arm: found["chosen"] for arm, found in searched.items()})
    if not is_main():
        return None
    changes = grid.rows[row]
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for place, seed in enumerate(grid.seeds):
        ended = {arm: found[place] for arm, found in runs.items()}
        for name, one in scores_of(config, changes["labels_per_class"], seed, ended).items():
            measured.setdefault(name, []).append(one)
    return summarize_comparison(row, changes, FEW_LABEL, measured, searched)


def partial(config: Partial) -> Path:
    """Fine-tunes more and more blocks, resumable as `compare` is.

    Returns:
        The folder of the sweep. The results are `{"rows": [...]}`, see `summarize`.
    """
    grid = partial_grid(config)
    rows = [summarize(grid, row, train_row(grid, row, {})) for row in grid.rows]
    if is_main():
        picture = grid.out / "partial.png"
        draw_sweep(rows, grid.row_title, picture, FIGURE_9)
        logger.info(sweep_table(rows, grid.row_title))
        say_where(add_result(grid.out, "partial", flatten(config), {"rows": rows}), picture)
    return grid.out


def scores_of(
    config: Compare, labels_per_class: int | None, seed: int, runs: Mapping[str, Path]
) -> dict[str, Mapping[str, Any]]:
    """The scores of the trainings of a row and seed, by arm, and of the baselines beside them.

    Several encoders have the commonest class alone: the others are measures of their own.
    """
    sets = labelled_as(config, labels_per_class, seed)
    trained = {
        arm: {**last_validation(run), **training_losses(run, sets.train_labels)}
        for arm, run in runs.items()
    }
    if len(config.run) > 1:
        return {**trained, COMMONEST: commonest_scores(sets)}
    device = find_device(config.runtime.device)
    ids, logits = baseline_logits(config.run[0], sets, seed, runs[SCRATCH], device)
    measured = {
        FROZEN if name == FEATURES else name: scores(
            found, sets.val_labels[ids], sets.classes
        ).summary()
        for name, found in logits.items()
    }
    return {**trained, **measured}


def say_where(path: Path, picture: Path) -> None:
    logger.info(f"Written to {path} and {picture}; every training is a run folder beside them.")


def train_row(grid: Grid, row: str, chosen: Mapping[str, Changes]) -> dict[str, list[Path]]:
    """Trains all of a row of the grid.

    Args:
        grid: what is trained.
        row: the name of the row.
        chosen: what a search chose, of each arm.

    Returns:
        The run folders, by arm, in the order of the seeds.
    """
    runs: dict[str, list[Path]] = {arm: [] for arm in grid.arms}
    each = len(grid.arms) * len(grid.seeds)
    first = list(grid.rows).index(row) * each + 1
    for number, (seed, arm) in enumerate(product(grid.seeds, grid.arms), first):
        if is_main():
            prefix = f"{arm}, " if len(grid.arms) > 1 else ""
            where = f"{prefix}{row} {grid.row_title}, seed {seed}"
            logger.info(f"[{number}/{len(grid.rows) * each}] {where}")
        training = grid.training(row, arm, seed, chosen.get(arm, NOTHING))
        runs[arm].append(grid.trained.train(training, quiet=number > 1))
        if is_main() and seed == grid.seeds[0] and arm != next(iter(grid.arms)):
            one = runs[next(iter(grid.arms))][0]
            logger.info(f"  unlike {one.name}: {differing(one, runs[arm][0])}")
    return runs


def differing(first: Path, other: Path) -> str:
    """The settings in which a training differs from the first of its row, chosen ones too."""
    one, two = (stored_settings(run) for run in (first, other))
    changed = [
        f"{name} {two[name]} ({one[name]})"
        for name in two
        if name != "out" and name in one and two[name] != one[name]
    ]
    return ", ".join(changed) or "nothing but its weights"


def summarize(grid: Grid, row: str, runs: Mapping[str, list[Path]]) -> dict[str, Any]:
    """What results.json holds of a row of `mae partial`.

    Returns:
        "name"; "settings": what the row changes; "images": how many were validated on; "arms": by
        name, "top1" with its 95 % interval "low", "high"; "best": the name of the arm with the
        highest accuracy, where the grid chooses it, else None.
    """
    scores = {arm: last_validation(found[0]) for arm, found in runs.items()}
    arms = {
        arm: {name: one[name] for name in ("top1", "low", "high")} for arm, one in scores.items()
    }
    return {
        "name": row,
        "settings": dict(grid.rows[row]),
        "images": next(iter(scores.values()))["count"],
        "arms": arms,
        "best": max(arms, key=lambda arm: arms[arm]["top1"]) if grid.choose_best else None,
    }
