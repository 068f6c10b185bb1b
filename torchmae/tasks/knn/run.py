"""`mae knn`: k-NN accuracy on frozen features, beside the same k-NN on raw pixels and on an untrained encoder."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmae.data.labels import hold_out, labelled, open_pair
from torchmae.data.sources.source import Subset
from torchmae.errors import UserError
from torchmae.eval.baselines import accuracy, line, looker
from torchmae.eval.knn import knn
from torchmae.runfolder import add_result
from torchmae.tasks.knn.config import Knn
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Knn) -> dict[str, Any]:
    """Prints the three accuracies with 95 % intervals, adds them to `results.json` of the run, and gives them."""
    if not 0 < config.val_fraction < 1:
        raise UserError(f"--val-fraction {config.val_fraction}: must lie between 0 and 1")
    if config.k < 1:
        raise UserError(f"--k {config.k}: must be at least 1")
    look = looker(
        config.run, config.layer, config.pool, 32, config.seed, find_device(config.device)
    )
    source, test_source = open_pair(config.data, config.val)
    images, names = labelled(source, config.data)
    if test_source is None:
        out = hold_out(names, config.val_fraction, config.seed)
        kept, held_out = np.flatnonzero(~out), np.flatnonzero(out)
        test_images, test_names = Subset(images, held_out), [names[i] for i in held_out]
        images, names = Subset(images, kept), [names[i] for i in kept]
    else:
        test_images, test_names = labelled(test_source, config.val or config.data)
    classes = {name: i for i, name in enumerate(sorted(set(names)))}
    if len(classes) < 2:
        raise UserError(
            f"k-NN needs at least two classes with labels, {config.data} has {len(classes)}"
        )
    train, labels = look(images, torch.tensor([classes[name] for name in names]))
    # -1: a class that is only among the test images, which no neighbour can name
    test, truth = look(test_images, torch.tensor([classes.get(name, -1) for name in test_names]))
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
        f"k-NN accuracy (k = {config.k}), {len(truth)} test and {len(labels)} training images, {len(classes)} classes"
    )
    for name, score in found.items():
        logger.info(line(name, score))
    logger.info(f"Written to {add_result(Path(config.run), 'knn', asdict(config), results)}")
    return {**asdict(config), **results}
