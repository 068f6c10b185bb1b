"""What `mae ablate` found of a study, as a table and as a picture beside the paper's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmae.disk import whole_file

WORDS = ("reproduced", "not reproduced", "not decided")


def ablation_table(study: Mapping[str, Any]) -> str:
    """A line for each point, and whether the paper's orderings are seen; numbers in %.

    Args:
        study: see `torchmae.tasks.ablate.results.summarize`.
    """
    rows, columns = study["rows"], study["columns"]
    seeds = min(row["seeds"] for row in rows)
    paper = list(dict.fromkeys(name for row in rows for name in row["paper"]))
    beside = [f"paper, {name}" for name in paper]
    lines = [[study["axis"], *columns, "min", "images/s", *beside]]
    for row in rows:
        speed = [f"{row['minutes']:.1f}", f"{row['images_per_s']:.0f}"]
        published = [f"{row['paper'][name]:.1f}" if name in row["paper"] else "" for name in paper]
        cells = [cell(row["measures"].get(column)) for column in columns]
        lines.append([row["label"], *cells, *speed, *published])
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = [
        "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    title = f"{study['title']}. Accuracy in %, mean ± std over {seeds} seed{'s' * (seeds > 1)}"
    if study["reference"] is not None and seeds > 1:
        title += f"; in brackets the paired difference to {study['reference']}, 95 % interval"
    return "\n".join([title, *table, *ordering_lines(study["orderings"])])


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
    for column, pairs in orderings.items():
        counts = Counter(pair["verdict"] for pair in pairs)
        if pairs:
            words = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
            lines.append(f"{len(pairs)} orderings of the paper, by {column}: {words}")
    return lines


def draw_ablation(study: Mapping[str, Any], path: Path) -> None:
    """Accuracies against what is varied, against FLOPs, and the paper's, side by side.

    Args:
        study: as for `ablation_table`.
        path: the picture.
    """
    from matplotlib.figure import Figure

    rows = study["rows"]
    numeric = all(row["x"] is not None for row in rows)
    height = 3.8 if numeric else 4.6
    figure = Figure(figsize=(13, height), layout="constrained")
    own, compute, paper = figure.subplots(1, 3)
    places = [row["x"] for row in rows] if numeric else list(range(len(rows)))
    for column in study["columns"]:
        found = [(place, row) for place, row in zip(places, rows) if column in row["measures"]]
        means = [100 * row["measures"][column]["mean"] for _, row in found]
        stds = [100 * (row["measures"][column]["std"] or 0.0) for _, row in found]
        style: dict[str, Any] = {"marker": "o", "ls": "-" if numeric else ":", "capsize": 3}
        drawn = own.errorbar([place for place, _ in found], means, stds, label=column, **style)
        flops = [row["flops"] for _, row in found]
        compute.scatter(flops, means, color=drawn.lines[0].get_color(), s=18)
    for row in rows:
        top = max((m["mean"] for m in row["measures"].values()), default=None)
        if top is not None:
            compute.annotate(
                row["label"],
                (row["flops"], 100 * top),
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=7,
                ha="center",
            )
    draw_paper(paper, rows, places, numeric)
    seeds = min(row["seeds"] for row in rows)
    images = next(iter(rows[0]["measures"].values()))["images"]
    own.set(title=f"yours: mean ± std of {seeds} seeds, {images} images", ylabel="accuracy in %")
    compute.set(title="yours, against compute", xlabel="FLOPs of a training")
    paper.set(title="the paper: ViT-L/16, ImageNet-1K, 800 epochs")
    if any(len(row["label"]) > 8 for row in rows) or not numeric:
        for panel in (own, paper):
            panel.set_xticks(places, [row["label"] for row in rows], rotation=20, ha="right")
    for panel in (own, compute, paper):
        panel.grid(alpha=0.3)
        panel.margins(y=0.12)
    for panel in (own, paper):
        panel.set_xlabel(study["axis"])
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=8)
    figure.suptitle(study["title"])
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120)


def draw_paper(
    axis: Any, rows: Sequence[Mapping[str, Any]], places: Sequence[float], numeric: bool
) -> None:
    """The paper's accuracies."""
    names = list(dict.fromkeys(name for row in rows for name in row["paper"]))
    for name in names:
        found = [(p, row["paper"][name]) for p, row in zip(places, rows) if name in row["paper"]]
        axis.plot(*zip(*found), marker="s", ls="-" if numeric else ":", label=name)
    if not names:
        axis.text(0.5, 0.5, "not in the paper", ha="center", transform=axis.transAxes)
