"""`mae probe`: a linear classifier on frozen features, trained as in the paper or solved."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import LabelledSets, groups_of, labelled_sets
from torchmae.data.sources.source import BadFile
from torchmae.data.suspicious import notes
from torchmae.errors import UserError, printable
from torchmae.eval.baselines import (
    COMMONEST,
    FEATURES,
    RAW_SIDE,
    baseline_features,
    baseline_logits,
    baseline_tokens,
    commonest,
)
from torchmae.eval.extract import collect, logits_of, say_view
from torchmae.eval.layers import Guess, measure_layers
from torchmae.eval.probes.attentive import Attended, attentive_probe
from torchmae.eval.probes.logistic import STRENGTHS, LinearProbe, linear_probe
from torchmae.eval.rank import rank_line, rankme
from torchmae.eval.verdict import judge
from torchmae.models.weights import load_classifier
from torchmae.report.experiments.layers import report_layers
from torchmae.runfolder import LAYERS, add_result
from torchmae.settings.options import ALL, build, flatten, parse_layer
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.probe.config import Probe, check
from torchmae.train.distributed import find_device, is_main

logger = logging.getLogger(__name__)

MOST_REGRESSED = 20_000  # training images: regressions on more take longer than the probe


def run(config: Probe) -> Path | dict[str, Any]:
    """Trains the probe and returns its run folder; with --fast the settings and the results."""
    config = replace(config, layer=parse_layer(config.layer))
    check(config)
    if config.fast:
        return regress(config)
    settings = {**flatten(config), "train": "head"}
    if settings.pop("head") == "attentive":
        settings["pool"] = "attentive"
    out = finetune(build(Finetune, settings))
    if is_main():
        logger.info(compare_trained(config, out))
    return out


def compare_trained(config: Probe, out: Path) -> str:
    """Whether a trained probe is better than what it is measured beside; added to its
    results.json."""
    sets = opened(config)
    device = find_device(config.runtime.device)
    if len(sets.train) > MOST_REGRESSED:
        return (
            f"{len(sets.train)} training images are too many for regressions on raw pixels and an "
            "untrained encoder: mae knn measures these beside the features"
        )
    ids, baselines = baseline_logits(config.run, sets, config.seed, out, device)
    model = load_classifier(out)
    images = sets.with_decode(decode_as_run(str(out))).val
    own, (logits,), _ = collect(images, model.encoder, out, [logits_of(model, device)], device)
    if own != ids:
        return "images changed while they were measured: nothing is compared"
    named = {"probe": logits, **{n: x for n, x in baselines.items() if n != FEATURES}}
    guesses = {name: found.argmax(1) for name, found in named.items()}
    verdict = judge(guesses, sets.val_labels[ids], "the probe is")
    add_result(out, "probe", {}, {"probe": verdict.accuracies, **verdict.results()})
    return f"Beside it, logistic regressions on the same labels:\n{verdict.text({})}"


def opened(config: Probe) -> LabelledSets:
    """The labelled images, decoded as the run's were unless told otherwise."""
    source, split, decode = config.source, config.split, config.decode
    return labelled_sets(
        source.data,
        source.val,
        split.val_fraction,
        split.labels_per_class,
        config.seed,
        decode_as_run(config.run, decode),
        listing_as_run(config.listing, source.data, config.run),
    )


def regress(config: Probe) -> dict[str, Any]:
    """The probe on stored features: of the run, an untrained encoder and, if linear, raw pixels.

    Returns:
        The settings and the results; "probe" has the accuracies of these and of always saying the
        commonest class, those of probes with what `choices` returns; "differences" of the features
        to each other; "verdict" in words; "rankme" of the training features, if linear; with
        `--layer all` what `measure_layers` returns, "layers", and the others are of the last block.
    """
    device = find_device(config.runtime.device)
    run, layer, seed, pool = config.run, config.layer, config.seed, config.pool or "mean"
    linear = config.head == "linear"
    fit: Callable[..., LinearProbe | Attended] = linear_probe
    if not linear:
        assert not isinstance(layer, str)  # `check`
        extract = baseline_tokens(run, layer, config.queries, seed, device)
        fit = partial(attentive_probe, queries=config.queries)
        what = f"Attentive probe ({config.queries} learned queries on frozen patch tokens)"
    else:
        extract = baseline_features(run, layer, pool, RAW_SIDE, seed, device)
        what = f"Linear probe (logistic regression on frozen features, {pool} pooling)"
    sets = opened(config)
    for line in notes(sets.train, sets.val, [sets.classes[i] for i in sets.train_labels]):
        logger.info(f"note: {printable(line)}")
    say_view(sets.train, config.run)
    train_ids, train, train_bad = extract(sets.train)
    say_skipped(train_bad)
    labels = sets.train_labels[train_ids]
    counts = labels.bincount(minlength=len(sets.classes)).tolist()
    if min(counts) == 0:
        raise UserError(f"no training image of class '{sets.classes[counts.index(0)]}' can be read")
    test_ids, test, test_bad = extract(sets.val)
    say_skipped(test_bad)
    truth = sets.val_labels[test_ids]
    what += f", {len(truth)} test and {len(labels)} training images, {len(sets.classes)} classes"
    logger.info(what)
    say_single(counts, sets.classes)
    fit = partial(fit, labels=labels, seed=seed, groups=groups_of(sets.train, train_ids))
    more: dict[str, Any] = {}
    if layer == ALL:
        more["layers"] = measure_layers(train[FEATURES], test[FEATURES], truth, guess_by(fit))
        train, test = ({**rows, FEATURES: rows[FEATURES][:, -1]} for rows in (train, test))
    found = {name: fit(train=train[name], test=test[name]) for name in train}
    guesses = {name: one.logits.argmax(1) for name, one in found.items()}
    verdict = judge({**guesses, COMMONEST: commonest(truth)}, truth, "the features are")
    logger.info(verdict.text({name: remark(one) for name, one in found.items()}))
    if linear:
        more["rankme"] = rankme(train[FEATURES])
        logger.info(rank_line(more["rankme"], *train[FEATURES].shape))
    if layer == ALL:
        logger.info(report_layers(more["layers"], what, verdict.accuracies, Path(run) / LAYERS))
    settings = {**flatten(config), "pool": pool if linear else None}
    accuracies: dict[str, dict[str, Any]] = dict(verdict.accuracies)
    for name, one in found.items():
        accuracies[name] |= one.choices()
    results = {
        "train_images": len(labels),
        "test_images": len(truth),
        "classes": len(sets.classes),
        "probe": accuracies,
        **more,
        **verdict.results(),
    }
    logger.info(f"Written to {add_result(Path(config.run), 'probe', settings, results)}")
    return {**settings, **results}


def guess_by(fit: Callable[..., LinearProbe | Attended]) -> Guess:
    """Classifies by a probe, and says what it chose."""

    def guess(train: Tensor, test: Tensor) -> tuple[Tensor, dict[str, Any]]:
        found = fit(train=train, test=test)
        return found.logits.argmax(1), found.choices()

    return guess


def say_single(counts: Sequence[int], classes: Sequence[str]) -> None:
    """Says so where a class has one training image, which leaves nothing to choose by."""
    if min(counts) == 1:
        single = printable(classes[counts.index(1)])
        logger.info(
            f"  class '{single}' has one training image, too few for "
            "validation: nothing is chosen by the data"
        )


def say_skipped(files: Sequence[BadFile]) -> None:
    """Names the files that cannot be read."""
    for file in files:
        logger.info(f"skipped: {file}")


def remark(found: LinearProbe | Attended) -> str:
    """What was chosen."""
    if isinstance(found, Attended):
        return f", learning rate {found.lr:g}"
    return f", strength {found.strength:g}{warning(found)}"


def warning(found: LinearProbe) -> str:
    """Where the best strength is the first or last tried, and better than the rest; else empty."""
    validated, strength = found.cross_validated, found.strength
    at_end = strength in (STRENGTHS[0], STRENGTHS[-1])
    if not at_end or not validated or validated.count(max(validated)) > 1:
        return ""
    strongest = strength == STRENGTHS[0]
    return (
        f"\n    warning: the {'strongest' if strongest else 'weakest'} that is tried; another "
        f"might do better (cross-validation: {max(validated):.1%}, with the strength next to it "
        f"{validated[1 if strongest else -2]:.1%})"
    )
