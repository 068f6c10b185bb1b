"""How good a classifier is: accuracies with an interval, each class, calibration, the confusion matrix as a picture."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


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


def scores(logits: Float[Tensor, "N classes"], labels: Int64[Tensor, "N"], classes: tuple[str, ...]) -> Scores:
    """The scores of logits against labels (numbers of classes)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    right = order[:, 0] == labels
    count = len(labels)
    low, high = interval(int(right.sum()), count)
    confidence = logits.softmax(1).amax(1)
    bins = (confidence * 15).long().clamp(max=14)
    error = sum(
        float((right[bins == b].float().mean() - confidence[bins == b].mean()).abs() * (bins == b).float().mean())
        for b in bins.unique()
    )
    confusion = torch.bincount(labels * len(classes) + order[:, 0], minlength=len(classes) ** 2).view(len(classes), -1)
    return Scores(
        count,
        float(right.float().mean()),
        float((order[:, :5] == labels.unsqueeze(1)).any(1).float().mean()),
        low,
        high,
        {name: float(right[labels == i].float().mean()) for i, name in enumerate(classes) if bool((labels == i).any())},
        error,
        confusion.tolist(),
    )


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def draw_confusion(confusion: list[list[int]], classes: tuple[str, ...], path: Path, title: str = "") -> None:
    """The confusion matrix, each row as shares of its true class."""
    from matplotlib.figure import Figure

    matrix = np.array(confusion, dtype=float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 3 + 0.35 * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.set(xlabel="guess", ylabel="true class", title=title)
    if len(classes) <= 50:
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
    if len(classes) <= 20:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(shown, label="share of the true class")
    figure.savefig(path, dpi=110, bbox_inches="tight")
