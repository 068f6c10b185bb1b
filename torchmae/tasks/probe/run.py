"""`mae probe`: a linear classifier on frozen features, trained as in the paper or solved."""

import logging
from pathlib import Path
from typing import Any

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import groups_of, labelled_sets
from torchmae.data.suspicious import notes
from torchmae.errors import UserError, printable
from torchmae.eval.baselines import baseline_features
from torchmae.eval.extract import say_view
from torchmae.eval.logistic import STRENGTHS, linear_probe
from torchmae.report.tables import accuracy_line
from torchmae.runfolder import add_result
from torchmae.settings.options import build, flatten
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.probe.config import Probe, check
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

# px: with 32, raw pixels of Imagenette do no better at any strength (40.4 % at most, 41.4 % with
# 16) and take over ten times as long.
RAW_SIDE = 16


def run(config: Probe) -> Path | dict[str, Any]:
    """Trains the probe and returns its run folder; with --fast the settings and the results."""
    check(config)
    if config.fast:
        return regress(config)
    return finetune(build(Finetune, {**flatten(config), "train": "head"}))


def regress(config: Probe) -> dict[str, Any]:
    """The probe by logistic regression, of the features, an untrained encoder and raw pixels.

    Returns:
        The settings and the results; "probe" has what `linear_probe` returns for each of the three.
    """
    device = find_device(config.runtime.device)
    pool = config.pool or "mean"
    extract = baseline_features(config.run, config.layer, pool, RAW_SIDE, config.seed, device)
    sets = labelled_sets(
        config.source.data,
        config.source.val,
        config.split.val_fraction,
        config.split.labels_per_class,
        config.seed,
        decode_as_run(config.run, config.decode.max_megapixels, config.decode.white),
        listing_as_run(config.listing, config.source.data, config.run),
    )
    for line in notes(sets.train, sets.val, [sets.classes[i] for i in sets.train_labels]):
        logger.info(f"note: {printable(line)}")
    say_view(sets.train, config.run)
    train_ids, train, train_bad = extract(sets.train)
    for file in train_bad:
        logger.info(f"skipped: {file}")
    labels = sets.train_labels[train_ids]
    counts = labels.bincount(minlength=len(sets.classes)).tolist()
    if min(counts) == 0:
        raise UserError(f"no training image of class '{sets.classes[counts.index(0)]}' can be read")
    test_ids, test, test_bad = extract(sets.val)
    for file in test_bad:
        logger.info(f"skipped: {file}")
    truth = sets.val_labels[test_ids]
    logger.info(
        f"Linear probe (logistic regression on frozen features, {pool} pooling), "
        f"{len(truth)} test and {len(labels)} training images, {len(sets.classes)} classes"
    )
    if min(counts) == 1:
        single = printable(sets.classes[counts.index(1)])
        logger.info(
            f"  class '{single}' has one training image, too few for "
            f"cross-validation: the strength is the middle one, {STRENGTHS[len(STRENGTHS) // 2]:g}"
        )
    groups = groups_of(sets.train, train_ids)
    found = {
        name: linear_probe(train[name], labels, test[name], truth, config.seed, groups)
        for name in train
    }
    for name, score in found.items():
        strength = f"strength {score['strength']:g}{remark(score)}"
        logger.info(f"{accuracy_line(name, score)}, {strength}")
    settings = {**flatten(config), "pool": pool}
    results = {
        "train_images": len(labels),
        "test_images": len(truth),
        "classes": len(sets.classes),
        "probe": found,
    }
    logger.info(f"Written to {add_result(Path(config.run), 'probe', settings, results)}")
    return {**settings, **results}


def remark(score: dict[str, Any]) -> str:
    """A warning where the best strength is the first or last tried, and better than the rest."""
    validated, strength = score["cross_validated"], score["strength"]
    at_end = strength in (STRENGTHS[0], STRENGTHS[-1])
    if not at_end or not validated or validated.count(max(validated)) > 1:
        return ""
    strongest = strength == STRENGTHS[0]
    return (
        f"\n    warning: the {'strongest' if strongest else 'weakest'} that is tried; another "
        f"might do better (cross-validation: {max(validated):.1%}, with the strength next to it "
        f"{validated[1 if strongest else -2]:.1%})"
    )
