"""Draws docs/speed.png from the measurements in bench/results: `python bench/chart.py`."""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS = "#1f6f8b", "#b9c4c9"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def bars(axis: Axes, rows: list[tuple[str, dict[str, float] | None, bool]]) -> None:
    """One bar a row: name, relative speed (None: the reference, 1.0), whether it is torchmae."""
    for place, (_, speed, ours) in enumerate(rows):
        middle = 1.0 if speed is None else speed["median"]
        axis.barh(place, middle, color=OURS if ours else THEIRS, height=0.7)
        if speed is not None:
            axis.plot([speed["least"], speed["most"]], [place, place], color="black", linewidth=1)
        axis.text(
            0.01,
            place,
            f" {middle:.2f}",
            va="center",
            fontsize=8,
            color="white" if ours else "black",
        )
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def steps(axis: Axes, precision: str) -> None:
    rows = load(f"step-vit_base-{precision}-2-cores.json")["models"]["vit_base"]["rows"]
    names = [row["name"].replace(", decoder heads of 64", "\nheads of 64") for row in rows]
    bars(
        axis, [(name, row["speed"], name.startswith("torchmae")) for name, row in zip(names, rows)]
    )
    axis.set_title(f"ViT-B/16 step on 2 CPU cores, {precision}\nspeed beside torchmae", fontsize=9)


def data(axis: Axes) -> None:
    rows = load("data-photos-native-2-cores.json")["paths"]
    bars(axis, [(row["name"], row["speed"], row["name"].startswith("torchmae")) for row in rows])
    axis.set_title("200 photos to crops, one core\nspeed beside PIL + torchvision", fontsize=9)


def table_2(axis: Axes) -> None:
    """What encoding only visible patches saves: operations, the paper's time, our measured time."""
    counted = load("wall-clock-counted.json")["models"]
    measured = load("wall-clock-vit_large-2-cores.json")["models"]
    names: list[str] = []
    place = 0
    for model, depth, index in (
        (model, depth, index) for model in counted for index, depth in ((1, 8), (2, 1))
    ):
        row = counted[model]["rows"][index]
        shown = [(row["fewer_operations"], OURS), (row["paper_speed"], THEIRS)]
        if model in measured:
            shown.append((measured[model]["rows"][index]["speed"]["median"], "#e08e45"))
        for k, (value, color) in enumerate(shown):
            axis.barh(place + 0.26 * (k - 1), value, height=0.24, color=color)
            axis.text(value, place + 0.26 * (k - 1), f" {value:.2f}", va="center", fontsize=7)
        short = model.replace("vit_", "ViT-").replace("large", "L").replace("huge", "H")
        names.append(f"{short}, decoder {depth}")
        place += 1
    for label, color in (
        ("fewer operations", OURS),
        ("paper, time", THEIRS),
        ("here, time", "#e08e45"),
    ):
        axis.barh(0, 0, color=color, label=label)
    axis.set_yticks(range(place), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 7)
    axis.legend(fontsize=7, loc="upper right", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(
        "no mask tokens in the encoder (Table 2)\ntimes faster than with them", fontsize=9
    )


def main() -> None:
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    steps(axes[0, 0], "fp32")
    steps(axes[0, 1], "bf16")
    data(axes[1, 0])
    table_2(axes[1, 1])
    figure.savefig(Path(__file__).parents[1] / "docs" / "speed.png", dpi=110)


if __name__ == "__main__":
    main()
