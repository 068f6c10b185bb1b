"""The accuracy of probes on frozen features: k-NN, linear and attentive, on the same images."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from torchmae.data.config import decode_as_run
from torchmae.data.labels import LabelledSets, groups_of
from torchmae.errors import UserError
from torchmae.eval.attentive import attentive_probe
from torchmae.eval.extract import Function, collect, features_of, patch_tokens_of
from torchmae.eval.knn import knn
from torchmae.eval.logistic import linear_probe
from torchmae.models.encoders import Backbone
from torchmae.models.weights import load

FROZEN = ("knn", "linear", "attentive")
NEIGHBORS = 20
QUERIES = 32  # of the attentive probe; fewer where they do not divide the width


def frozen_guesses(
    run: str, sets: LabelledSets, seed: int, names: Sequence[str], device: torch.device
) -> tuple[list[int], Mapping[str, Int64[Tensor, " M"]]]:
    """What probes on a run's frozen encoder say of the validation images, in one pass over these
    and the training images.

    Args:
        run: the run folder.
        sets: the labelled images.
        seed: of folds, weights and order of the probes.
        names: some of `FROZEN`. knn: 20 neighbors; linear: logistic regression with its penalty
            chosen by cross-validation, both on the mean of the patch tokens; attentive: learned
            queries on the patch tokens.
        device: where the encoder computes.

    Returns:
        The numbers of the validation images that can be read; their classes, by name.

    Raises:
        UserError: no training image of a class can be read.
    """
    encoder = load(run)
    functions: dict[str, Function] = {"features": features_of(encoder, None, "mean", device)}
    if "attentive" in names:
        functions["tokens"] = patch_tokens_of(encoder, None, device)
    decoded = sets.with_decode(decode_as_run(run, None, None))
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
    found: dict[str, Int64[Tensor, " M"]] = {}
    if "knn" in names:
        found["knn"] = knn(train["features"], test["features"], labels, count, NEIGHBORS)
    if "linear" in names:
        linear = linear_probe(train["features"], labels, test["features"], seed, groups)
        found["linear"] = linear.logits.argmax(1)
    if "attentive" in names:
        queries = queries_for(encoder)
        probe = attentive_probe(train["tokens"], labels, test["tokens"], seed, groups, queries)
        found["attentive"] = probe.logits.argmax(1)
    return test_ids, found


def queries_for(encoder: Backbone) -> int:
    """The most queries, up to `QUERIES`, that divide the width of the tokens."""
    return next(n for n in range(QUERIES, 0, -1) if encoder.embed_dim % n == 0)
