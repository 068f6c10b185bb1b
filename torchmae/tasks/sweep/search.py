"""The search of `mae compare`: learning rate and augmentation of each side, the same trials for
all."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torchmae.data.config import DecodeOptions, listing_as_run
from torchmae.data.dense.find import Split, find_layout
from torchmae.data.labels import open_pair, tuning_sets
from torchmae.errors import UserError
from torchmae.tasks.sweep.config import LR_SWEEP, TRIALS, Compare, Trial
from torchmae.tasks.sweep.grids import Changes, Grid, first_run, in_path
from torchmae.train.distributed import is_main

logger = logging.getLogger(__name__)

DEFAULT = 6  # trials of each side
SEED = 100  # of the trials, or the first after it that is none of --seeds


@dataclass(frozen=True)
class Search:
    """The trials that each side has.

    Args:
        trials: what is tried; empty: nothing.
        seed: of the trials.
        words: how settings were chosen, for the plan and for the caption.
        avoid: the seeds whose validation images are not used; empty where all have the same.
    """

    trials: tuple[Trial, ...]
    seed: int
    words: str
    avoid: tuple[int, ...] = ()

    def folder(self, row: str, arm: str, trial: Trial) -> str:
        """Where a trial is, below the folder of the sweep: other seeds leave other images."""
        seeds = "".join(f"-{seed}" for seed in self.avoid)
        place = f"trials-without-seeds{seeds}" if seeds else "trials"
        return f"{place}/{in_path(arm)}-{row}-{trial.folder}"


def plan_search(config: Compare, grid: Grid) -> Search:
    """What is tried, before anything is trained.

    A flag that names the learning rate or the level holds for all sides, and is not searched.

    Raises:
        UserError: trials are asked for, and too few images are left to choose on.
    """
    optim, level = config.optim, config.regularization.augment
    which, side = ("either", "side") if len(config.run) == 1 else ("any", "encoder")
    table = TRIALS if optim.lr_sweep is None else LR_SWEEP
    fixed = [Trial(t.lr_scale if optim.base_lr is None else 1.0, level or t.augment) for t in table]
    asked = optim.lr_sweep if optim.trials is None else optim.trials
    wanted = DEFAULT if asked is None else asked
    trials = tuple(dict.fromkeys(fixed))[:wanted]
    seed = next(n for n in count(SEED) if n not in grid.seeds)
    if len(trials) < 2:
        given = ": learning rate and augmentation are given"
        return Search((), seed, f"no search for {which} {side}{given if wanted >= 2 else ''}")
    source, split = config.source, config.split
    data = (source.data, source.val, split.val_fraction)
    few = split.labels_per_class or (None,)
    listing = listing_as_run(config.listing, source.data, first_run(config))
    try:
        has_own_split = open_pair(source.data, source.val, listing=listing)[1] is not None
        sets = [tuning_sets(*data, n, seed, grid.seeds, listing) for n in few]
        refuse_small([len(one.train) for one in sets], config.optim.batch_size)
    except UserError as error:
        if asked is not None:
            raise
        return Search((), seed, f"no search for {which} {side}: {error}")
    words = in_words(trials, side, seed, [len(one.val) for one in sets])
    return Search(trials, seed, words, () if has_own_split else grid.seeds)


def in_words(trials: Sequence[Trial], side: str, seed: int, chosen_on: Sequence[int]) -> str:
    """How settings are chosen.

    Args:
        trials: what is tried.
        side: what an arm is called.
        seed: of the trials.
        chosen_on: how many images settings are chosen on, in each row.
    """
    tried = [
        ("learning rate", {trial.times: None for trial in trials}),
        ("augment", {str(trial.augment): None for trial in trials}),
    ]
    what = "; ".join(f"{name} {', '.join(values)}" for name, values in tried if len(values) > 1)
    images = " and ".join(map(str, dict.fromkeys(chosen_on)))
    return (
        f"the best of {len(trials)} trials for each {side} ({what}), chosen with seed {seed} on "
        f"{images} training images that no seed validates on"
    )


def plan_dense_search(
    config: Any, grid: Grid, kinds: Sequence[str], open_sets: Callable[..., Any]
) -> Search:
    """As `plan_search`, of segmenters or detectors: learning rates alone.

    Args:
        config: the settings.
        grid: what is trained.
        kinds: what the annotated images may be, see `find_layout`.
        open_sets: opens them.
    """
    source, own = config.source, config.split
    seed = next(n for n in count(SEED) if n not in grid.seeds)
    if config.optim.lr_sweep is None:
        return Search((), seed, "those of the recipe, learning rates are not searched (--lr-sweep)")
    trials = LR_SWEEP[: config.optim.lr_sweep]
    which = (source.data, source.val, DecodeOptions())
    splits = [Split(own.val_fraction, few, seed, grid.seeds) for few in own.train_images or (None,)]
    listing = listing_as_run(config.listing, source.data, first_run(config))
    sets = [open_sets(*which, split, listing) for split in splits]
    counts = [len(one.train_source) for one in sets]
    refuse_small(counts, config.optim.batch_size, "leave --lr-sweep out")
    has_own_split = source.val is not None or find_layout(source.data, kinds).val is not None
    words = in_words(trials, "encoder", seed, [len(one.val_source) for one in sets])
    return Search(trials, seed, words, () if has_own_split else grid.seeds)


def refuse_small(
    counts: Sequence[int], batch_size: int | None, without: str = "--trials 0"
) -> None:
    """Raises UserError where fewer training images are left for a trial than a batch has; `without`
    says how not to search."""
    if batch_size is not None and min(counts) < batch_size:
        raise UserError(
            f"{min(counts)} training images are left to try settings on, fewer than --batch-size "
            f"{batch_size}: choose a smaller one, or {without}"
        )


def search_row(grid: Grid, row: str, search: Search) -> dict[str, dict[str, Any]]:
    """Trains the trials of a row, of each arm.

    Returns:
        By arm: "tried", a list of "lr_scale", "augment" and the metric; "chosen", the settings of
        the best (the first of those that are equally good), which are empty without trials.
    """
    found: dict[str, dict[str, Any]] = {}
    trained, metric = grid.trained, grid.trained.metric
    for arm in grid.arms:
        tried = []
        for number, trial in enumerate(search.trials, 1):
            if is_main():
                where = f"{arm}, {row} {grid.row_title}"
                logger.info(f"[trial {number}/{len(search.trials)}] {where}: {trial}")
            changes: Changes = {
                **trial._asdict(),
                "avoid_seeds": grid.seeds,
                "out": str(grid.out / search.folder(f"{row}-{grid.unit}", arm, trial)),
            }
            run = trained.train(grid.training(row, arm, search.seed, changes), quiet=True)
            tried.append({**trial._asdict(), metric: trained.scores(run)[metric]})
        best: Mapping[str, Any] = max(tried, key=lambda one: one[metric], default={})
        chosen = {name: value for name, value in best.items() if name != metric}
        if is_main() and chosen:
            logger.info(f"  chosen for {arm}: {Trial(**chosen)} ({best[metric]:.1%})")
        found[arm] = {"tried": tried, "chosen": chosen}
    return found
