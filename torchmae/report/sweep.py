"""What a sweep found, as a table and as a picture: accuracies by row (x axis) and arm (line)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchmae.disk import whole_file


class Curve(NamedTuple):
    """A published curve, to be drawn beside one's own: accuracies in % by row."""

    title: str
    values: Mapping[str, float]


def sweep_table(rows: Sequence[Mapping[str, Any]], row_title: str) -> str:
    """A line for each row, a column for each arm and each difference to the baseline, in %.

    Args:
        rows: the rows of a sweep, see `torchmae.tasks.sweep.run.summarize`.
        row_title: what the rows differ in, such as "labels a class".
    """
    arms, differences = rows[0]["arms"], rows[0]["differences"]
    seeds = len(next(iter(arms.values()))["top1"])
    spread = f"mean ± std over {seeds} seeds" if seeds > 1 else "with its 95 % interval"
    title = f"Accuracy of the last epoch in %, {spread}, {rows[0]['images']} validation images"
    lines = [[row_title, *arms, *(f"{name} (95 % interval)" for name in differences)]]
    for row in rows:
        cells = [cell(found) + " *" * (name == row["best"]) for name, found in row["arms"].items()]
        lines.append([row["name"], *cells, *map(difference_cell, row["differences"].values())])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["   ".join(x.rjust(width) for x, width in zip(line, widths)) for line in lines]
    chosen = ["* the best, chosen on these same images: that flatters it"] * bool(rows[0]["best"])
    return "\n".join([title, *text, *chosen])


def cell(found: Mapping[str, Any]) -> str:
    """The accuracy of an arm: mean and std of several seeds, or the interval of a single one."""
    if found["std"] is not None:
        return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"
    return "{:.1f} ({:.1f} to {:.1f})".format(
        *(100 * value for value in (found["mean"], found["low"], found["high"]))
    )


def difference_cell(found: Mapping[str, float]) -> str:
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    unclear = "" if low > 0 or high < 0 else ", not clear: it includes zero"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){unclear}"


def draw_sweep(
    rows: Sequence[Mapping[str, Any]], row_title: str, path: Path, beside: Curve | None = None
) -> None:
    """A line for each arm, or the best arm of each row alone where one was chosen.

    Several seeds are points around their mean; a single one has its 95 % interval. A published
    curve gets axes of its own, since its rows are others.

    Args:
        rows: as for `sweep_table`.
        row_title: as for `sweep_table`.
        path: the picture.
        beside: the published curve.
    """
    from matplotlib.figure import Figure

    panels = 1 if beside is None else 2
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    (axis, *others) = figure.subplots(1, panels, squeeze=False)[0]
    best = bool(rows[0]["best"])
    for name in ["best"] if best else rows[0]["arms"]:
        found = [row["arms"][row["best"] if best else name] for row in rows]
        means = [100 * arm["mean"] for arm in found]
        if found[0]["std"] is None:
            below = [100 * (arm["mean"] - arm["low"]) for arm in found]
            above = [100 * (arm["high"] - arm["mean"]) for arm in found]
            axis.errorbar(
                range(len(rows)), means, yerr=[below, above], marker="o", capsize=3, label=name
            )
            continue
        (line,) = axis.plot(range(len(rows)), means, label=name)
        for place, arm in enumerate(found):
            points = [100 * value for value in arm["top1"]]
            axis.plot([place] * len(points), points, "o", color=line.get_color(), alpha=0.5)
    seeds = len(found[0]["top1"])
    title = f"your data ({f'{seeds} seeds' if seeds > 1 else '95 % intervals'})"
    axis.set(title=title, ylabel="accuracy of the last epoch in %")
    axis.set_xticks(range(len(rows)), [row["name"] for row in rows])
    if len(axis.lines) > 1 and not best and len(rows[0]["arms"]) > 1:
        axis.legend()
    if beside is not None:
        values = list(beside.values.values())
        others[0].plot(range(len(values)), values, marker="o", color="tab:gray")
        others[0].set_xticks(range(len(values)), list(beside.values))
        others[0].set(title=beside.title)
    for panel in (axis, *others):
        panel.set_xlabel(row_title)
        panel.grid(alpha=0.3)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110)
