"""The confusion matrix as a picture."""

from pathlib import Path

import numpy as np


def draw_confusion(
    confusion: list[list[int]], classes: tuple[str, ...], path: Path, title: str = ""
) -> None:
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
            axis.text(
                column,
                row,
                f"{matrix[row, column]:.0f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=8,
            )
    figure.colorbar(shown, label="share of the true class")
    figure.savefig(path, dpi=110, bbox_inches="tight")
