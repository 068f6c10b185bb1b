"""What `mae evaluate` found on corrupted images, as a table and as pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from torchmae.data.corruptions import STRENGTHS, VARIANTS
from torchmae.disk import whole_file
from torchmae.report.sheet import sheet

SHOWN_STRENGTH = 3


def corruption_table(found: Mapping[str, Any]) -> str:
    """Accuracies in %: a line for each corruption, a column for each strength.

    Args:
        found: what `torchmae.eval.robustness.means` returns; "top1" of the clean images and the
            corruption errors ("ce"), if known.
    """
    rows = {
        name.replace("_", " "): [*one["accuracy"], one["mean"]]
        for name, one in found["corruptions"].items()
    }
    columns = [*zip(*rows.values())]
    rows["mean"] = [float(np.mean(column)) for column in columns]
    lines = [["accuracy in %, by strength", *map(str, STRENGTHS), "mean"]]
    if "top1" in found:
        lines.append(["clean", *[""] * len(STRENGTHS), f"{100 * found['top1']:.1f}"])
    lines += [[name, *(f"{100 * share:.1f}" for share in shares)] for name, shares in rows.items()]
    if "mce" in found:
        errors = [*(one["ce"] for one in found["corruptions"].values()), found["mce"]]
        for line, cell in zip(lines, ["CE", *(f"{100 * error:.1f}" for error in errors)]):
            line.append(cell)
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def draw_corruptions(found: Mapping[str, Any], path: Path, title: str) -> None:
    """The table as a picture, colored between 0 and the highest accuracy.

    Args:
        found: as for `corruption_table`.
        path: the picture.
        title: above it.
    """
    from matplotlib.figure import Figure

    names = list(found["corruptions"])
    one_by_one = [[*one["accuracy"], one["mean"]] for one in found["corruptions"].values()]
    shares = np.array([*one_by_one, np.mean(one_by_one, axis=0)])
    top = max(found.get("top1", 0.0), float(shares.max()))
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(100 * shares, vmin=0, vmax=max(100 * top, 1), cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(STRENGTHS) + 1), [*map(str, STRENGTHS), "mean"])
    axis.set_yticks(range(len(names) + 1), [*(name.replace("_", " ") for name in names), "mean"])
    axis.set(xlabel="strength")
    axis.set_title(title, parse_math=False, fontsize=10)
    for (row, column), share in np.ndenumerate(shares):
        color = "black" if share > 0.7 * top else "white"
        text = f"{100 * share:.1f}"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    for place in (len(STRENGTHS) - 0.5, len(names) - 0.5):
        draw = axis.axvline if place < len(STRENGTHS) else axis.axhline
        draw(place, color="white", linewidth=2)
    figure.colorbar(shown, label="accuracy in %", shrink=0.6)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110)


def draw_examples(variants: UInt8[Tensor, "V C H W"], path: Path, title: str) -> None:
    """One image as it is, and with each corruption at strength 3.

    Args:
        variants: of the image, in the order of `VARIANTS`.
        path: the picture.
        title: above it.
    """
    chosen = [i for i, one in enumerate(VARIANTS) if one is None or one[1] == SHOWN_STRENGTH]
    names = ["clean" if (one := VARIANTS[i]) is None else one[0] for i in chosen]
    row = {f"strength {SHOWN_STRENGTH}": variants[chosen]}
    made = sheet(row, title, [name.replace("_", " ") for name in names], [])
    with whole_file(path) as partial:
        made.save(partial, "PNG")
