"""What `mae compare` found, as a table, in words and as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmae.disk import whole_file

# Columns of the table, and the names in results.json.
COLUMNS = {
    "accuracy": "top1",
    "balanced": "balanced_accuracy",
    "macro F1": "macro_f1",
    "AUC": "auc",
}


def comparison_table(rows: Sequence[Mapping[str, Any]], row_title: str, search: str) -> str:
    """A table and a verdict for each row of a comparison; numbers in %.

    Args:
        rows: see `torchmae.tasks.sweep.verdict.summarize_comparison`.
        row_title: what the rows differ in, such as "labels a class".
        search: how the settings of the trainings were chosen.
    """
    seeds, images = rows[0]["seeds"], rows[0]["images"]
    lines = [
        f"In %, last epoch, mean ± std over {seeds} seeds, {images} validation images.",
        f"Settings of pre-trained and from scratch: {search}.",
        "Frozen features, untrained encoder and raw pixels: logistic regression, its penalty by "
        "cross-validation on the training labels.",
    ]
    for row in rows:
        lines += ["", *row_lines(row, f"{row['name']} {row_title}")]
    return "\n".join(lines)


def row_lines(row: Mapping[str, Any], title: str) -> list[str]:
    """The table of one row, what was chosen for it, and the verdict on it."""
    cells = [[title, *COLUMNS, "pre-trained minus it (95 % interval)"]]
    for name, arm in row["arms"].items():
        scores = [spread(arm[metric]) for metric in COLUMNS.values()]
        difference = row["differences"].get(f"pre-trained - {name}")
        cells.append([name, *scores, difference_cell(difference) if difference else ""])
    widths = [max(map(len, column)) for column in zip(*cells)]
    text = [
        "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]
    for arm, found in row["search"].items():
        if found["chosen"]:
            factor, level = found["chosen"]["lr_scale"], found["chosen"]["augment"]
            text.append(f"{arm}: learning rate x{factor:.2g}, augment {level}")
    return [*text, f"Gain of pre-training {row['verdict']}: {'; '.join(row['reasons'])}."]


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
    """A group of bars for each row: accuracies with 95 % intervals, and a line for always saying
    the commonest class.

    Args:
        rows: as for `comparison_table`.
        row_title: as for `comparison_table`.
        path: the picture.
    """
    from matplotlib.figure import Figure

    bars = [name for name in rows[0]["arms"] if name != "commonest class"]
    width = 0.8 / len(bars)
    figure = Figure(figsize=(max(6.0, 2 + 2.6 * len(rows)), 4.4), layout="constrained")
    axis = figure.subplots()
    for number, name in enumerate(bars):
        places = [place + width * (number - (len(bars) - 1) / 2) for place in range(len(rows))]
        arms = [row["arms"][name] for row in rows]
        means = [100 * arm["mean"] for arm in arms]
        error = [100 * (arm["high"] - arm["mean"]) for arm in arms]
        idle = any(arm.get("learned_nothing") for arm in arms)
        label = f"{name} (has learned nothing)" if idle else name
        made = axis.bar(places, means, width, yerr=error, capsize=3, label=label)
        for bar, mean in zip(made, means):  # at the foot, where no interval crosses it
            axis.text(bar.get_x() + width / 2, 1, f"{mean:.0f}", ha="center", fontsize=8)
    for place, row in enumerate(rows):
        level = 100 * row["arms"]["commonest class"]["mean"]
        label = "" if place else "always the commonest class"
        axis.hlines(level, place - 0.45, place + 0.45, "black", "dashed", label=label)
    axis.set_xticks(
        range(len(rows)), [f"{row['name']} {row_title}\ngain {row['verdict']}" for row in rows]
    )
    axis.set(
        ylabel=f"accuracy in % on {rows[0]['images']} images",
        title=f"Mean of {rows[0]['seeds']} seeds, 95 % intervals",
        ylim=(0, 100),
    )
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130)
