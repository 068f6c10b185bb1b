"""What frozen features are measured by: k-NN, logistic regression, the attentive probe."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.data.config import decode_as_run
from torchmae.data.labels import LabelledSets, groups_of
from torchmae.errors import UserError
from torchmae.eval.baselines import FEATURES, PIXELS, RAW_SIDE, raw_pixels, untrained
from torchmae.eval.extract import Function, collect, features_of, patch_tokens_of
from torchmae.eval.probes.attentive import attentive_probe
from torchmae.eval.probes.knn import knn_votes
from torchmae.eval.probes.logistic import linear_probe
from torchmae.models.weights import load

NEIGHBOURS = 20  # as mae knn
QUERIES = 32  # at most, as mae probe; fewer where they do not divide the width

# Training features, their labels, test features, classes, seed, groups, to logits of the test rows.
Classify = Callable[
    [Tensor, Int64[Tensor, " A"], Tensor, int, int, Sequence[str] | None], Float[Tensor, "B C"]
]


def by_neighbours(
    train: Float[Tensor, "A F"],
    labels: Int64[Tensor, " A"],
    test: Float[Tensor, "B F"],
    classes: int,
    seed: int,
    groups: Sequence[str] | None,
) -> Float[Tensor, "B C"]:
    """The logarithm of the votes: their softmax is each class's share."""
    return knn_votes(train, test, labels, classes, NEIGHBOURS).log()


def by_regression(
    train: Float[Tensor, "A F"],
    labels: Int64[Tensor, " A"],
    test: Float[Tensor, "B F"],
    classes: int,
    seed: int,
    groups: Sequence[str] | None,
) -> Float[Tensor, "B C"]:
    return linear_probe(train, labels, test, seed, groups).logits.float()


def by_queries(
    train: Float[Tensor, "A N D"],
    labels: Int64[Tensor, " A"],
    test: Float[Tensor, "B N D"],
    classes: int,
    seed: int,
    groups: Sequence[str] | None,
) -> Float[Tensor, "B C"]:
    queries = next(n for n in range(QUERIES, 0, -1) if train.shape[2] % n == 0)
    return attentive_probe(train, labels, test, seed, groups, queries).logits


POOLED, TOKENS = "pooled features", "patch tokens"
# What each measure takes, and what it makes of it.
MEASURES: dict[str, tuple[str, Classify]] = {
    "knn": (POOLED, by_neighbours),
    "linear": (POOLED, by_regression),
    "attentive": (TOKENS, by_queries),
}


def frozen_guesses(
    run: str,
    sets: LabelledSets,
    seed: int,
    names: Sequence[str],
    device: torch.device,
    subject: str = FEATURES,
) -> tuple[list[int], Mapping[str, Int64[Tensor, " M"]]]:
    """What probes on a run's frozen encoder, or on what it is measured beside, say of the
    validation images, in one pass over these and the training images.

    Args:
        run: the run folder; of baselines its description alone is read.
        sets: the labelled images.
        seed: of folds, weights and order of the probes, and of an untrained encoder.
        names: some of `MEASURES`; pixels have no tokens.
        device: where the encoder computes.
        subject: `FEATURES`, or a baseline: `UNTRAINED` or `PIXELS`.

    Returns:
        The numbers of the validation images that can be read; their classes, by name.

    Raises:
        UserError: no training image of a class can be read.
    """
    encoder = load(run) if subject == FEATURES else untrained(run, seed)
    pixels = partial(raw_pixels, side=RAW_SIDE)
    makers: dict[str, Callable[[], Function]] = {
        POOLED: lambda: pixels if subject == PIXELS else features_of(encoder, None, "mean", device),
        TOKENS: lambda: patch_tokens_of(encoder, None, device),
    }
    functions = {kind: makers[kind]() for kind in {MEASURES[name][0] for name in names}}
    decoded = sets.with_decode(decode_as_run(run))
    (ids, train), (test_ids, test) = (
        (ids, dict(zip(functions, rows)))
        for ids, rows, _ in (
            collect(part, encoder, run, list(functions.values()), device)
            for part in (decoded.train, decoded.val)
        )
    )
    labels, groups = sets.train_labels[ids], groups_of(sets.train, ids)
    count = len(sets.classes)
    missing = (labels.bincount(minlength=count) == 0).nonzero().flatten().tolist()
    if missing:
        raise UserError(f"no training image of class '{sets.classes[missing[0]]}' can be read")
    found = {}
    for name in names:
        kind, classify = MEASURES[name]
        logits = classify(train[kind], labels, test[kind], count, seed, groups)
        found[name] = logits.argmax(1)
    return test_ids, found
