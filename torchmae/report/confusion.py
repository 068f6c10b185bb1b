"""The confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torchmae.disk import whole_file
from torchmae.errors import printable

LONGEST = 40  # characters of a class name that are drawn


def draw_confusion(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str = ""
) -> None:
    """Draws each row of a confusion matrix as shares of its true class.

    Args:
        confusion: counts, [true class][predicted class].
        classes: their names, shown up to 50; counts are shown up to 20 classes.
        path: the picture.
        title: above it.
    """
    from matplotlib.figure import Figure

    matrix = np.array(confusion, dtype=float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 3 + 0.35 * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title(printable(title), parse_math=False)
    if len(classes) <= 50:
        # A name is no formula: "$" would be one, and often a wrong one, which ends the drawing.
        names = [printable(name) for name in classes]
        names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
        axis.set_xticks(range(len(classes)), names, rotation=90, parse_math=False)
        axis.set_yticks(range(len(classes)), names, parse_math=False)
    if len(classes) <= 20:
        for row, column in np.argwhere(matrix > 0):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = f"{matrix[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(shown, label="share of the true class")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, bbox_inches="tight")
