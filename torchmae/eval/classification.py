"""How good a classifier is: accuracies with an interval, each class, calibration, the confusion matrix as a picture."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.eval.intervals import interval


@dataclass(frozen=True)
class Scores:
    """Of `count` images: shares right (top 1, top 5), the 95 % interval of top 1, accuracy of each class that occurs, the
    expected calibration error (15 bins of confidence, Guo et al. 2017), counts of (true class, guess)."""

    count: int
    top1: float
    top5: float
    low: float
    high: float
    per_class: dict[str, float]
    calibration_error: float
    confusion: list[list[int]]

    def summary(self) -> dict[str, Any]:
        """The numbers that go to results.json (all but the matrix)."""
        return {name: value for name, value in vars(self).items() if name != "confusion"}


def scores(
    logits: Float[Tensor, "N classes"], labels: Int64[Tensor, "N"], classes: tuple[str, ...]
) -> Scores:
    """The scores of logits against labels (numbers of classes)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    right = order[:, 0] == labels
    count = len(labels)
    low, high = interval(int(right.sum()), count)
    confidence = logits.softmax(1).amax(1)
    bins = (confidence * 15).long().clamp(max=14)
    error = sum(
        float(
            (right[bins == b].float().mean() - confidence[bins == b].mean()).abs()
            * (bins == b).float().mean()
        )
        for b in bins.unique()
    )
    confusion = torch.bincount(
        labels * len(classes) + order[:, 0], minlength=len(classes) ** 2
    ).view(len(classes), -1)
    return Scores(
        count,
        float(right.float().mean()),
        float((order[:, :5] == labels.unsqueeze(1)).any(1).float().mean()),
        low,
        high,
        {
            name: float(right[labels == i].float().mean())
            for i, name in enumerate(classes)
            if bool((labels == i).any())
        },
        error,
        confusion.tolist(),
    )
