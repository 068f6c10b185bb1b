"""What `mae partial` found, as a table and as a picture: accuracies by row (x axis) and arm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchmae.disk import whole_file


class Curve(NamedTuple):
    """A published curve, to be drawn beside one's own: accuracies in % by row."""

    title: str
    values: Mapping[str, float]


# Figure 9: top-1 in % by blocks that were fine-tuned, read from the figure's labels; 24 are all.
FIGURE_9 = Curve(
    "the paper's Figure 9: ViT-L/16, ImageNet-1K",
    {
        "0": 73.5,
        "0.5": 79.1,
        "1": 81.0,
        "2": 83.1,
        "4": 84.2,
        "6": 84.4,
        "12": 84.6,
        "18": 84.7,
        "24": 84.9,
    },
)


def sweep_table(rows: Sequence[Mapping[str, Any]], row_title: str) -> str:
    """A line for each row, a column for each arm, in %.

    Args:
        rows: the rows of a sweep, see `torchmae.tasks.sweep.run.summarize`.
        row_title: what the rows differ in, such as "blocks fine-tuned".
    """
    images = rows[0]["images"]
    title = f"Accuracy of the last epoch in %, with its 95 % interval, {images} validation images"
    lines = [[row_title, *rows[0]["arms"]]]
    for row in rows:
        cells = [cell(found) + " *" * (name == row["best"]) for name, found in row["arms"].items()]
        lines.append([row["name"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["   ".join(x.rjust(width) for x, width in zip(line, widths)) for line in lines]
    chosen = ["* the best, chosen on these same images: that flatters it"] * bool(rows[0]["best"])
    return "\n".join([title, *text, *chosen])


def cell(found: Mapping[str, Any]) -> str:
    """The accuracy of an arm with its interval."""
    return "{:.1f} ({:.1f} to {:.1f})".format(
        *(100 * found[name] for name in ("top1", "low", "high"))
    )


def draw_sweep(
    rows: Sequence[Mapping[str, Any]], row_title: str, path: Path, beside: Curve
) -> None:
    """The accuracies with their 95 % intervals, of each row's best arm where one was chosen, and
    a published curve on axes of its own, since its rows are others.

    Args:
        rows: as for `sweep_table`.
        row_title: as for `sweep_table`.
        path: the picture.
        beside: the published curve.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    own, other = figure.subplots(1, 2)
    found = [row["arms"][row["best"] or next(iter(row["arms"]))] for row in rows]
    means, low, high = ([100 * arm[name] for arm in found] for name in ("top1", "low", "high"))
    errors = [[m - b for m, b in zip(means, low)], [t - m for m, t in zip(means, high)]]
    own.errorbar(range(len(rows)), means, yerr=errors, marker="o", capsize=3)
    own.set(title="your data (95 % intervals)", ylabel="accuracy of the last epoch in %")
    own.set_xticks(range(len(rows)), [row["name"] for row in rows])
    values = list(beside.values.values())
    other.plot(range(len(values)), values, marker="o", color="tab:gray")
    other.set_xticks(range(len(values)), list(beside.values))
    other.set(title=beside.title)
    for panel in (own, other):
        panel.set_xlabel(row_title)
        panel.grid(alpha=0.3)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110)
