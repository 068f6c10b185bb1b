"""How good class predictions are: accuracy with its interval, calibration, confusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from torchmae.eval.intervals import wilson_interval


@dataclass(frozen=True)
class Scores:
    """The scores of a classifier on labelled images; accuracies and errors are within 0..1.

    Args:
        count: the number of images.
        top1: accuracy.
        top5: how often the true class is among the five most probable; None where there are no
            more than five to choose from.
        low: lower end of the 95 % interval of top1 (Wilson).
        high: its upper end.
        balanced_accuracy: the mean of the accuracies of the classes that occur.
        macro_f1: the mean of their F1 scores.
        auc: the mean over them of the area under the ROC curve, one class against the rest; None
            where a single class occurs.
        per_class: accuracy of each class that occurs, by name.
        calibration_error: expected calibration error, 15 bins of confidence (Guo et al. 2017).
        confusion: counts, [true class][predicted class].
        calibration: of each bin of confidence that has images their number, their mean confidence
            and their accuracy.
    """

    count: int
    top1: float
    top5: float | None
    low: float
    high: float
    balanced_accuracy: float
    macro_f1: float
    auc: float | None
    per_class: dict[str, float]
    calibration_error: float
    confusion: list[list[int]]
    calibration: list["Bin"]

    def summary(self) -> dict[str, Any]:
        """The single numbers, for results.json; no top5 where it says nothing."""
        found = {name: value for name, value in vars(self).items() if name not in DETAILS}
        return {name: value for name, value in found.items() if value is not None}

    def detail(self, of: str, classes: Sequence[str]) -> dict[str, Any]:
        """The others, for classes.json."""
        return {
            "of": of,
            "classes": list(classes),
            "confusion": nonzero(self.confusion),
            "calibration": self.calibration,
        }


def nonzero(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """What is not 0 of a confusion matrix, as (true class, predicted class, count)."""
    return [
        (i, j, count) for i, row in enumerate(confusion) for j, count in enumerate(row) if count
    ]


DETAILS = ("confusion", "calibration")
BINS = 15  # of confidence (Guo et al. 2017)

Bin = tuple[int, float, float]
"""How many predictions have about this confidence, its mean, and the share of them that is
right."""


def sums_by_confidence(
    confidence: Float[Tensor, " N"], right: Bool[Tensor, " N"]
) -> Float64[Tensor, "3 bins"]:
    """For each bin of confidence: predictions, the sum of their confidences, how many are right.
    Those of several sets are added."""
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    weights = (torch.ones_like(confidence), confidence, right)
    # Of nothing, bincount makes integers.
    sums = [torch.bincount(place, weight.double(), BINS).double() for weight in weights]
    return torch.stack(sums)


def bins_of(sums: Float64[Tensor, "3 bins"]) -> list[Bin]:
    """The bins that have predictions."""
    return [
        (int(count), float(sure / count), float(right / count))
        for count, sure, right in sums.T.tolist()
        if count
    ]


def calibration_error(sums: Float64[Tensor, "3 bins"]) -> float:
    """The mean distance of confidence and accuracy, by bins (Guo et al. 2017)."""
    count, sure, right = sums
    return float((sure - right).abs().sum() / count.sum())


def scores(
    logits: Float[Tensor, "N classes"], labels: Int64[Tensor, " N"], classes: tuple[str, ...]
) -> Scores:
    """The scores of logits.

    Args:
        logits: float32 on the CPU; a class with -inf is never predicted.
        labels: the true classes, as numbers of `classes`.
        classes: the names, in the order of the logits.
    """
    order = logits.argsort(dim=1, descending=True, stable=True)
    right = order[:, 0] == labels
    count = len(labels)
    low, high = wilson_interval(int(right.sum()), count)
    sums = sums_by_confidence(logits.softmax(1).amax(1), right)
    calibration = bins_of(sums)
    among = int(logits.isfinite().any(0).sum())  # classes that can be predicted at all
    in_five = (order[:, :5] == labels.unsqueeze(1)).any(1)
    pairs = labels * len(classes) + order[:, 0]
    confusion = torch.bincount(pairs, minlength=len(classes) ** 2).view(len(classes), -1)
    hits, occurring = confusion.diag(), confusion.sum(1)
    there = occurring > 0
    recall = (hits / occurring)[there]
    f1 = (2 * hits / (occurring + confusion.sum(0)))[there]
    return Scores(
        count=count,
        top1=float(right.float().mean()),
        top5=float(in_five.float().mean()) if among > 5 else None,
        low=low,
        high=high,
        balanced_accuracy=float(recall.mean()),
        macro_f1=float(f1.mean()),
        auc=macro_auc(logits, labels),
        per_class={
            name: float(right[labels == i].float().mean())
            for i, name in enumerate(classes)
            if bool((labels == i).any())
        },
        calibration_error=calibration_error(sums),
        confusion=confusion.tolist(),
        calibration=calibration,
    )


def macro_auc(logits: Float[Tensor, "N classes"], labels: Int64[Tensor, " N"]) -> float | None:
    """The area under the ROC curve of each class against the rest, by the softmax of logits.

    That is how often an image of the class has a higher probability than one of another class,
    where a tie counts half. Returns the mean over the classes that occur; None for a single class.
    """
    occurring = labels.unique()
    if len(occurring) < 2:
        return None
    areas = []
    for i in occurring.tolist():
        # mean ranks, from 1: images with the same probability share theirs
        _, place, ties = (
            logits.double().softmax(1)[:, i].unique(return_inverse=True, return_counts=True)
        )
        rank = (ties.cumsum(0) - (ties - 1) / 2)[place]
        is_class = labels == i
        count, others = int(is_class.sum()), int((~is_class).sum())
        above = float(rank[is_class].sum()) - count * (count + 1) / 2
        areas.append(above / (count * others))
    return sum(areas) / len(areas)


def accuracy(guesses: Int64[Tensor, " N"], truth: Int64[Tensor, " N"]) -> dict[str, float]:
    """The accuracy of predicted classes, "accuracy", with its 95 % interval, "low" and "high"."""
    right = int((guesses == truth).sum())
    low, high = wilson_interval(right, len(truth))
    return {"accuracy": right / len(truth), "low": low, "high": high}
