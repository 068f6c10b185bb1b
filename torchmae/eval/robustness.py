"""How well a classifier bears corrupted images."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from torchmae.data.corruptions import VARIANTS
from torchmae.eval.intervals import wilson_interval

Accuracies = Mapping[str, Sequence[float]]
"""The accuracy, 0 to 1, at each strength, by corruption."""


def corrupted_scores(
    said: Int64[Tensor, "N variants"], labels: Int64[Tensor, " N"]
) -> dict[str, Any]:
    """The accuracies of what a classifier says of images in all of `VARIANTS`, all 0 to 1.

    Args:
        said: the numbers of the classes.
        labels: those of the true ones.

    Returns:
        "count", "top1" of the clean images with "low" and "high" of its 95 % interval (Wilson), and
        what `means` returns.
    """
    right = said == labels.unsqueeze(1)
    shares = right.double().mean(0).tolist()
    low, high = wilson_interval(int(right[:, 0].sum()), len(labels))
    accuracies: dict[str, list[float]] = {}
    for variant, share in zip(VARIANTS[1:], shares[1:]):
        assert variant is not None  # only the first, which is the clean image
        accuracies.setdefault(variant[0], []).append(share)
    clean = {"count": len(labels), "top1": shares[0], "low": low, "high": high}
    return {**clean, **means(accuracies)}


def means(accuracies: Accuracies) -> dict[str, Any]:
    """ "corruptions", the "accuracy" by strength and its "mean" of each, and "mean_corrupted", the
    mean of these means."""
    found = {
        name: {"accuracy": list(shares), "mean": statistics.fmean(shares)}
        for name, shares in accuracies.items()
    }
    overall = statistics.fmean(map(statistics.fmean, accuracies.values()))
    return {"corruptions": found, "mean_corrupted": overall}
