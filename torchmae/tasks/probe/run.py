"""`mae probe`: what a linear map makes of frozen features; trained as in the paper, or solved at once on stored features."""

import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torchmae.data.labels import labelled_sets
from torchmae.errors import UserError, choose
from torchmae.eval.baselines import line, looker
from torchmae.eval.logistic import STRENGTHS, probed
from torchmae.runfolder import add_result
from torchmae.settings.options import check_numbers
from torchmae.tasks.finetune import run as classify
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.probe.config import FAST_ONLY, TRAINED_ONLY, Probe
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

POOLS = {"mean": "mean", "token": "cls"}  # mae finetune's words for what mae embed calls pooling


# px: with 32, raw pixels of Imagenette do no better at any strength (40.4 % at most, 41.4 % with 16) and take over ten times
# as long.
RAW_SIDE = 16


def run(config: Probe) -> Path | dict[str, Any]:
    """The run folder of the trained probe; with --fast what was found, which is printed and added to `results.json` of RUN."""
    foreign = TRAINED_ONLY if config.fast else FAST_ONLY
    for field in fields(config):
        if field.name in foreign and getattr(config, field.name) != field.default:
            flag = f"--{'no-' * (field.name == 'flip')}{field.name.replace('_', '-')}"
            raise UserError(
                f"{flag} belongs to the probe that is trained: leave it out, or --fast"
                if config.fast
                else f"{flag} belongs to the probe on stored features: add --fast, or leave it out"
            )
    if config.run == "none":
        raise UserError("mae probe needs a run: an untrained encoder stands beside it with --fast")
    if config.fast:
        return regress(config)
    given = {name: value for name, value in asdict(config).items() if name not in FAST_ONLY}
    return classify.run(Finetune(train="head", **given))


def regress(config: Probe) -> dict[str, Any]:
    """The probe by logistic regression, of the features, an untrained encoder and raw pixels."""
    check_numbers(config, ("labels_per_class",), ("seed",))
    if not 0 < config.val_fraction < 1:
        raise UserError(f"--val-fraction {config.val_fraction}: must lie between 0 and 1")
    pool = config.pool or "mean"
    pool = choose(POOLS, pool, "pool")
    look = looker(config.run, config.layer, pool, RAW_SIDE, config.seed, find_device(config.device))
    sets = labelled_sets(
        config.data, config.val, config.val_fraction, config.labels_per_class, config.seed
    )
    train, labels = look(sets.train, sets.train_labels)
    counts = labels.bincount(minlength=len(sets.classes)).tolist()
    if min(counts) == 0:
        raise UserError(f"no training image of class '{sets.classes[counts.index(0)]}' can be read")
    test, truth = look(sets.val, sets.val_labels)
    logger.info(
        f"Linear probe (logistic regression on frozen features, {pool} pooling), {len(truth)} test and {len(labels)} "
        f"training images, {len(sets.classes)} classes"
    )
    if min(counts) == 1:
        logger.info(
            f"  class '{sets.classes[counts.index(1)]}' has one training image, too few for cross-validation: the strength is "
            f"the middle one, {STRENGTHS[len(STRENGTHS) // 2]:g}"
        )
    found = {name: probed(train[name], labels, test[name], truth, config.seed) for name in train}
    for name, score in found.items():
        logger.info(f"{line(name, score)}, strength {score['strength']:g}{remark(score)}")
    settings = {**asdict(config), "pool": pool}
    results = {
        "train_images": len(labels),
        "test_images": len(truth),
        "classes": len(sets.classes),
        "probe": found,
    }
    logger.info(f"Written to {add_result(Path(config.run), 'probe', settings, results)}")
    return {**settings, **results}


def remark(score: dict[str, Any]) -> str:
    """A warning where the best strength is the first or the last that is tried, and better than all others."""
    validated, strength = score["cross_validated"], score["strength"]
    if (
        strength not in (STRENGTHS[0], STRENGTHS[-1])
        or not validated
        or validated.count(max(validated)) > 1
    ):
        return ""
    kind, next_one = (
        ("strongest", validated[1]) if strength == STRENGTHS[0] else ("weakest", validated[-2])
    )
    return (
        f"\n    warning: the {kind} that is tried; another might do better (cross-validation: {max(validated):.1%}, with the "
        f"strength next to it {next_one:.1%})"
    )
