"""How well a classifier bears corrupted images."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from torchmae.data.corruptions import VARIANTS
from torchmae.eval.intervals import wilson_interval

# Mean error of AlexNet over the five strengths (Hendrycks & Dietterich 2019; their code has more
# digits than their table).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}

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


def corruption_errors(accuracies: Accuracies) -> dict[str, Any]:
    """What `means` returns, with the "ce" of each corruption, their mean "mce" and "mean_error".

    The corruption error (CE) is the mean error over the strengths as a share of AlexNet's, so it
    can exceed 1 (Hendrycks & Dietterich 2019, section 4.1); "mean_error" is not divided.

    Args:
        accuracies: of the 15 corruptions of ImageNet-C.
    """
    found = means(accuracies)
    for name, one in found["corruptions"].items():
        one["ce"] = (1 - one["mean"]) / ALEXNET_ERRORS[name]
    errors = [one["ce"] for one in found["corruptions"].values()]
    return {**found, "mce": statistics.fmean(errors), "mean_error": 1 - found["mean_corrupted"]}
