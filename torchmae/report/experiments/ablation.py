"""What `mae ablate` found of a study, as a table and as a picture beside the paper's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

from torchmae.disk import whole_file

DASHES = ("--", ":", "-.", (0, (1, 4)))  # of baselines; more than four are in the table alone
LABEL = 32  # letters at most beside points of the same cost
WORDS = ("reproduced", "not reproduced", "not decided")


def ablation_table(study: Mapping[str, Any]) -> str:
    """A line for each point and baseline, and whether the paper's orderings are seen; numbers in %.

    Args:
        study: see `torchmae.tasks.ablate.results.summarize`.
    """
    rows, columns = study["rows"], study["columns"]
    seeds = min(row["seeds"] for row in rows)
    paper = list(dict.fromkeys(name for row in rows for name in row["paper"]))
    beside = [f"paper, {name}" for name in paper]
    lines = [[study["axis"], *columns, "min", "images/s", *beside]]
    for row in (*rows, *study["baselines"]):
        costs = zip((row["minutes"], row["images_per_s"]), (".1f", ".0f"))
        speed = ["" if cost is None else f"{cost:{form}}" for cost, form in costs]
        published = [f"{row['paper'][name]:.1f}" if name in row["paper"] else "" for name in paper]
        cells = [cell(row["measures"].get(column)) for column in columns]
        lines.append([row["label"], *cells, *speed, *published])
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = [
        "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    title = f"{study['title']}. Accuracy in %, one seed"
    if seeds > 1:
        title = (
            f"{study['title']}. Accuracy in %, mean ± std over {seeds} seeds; in brackets the "
            f"paired difference to {study['reference']}, 95 % interval"
        )
    orderings = ordering_lines(study["orderings"]) if paper else []
    return "\n".join([title, *table, *not_above(study), *orderings])


def not_above(study: Mapping[str, Any]) -> list[str]:
    """A line for each measure by which a baseline is as good as the best point."""
    lines = []
    for column in study["columns"]:
        means = [
            row["measures"][column]["mean"] for row in study["rows"] if column in row["measures"]
        ]
        above = [
            row["label"]
            for row in study["baselines"]
            if column in row["measures"] and row["measures"][column]["mean"] >= max(means)
        ]
        if above:
            lines.append(
                f"By {column} no point is above {' and '.join(above)}: their differences say "
                "little about learning"
            )
    return lines


def cell(found: Mapping[str, Any] | None) -> str:
    """Mean, std and difference of a measure."""
    if found is None:
        return "-"
    text = f"{100 * found['mean']:.1f}"
    if found["std"] is not None:
        text += f" ± {100 * found['std']:.1f}"
    if found["difference"] is not None:
        mean, low, high = (100 * found["difference"][name] for name in ("mean", "low", "high"))
        text += f" ({mean:+.1f}: {low:+.1f} to {high:+.1f})"
    return text


def ordering_lines(orderings: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A line for each measure that has pairs which clearly differ in the paper."""
    lines = []
    if not any(orderings.values()):
        return [
            "No ordering of the paper to compare with: that takes three seeds, points that differ "
            "by half a point in the paper, and its measure (finetune or few-label for fine-tuned; "
            "knn, linear or attentive for the linear probe)"
        ]
    for column, pairs in orderings.items():
        counts = Counter(pair["verdict"] for pair in pairs)
        if pairs:
            words = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
            plural = "s" * (len(pairs) > 1)
            lines.append(f"{len(pairs)} ordering{plural} of the paper, by {column}: {words}")
    return lines


def draw_ablation(study: Mapping[str, Any], path: Path) -> None:
    """Accuracies against what is varied, against FLOPs where these differ, and the paper's where it
    has some, side by side.

    Args:
        study: as for `ablation_table`.
        path: the picture.
    """
    from matplotlib.figure import Figure

    rows = study["rows"]
    costs = {round(row["flops"] / min(row["flops"] for row in rows), 1) for row in rows}
    panels = 1 + (len(costs) > 1) + any(row["paper"] for row in rows)
    numeric = all(row["x"] is not None for row in rows)
    figure = Figure(figsize=(1 + 4.4 * panels, 4 if numeric else 4.8), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    draw_own(axes[0], study, numeric)
    if len(costs) > 1:
        draw_compute(axes[1], study)
    if any(row["paper"] for row in rows):
        draw_paper(axes[-1], study, numeric)
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.margins(y=0.12)
        panel.legend(fontsize=8)
    figure.suptitle(f"{study['title']}\n", fontsize=11)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120)


def draw_own(axis: Any, study: Mapping[str, Any], numeric: bool) -> None:
    """The measured accuracies against what is varied; of baselines, lines across."""
    rows = study["rows"]
    for column in study["columns"]:
        found = [(p, row) for p, row in places(rows, numeric) if column in row["measures"]]
        means = [100 * row["measures"][column]["mean"] for _, row in found]
        stds = [100 * (row["measures"][column]["std"] or 0.0) for _, row in found]
        line = "-" if numeric else "none"  # nothing lies between two words
        x = [place for place, _ in found]
        axis.errorbar(x, means, stds, label=column, marker="o", ls=line, capsize=3)
    for row, dashes in zip(study["baselines"], DASHES):
        shown = [column for column in study["columns"] if column in row["measures"]]
        for column in shown:
            color = f"C{study['columns'].index(column)}"
            axis.axhline(100 * row["measures"][column]["mean"], color=color, ls=dashes, lw=1)
        if shown:
            axis.plot([], [], color="tab:gray", ls=dashes, lw=1, label=row["label"])
    seeds = min(row["seeds"] for row in rows)
    images = next(iter(rows[0]["measures"].values()))["images"]
    spread = f"mean ± std of {seeds} seeds" if seeds > 1 else "one seed"
    axis.set(title=f"yours: {spread}, {images} images", ylabel="accuracy in %")
    name_places(axis, study, numeric)


def draw_compute(axis: Any, study: Mapping[str, Any]) -> None:
    """The measured accuracies against the operations of a training."""
    rows = study["rows"]
    for column in study["columns"]:
        found = [row for row in rows if column in row["measures"]]
        means = [100 * row["measures"][column]["mean"] for row in found]
        axis.scatter([row["flops"] for row in found], means, label=column, s=18)
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:  # points of the same cost have one label, at the upper edge
        alike.setdefault(f"{row['flops']:.2g}", []).append(row)
    for group in alike.values():
        axis.annotate(
            one_label([row["label"] for row in group]),
            (group[0]["flops"], 0.98),
            xytext=(-3, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            fontsize=7,
            ha="right",
            va="top",
            color="tab:gray",
        )
    axis.set(title="yours, against compute", xlabel="FLOPs of a training")


def one_label(labels: Sequence[str]) -> str:
    """The labels of several points, or the first and how many others there are."""
    together, more = " / ".join(labels), ""
    if len(together) > LABEL and len(labels) > 1:
        together, more = labels[0], f" and {len(labels) - 1} more"
    return shorten(together, LABEL - len(more), placeholder=" …") + more


def draw_paper(axis: Any, study: Mapping[str, Any], numeric: bool) -> None:
    """The paper's accuracies."""
    rows = study["rows"]
    for name in dict.fromkeys(name for row in rows for name in row["paper"]):
        found = [
            (p, row["paper"][name]) for p, row in places(rows, numeric) if name in row["paper"]
        ]
        axis.plot(*zip(*found), marker="s", ls="-" if numeric else "none", label=name)
    axis.set(title="the paper: ViT-L/16, ImageNet-1K")
    name_places(axis, study, numeric)


def places(
    rows: Sequence[Mapping[str, Any]], numeric: bool
) -> list[tuple[float, Mapping[str, Any]]]:
    """Each row with its place on the axis."""
    return [(row["x"] if numeric else float(i), row) for i, row in enumerate(rows)]


def name_places(axis: Any, study: Mapping[str, Any], numeric: bool) -> None:
    """The axis of what is varied."""
    rows = study["rows"]
    axis.set_xlabel(study["axis"])
    if not numeric or any(len(row["label"]) > 8 for row in rows):
        marks = [place for place, _ in places(rows, numeric)]
        labels = [fill(row["label"], LABEL // 2) for row in rows]
        axis.set_xticks(marks, labels, rotation=25, ha="right")
