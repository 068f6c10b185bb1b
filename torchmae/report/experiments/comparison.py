"""What `mae compare` found, as a table, in words and as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmae.disk import whole_file

COMMONEST = "commonest class"  # drawn as a line

# Columns of the table, and the names in results.json.
COLUMNS = {
    "accuracy": "top1",
    "balanced": "balanced_accuracy",
    "macro F1": "macro_f1",
    "AUC": "auc",
}


def comparison_table(
    rows: Sequence[Mapping[str, Any]], row_title: str, search: str, measures: Mapping[str, str]
) -> str:
    """A table and a verdict for each row of a comparison; numbers in %.

    Args:
        rows: see `torchmae.tasks.sweep.verdict.summarize_comparison`.
        row_title: what the rows differ in, such as "labels a class".
        search: how the settings of the trainings were chosen.
        measures: what is measured, in words.
    """
    seeds, images = rows[0]["seeds"], rows[0]["images"]
    sides = next((row["search"] for row in rows if row["search"]), None)
    used = dict.fromkeys(row["measure"] for row in rows)
    several = len(used) > 1 or "few-label" not in used
    lines = [f"In %, mean ± std over {seeds} seeds, {images} validation images."]
    lines += [f"{name}: {measures[name]}." for name in used]
    if sides:
        lines.append(f"Settings of {' and '.join(sides)}: {search}.")
    if any("frozen features" in row["arms"] for row in rows):
        lines.append(
            "Frozen features, untrained encoder and raw pixels: logistic regression, its penalty "
            "by cross-validation on the training labels."
        )
    for row in rows:
        lines += ["", *row_lines(row, titled(row, row_title, several))]
    return "\n".join(lines)


def titled(row: Mapping[str, Any], row_title: str, several: bool) -> str:
    """The name of a row, with its measure where there are several."""
    return f"{row['measure']}, " * several + f"{row['name']} {row_title}"


def row_lines(row: Mapping[str, Any], title: str) -> list[str]:
    """The table of one row, what was chosen for it, and the verdict on it."""
    first = next(iter(row["arms"]))
    cells = [[title, *COLUMNS, f"{first} minus it (95 % interval)"]]
    for name, arm in row["arms"].items():
        scores = [spread(arm[metric]) for metric in COLUMNS.values()]
        difference = row["differences"].get(f"{first} - {name}")
        cells.append([name, *scores, difference_cell(difference) if difference else ""])
    widths = [max(map(len, column)) for column in zip(*cells)]
    text = [
        "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]
    for arm, found in row["search"].items():
        if found["chosen"]:
            factor, level = found["chosen"]["lr_scale"], found["chosen"]["augment"]
            augment = f", augment {level}" if level else ""
            text.append(f"{arm}: learning rate x{factor:.2g}{augment}")
    return [*text, f"{row['claim']} {row['verdict']}: {'; '.join(row['reasons'])}."]


def spread(values: Sequence[float | None]) -> str:
    """Mean and std in %; "-" where a value is missing."""
    there = [100 * value for value in values if value is not None]
    if len(there) < len(values):
        return "-"
    return f"{statistics.mean(there):.1f} ± {statistics.stdev(there):.1f}"


def difference_cell(found: Mapping[str, float]) -> str:
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def draw_comparison(rows: Sequence[Mapping[str, Any]], row_title: str, path: Path) -> None:
    """A panel for each measure, in it a group of bars for each row: accuracies with 95 % intervals,
    and a line for always saying the commonest class.

    Args:
        rows: as for `comparison_table`.
        row_title: as for `comparison_table`.
        path: the picture.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault(row["measure"], []).append(row)
    names = dict.fromkeys(name for row in rows for name in row["arms"] if name != COMMONEST)
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    idle = {n for row in rows for n, a in row["arms"].items() if a.get("learned_nothing")}
    figure = Figure(figsize=(max(6.0, 2 + 2.6 * len(rows)), 4.4), layout="constrained")
    axes = figure.subplots(
        1, len(panels), sharey=True, squeeze=False, width_ratios=[len(p) for p in panels.values()]
    )[0]
    for axis, (measure, panel) in zip(axes, panels.items()):
        draw_panel(axis, panel, colors)
        axis.set_xticks(
            range(len(panel)),
            [
                f"{row['name']} {row_title}\n{row['claim'].split()[0].lower()} {row['verdict']}"
                for row in panel
            ],
        )
        if len(panels) > 1:
            axis.set_title(measure)
    axes[0].set(ylabel=f"accuracy in % on {rows[0]['images']} images", ylim=(0, 100))
    figure.suptitle(f"Mean of {rows[0]['seeds']} seeds, 95 % intervals", fontsize="medium")
    shown = {text: handle for a in axes for handle, text in zip(*a.get_legend_handles_labels())}
    labels = [f"{name} (has learned nothing)" if name in idle else name for name in shown]
    figure.legend(shown.values(), labels, loc="outside lower center", ncols=3, fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130)


def draw_panel(axis: Any, rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> None:
    """The bars of one measure, in the color of each arm."""
    bars = [name for name in colors if any(name in row["arms"] for row in rows)]
    width = 0.8 / len(bars)
    for number, name in enumerate(bars):
        places = [place + width * (number - (len(bars) - 1) / 2) for place in range(len(rows))]
        arms = [row["arms"][name] for row in rows]
        means = [100 * arm["mean"] for arm in arms]
        error = [100 * (arm["high"] - arm["mean"]) for arm in arms]
        made = axis.bar(places, means, width, yerr=error, capsize=3, label=name, color=colors[name])
        for bar, mean in zip(made, means):  # at the foot, where no interval crosses it
            axis.text(bar.get_x() + width / 2, 1, f"{mean:.0f}", ha="center", fontsize=8)
    for place, row in enumerate(rows):
        level = 100 * row["arms"][COMMONEST]["mean"]
        label = "" if place else "always the commonest class"
        axis.hlines(level, place - 0.45, place + 0.45, "black", "dashed", label=label)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
