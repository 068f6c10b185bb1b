"""`mae knn`: k-NN accuracy on frozen features, beside raw pixels and an untrained encoder."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import labelled, open_pair, refuse_shared_groups, split_off
from torchmae.data.sources.source import Subset
from torchmae.data.suspicious import notes
from torchmae.errors import UserError, printable
from torchmae.eval.baselines import COMMONEST, FEATURES, baseline_features, commonest
from torchmae.eval.extract import say_view
from torchmae.eval.intervals import few_images
from torchmae.eval.layers import measure_layers
from torchmae.eval.probes.knn import knn
from torchmae.eval.rank import rank_line, rankme
from torchmae.eval.verdict import judge
from torchmae.report.experiments.layers import report_layers
from torchmae.runfolder import LAYERS, add_result
from torchmae.settings.options import ALL, check_ranges, flatten, parse_layer
from torchmae.tasks.knn.config import Knn
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

RAW_SIDE = 32  # px: the largest side of raw pixels


def run(config: Knn) -> dict[str, Any]:
    """Measures the three accuracies and adds them to results.json of the run.

    Returns:
        The settings and the results; "knn" has "accuracy", "low" and "high" of "features",
        "untrained encoder", "raw pixels" and "commonest class"; "differences" of the first to each
        other; "verdict" in words; "rankme" of the training features; with `--layer all` what
        `measure_layers` returns, "layers", and the others are of the last block.
    """
    config = replace(config, layer=parse_layer(config.layer))
    check_ranges(config)
    device = find_device(config.runtime.device)
    extract = baseline_features(
        config.run, config.layer, config.pool, RAW_SIDE, config.seed, device
    )
    train_images, train_names, test_images, test_names = split(config)
    for line in notes(train_images, test_images, train_names):
        logger.info(f"note: {printable(line)}")
    classes = {name: i for i, name in enumerate(sorted(set(train_names)))}
    if len(classes) < 2:
        raise UserError(
            f"k-NN needs at least two classes with labels, {config.source.data} has {len(classes)}"
        )
    say_view(train_images, config.run)
    train_ids, train, train_bad = extract(train_images)
    test_ids, test, test_bad = extract(test_images)
    for file in [*train_bad, *test_bad]:
        logger.info(f"skipped: {file}")
    labels = torch.tensor([classes[train_names[i]] for i in train_ids])
    # -1: a class of the test images alone, which no neighbour can name
    truth = torch.tensor([classes.get(test_names[i], -1) for i in test_ids])
    vote = partial(knn, labels=labels, classes=len(classes), k=config.k)
    more: dict[str, Any] = {}
    if config.layer == ALL:
        more["layers"] = measure_layers(
            train[FEATURES], test[FEATURES], truth, lambda a, b: (vote(a, b), {})
        )
        train, test = ({**rows, FEATURES: rows[FEATURES][:, -1]} for rows in (train, test))
    guesses = {name: vote(train[name], test[name]) for name in train}
    verdict = judge({**guesses, COMMONEST: commonest(truth)}, truth, "the features are")
    results = {
        "train_images": len(labels),
        "test_images": len(truth),
        "classes": len(classes),
        "knn": verdict.accuracies,
        "rankme": rankme(train[FEATURES]),
        **more,
        **verdict.results(),
    }
    what = (
        f"k-NN accuracy (k = {config.k}), {len(truth)} test and {len(labels)} training images, "
        f"{len(classes)} classes"
    )
    logger.info(what)
    logger.info(verdict.text({}))
    logger.info(rank_line(results["rankme"], *train[FEATURES].shape))
    if more:
        picture = Path(config.run) / LAYERS
        logger.info(report_layers(more["layers"], what, verdict.accuracies, picture))
    if few := few_images(len(truth)):
        logger.info(few)
    settings = flatten(config)
    logger.info(f"Written to {add_result(Path(config.run), 'knn', settings, results)}")
    return {**settings, **results}


def split(config: Knn) -> tuple[Subset, list[str], Subset, list[str]]:
    """Training images and their classes, test images and theirs."""
    data, val = config.source.data, config.source.val
    decode = decode_as_run(config.run, config.decode)
    listing = listing_as_run(config.listing, data, config.run)
    source, test_source = open_pair(data, val, decode, listing)
    images, names = labelled(source, data)
    if test_source is None:
        return split_off(images, names, config.val_fraction, config.seed, data)
    test, test_names = labelled(test_source, val or data)
    refuse_shared_groups(images, test)
    return images, names, test, test_names
