"""The search of `mae compare`: learning rate and augmentation of each side, the same trials for
all."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from torchmae.data.config import listing_as_run
from torchmae.data.labels import open_pair, tuning_sets
from torchmae.errors import UserError
from torchmae.runfolder import last_validation
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.sweep.config import Compare
from torchmae.tasks.sweep.grids import Changes, Grid, first_run, in_path
from torchmae.train.distributed import is_main

logger = logging.getLogger(__name__)

DEFAULT = 6  # trials of each side
SEED = 100  # of the trials, or the first after it that is none of --seeds


class Trial(NamedTuple):
    """What a trial changes: a factor of the learning rate, and the level of --augment (None: that
    of the recipe)."""

    lr_scale: float
    augment: str | None

    @property
    def times(self) -> str:
        """Such as "x1/3"."""
        return "x1/3" if self.lr_scale < 1 else f"x{self.lr_scale:g}"

    def __str__(self) -> str:
        return f"learning rate {self.times}" + (f", augment {self.augment}" if self.augment else "")

    @property
    def folder(self) -> str:
        return f"lr-x{self.lr_scale:.2g}" + (f"-{self.augment}" if self.augment else "")


# What is tried, the most telling first: --trials N takes the first N.
TRIALS = (
    Trial(1.0, "mild"),
    Trial(3.0, "mild"),
    Trial(1.0, "strong"),
    Trial(1.0, "none"),
    Trial(1 / 3, "mild"),
    Trial(3.0, "strong"),
    Trial(3.0, "none"),
    Trial(1 / 3, "strong"),
    Trial(1 / 3, "none"),
)
LR_SWEEP = (Trial(1.0, None), Trial(3.0, None), Trial(1 / 3, None))  # --lr-sweep N: the first N


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
        return f"{place}/{in_path(arm)}-{row}-labels-{trial.folder}"


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
    tried = [
        ("learning rate", {trial.times: None for trial in trials}),
        ("augment", {str(trial.augment): None for trial in trials}),
    ]
    what = "; ".join(f"{name} {', '.join(values)}" for name, values in tried if len(values) > 1)
    images = " and ".join(map(str, dict.fromkeys(len(one.val) for one in sets)))
    return Search(
        trials,
        seed,
        f"the best of {len(trials)} trials for each {side} ({what}), chosen with seed {seed} on "
        f"{images} training images that no seed validates on",
        () if has_own_split else grid.seeds,
    )


def refuse_small(counts: Sequence[int], batch_size: int | None) -> None:
    """Raises UserError where fewer training images are left for a trial than a batch has."""
    if batch_size is not None and min(counts) < batch_size:
        raise UserError(
            f"{min(counts)} training images are left to try settings on, fewer than --batch-size "
            f"{batch_size}: choose a smaller one, or --trials 0"
        )


def search_row(grid: Grid, row: str, search: Search) -> dict[str, dict[str, Any]]:
    """Trains the trials of a row, of each arm.

    Returns:
        By arm: "tried", a list of "lr_scale", "augment" and "top1"; "chosen", the settings of the
        best (the first of those that are equally good), which are empty without trials.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in grid.arms:
        tried = []
        for number, trial in enumerate(search.trials, 1):
            if is_main():
                where = f"{arm}, {row} {grid.row_title}"
                logger.info(f"[trial {number}/{len(search.trials)}] {where}: {trial}")
            changes: Changes = {
                **trial._asdict(),
                "avoid_seeds": grid.seeds,
                "out": str(grid.out / search.folder(row, arm, trial)),
            }
            run = finetune(grid.training(row, arm, search.seed, changes), quiet=True)
            tried.append({**trial._asdict(), "top1": last_validation(run)["top1"]})
        best: Mapping[str, Any] = max(tried, key=lambda one: one["top1"], default={})
        chosen = {name: value for name, value in best.items() if name != "top1"}
        if is_main() and chosen:
            logger.info(f"  chosen for {arm}: {Trial(**chosen)} ({best['top1']:.1%})")
        found[arm] = {"tried": tried, "chosen": chosen}
    return found
