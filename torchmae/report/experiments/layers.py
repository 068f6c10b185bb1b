"""What `--layer all` found, as a table and as a picture: accuracy and effective rank by block."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from torchmae.disk import whole_file
from torchmae.errors import printable

FLATTERS = "the best, chosen on these same images: that flatters it"


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The block with the highest accuracy; of equal ones the first."""
    return max(rows, key=lambda row: row["accuracy"])


def layers_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each block.

    Args:
        rows: what `torchmae.eval.layers.measure_layers` returns.
    """
    best = best_of(rows)
    lines = ["block   accuracy in % (95 % interval)   RankMe"]
    for row in rows:
        accuracy, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
        mark = "*" if row is best else " "
        interval = f"({low:.1f} to {high:.1f})"
        lines.append(
            f"{row['block']:>5}   {accuracy:5.1f} {mark} {interval:<21}   {row['rankme']:6.1f}"
        )
    return "\n".join([*lines, f"* {FLATTERS}"])


def report_layers(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    accuracies: Mapping[str, Mapping[str, float]],
    path: Path,
) -> str:
    """Draws the picture; returns the table and where the picture is.

    Args:
        rows: as for `layers_table`.
        title: what was measured on what.
        accuracies: of the features, then of what they are measured beside, by name.
        path: the picture.
    """
    beside = {name: found["accuracy"] for name, found in list(accuracies.items())[1:]}
    beside.pop("commonest class", None)  # far below, where it would press the others together
    draw_layers(rows, title, beside, path)
    return f"{layers_table(rows)}\nDrawn: {path}"


def draw_layers(
    rows: Sequence[Mapping[str, Any]], title: str, beside: Mapping[str, float], path: Path
) -> None:
    """Accuracy with its 95 % interval against the block, and effective rank.

    Args:
        rows: as for `layers_table`.
        title: above both.
        beside: accuracies in 0..1 that do not depend on the block, by name: lines across.
        path: the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    blocks, best = [row["block"] for row in rows], best_of(rows)
    means, low, high = ([100 * row[name] for row in rows] for name in ("accuracy", "low", "high"))
    errors = [[m - b for m, b in zip(means, low)], [t - m for m, t in zip(means, high)]]
    left.errorbar(blocks, means, yerr=errors, marker="o", capsize=3, label="features of the block")
    place = (best["block"], 100 * best["accuracy"])
    left.plot(
        *place, "*", color="tab:red", markersize=12, zorder=3, label=f"block {best['block']}: best"
    )
    styles = ("dashed", "dotted", "dashdot")
    for style, (name, value) in zip(styles, beside.items()):
        left.axhline(100 * value, color="black", linestyle=style, linewidth=1, label=name)
    left.set(title="accuracy in %, 95 % intervals")
    left.legend(fontsize=8)
    right.plot(blocks, [row["rankme"] for row in rows], marker="o", color="tab:green")
    right.set(title="RankMe: effective rank of the training features")
    right.margins(y=0.1)
    right.set_ylim(bottom=0)
    for panel in (left, right):
        panel.set_xlabel("block")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    figure.suptitle(fill(printable(title), 100), fontsize=11)
    figure.supxlabel(f"The star is {FLATTERS}.", fontsize=9)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110)
