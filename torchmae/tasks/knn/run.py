"""`mae knn`: k-NN accuracy on frozen features, beside raw pixels and an untrained encoder."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmae.data.labels import Subset, hold_out, labelled, open_pair
from torchmae.errors import UserError
from torchmae.eval.baselines import baseline_features
from torchmae.eval.classification import accuracy
from torchmae.eval.knn import knn
from torchmae.report.tables import accuracy_line
from torchmae.runfolder import add_result
from torchmae.tasks.knn.config import Knn
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

RAW_SIDE = 32  # px: the largest side of raw pixels


def run(config: Knn) -> dict[str, Any]:
    """Measures the three accuracies and adds them to results.json of the run.

    Returns:
        The settings and the results; "knn" has "accuracy", "low" and "high" of "features",
        "untrained encoder" and "raw pixels".
    """
    if not 0 < config.val_fraction < 1:
        raise UserError(f"--val-fraction {config.val_fraction}: must be between 0 and 1")
    if config.k < 1:
        raise UserError(f"--k {config.k}: must be at least 1")
    extract = baseline_features(
        config.run, config.layer, config.pool, RAW_SIDE, config.seed, find_device(config.device)
    )
    train_images, train_names, test_images, test_names = split(config)
    classes = {name: i for i, name in enumerate(sorted(set(train_names)))}
    if len(classes) < 2:
        raise UserError(
            f"k-NN needs at least two classes with labels, {config.data} has {len(classes)}"
        )
    train_ids, train, train_bad = extract(train_images)
    test_ids, test, test_bad = extract(test_images)
    for name, reason in [*train_bad, *test_bad]:
        logger.info(f"skipped: {name}: {reason}")
    labels = torch.tensor([classes[train_names[i]] for i in train_ids])
    # -1: a class of the test images alone, which no neighbour can name
    truth = torch.tensor([classes.get(test_names[i], -1) for i in test_ids])
    found = {
        name: accuracy(knn(train[name], test[name], labels, len(classes), config.k), truth)
        for name in train
    }
    results = {
        "train_images": len(labels),
        "test_images": len(truth),
        "classes": len(classes),
        "knn": found,
    }
    logger.info(
        f"k-NN accuracy (k = {config.k}), {len(truth)} test and {len(labels)} training images, "
        f"{len(classes)} classes"
    )
    for name, score in found.items():
        logger.info(accuracy_line(name, score))
    path = add_result(Path(config.run), "knn", asdict(config), results)
    logger.info(f"Written to {path}")
    return {**asdict(config), **results}


def split(config: Knn) -> tuple[Subset, list[str], Subset, list[str]]:
    """Training images and their classes, test images and theirs."""
    source, test_source = open_pair(config.data, config.val)
    images, names = labelled(source, config.data)
    if test_source is not None:
        return images, names, *labelled(test_source, config.val or config.data)
    out = hold_out(names, config.val_fraction, config.seed)
    kept = np.flatnonzero(~out)
    held_out = np.flatnonzero(out)
    return (
        Subset(images, kept),
        [names[i] for i in kept],
        Subset(images, held_out),
        [names[i] for i in held_out],
    )
