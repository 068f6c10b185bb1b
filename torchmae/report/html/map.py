"""The page of `mae map`: a picture of images, some as thumbnails, all with their names."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from torchmae.report.html.page import Section, page, paragraph, text

WIDTH, HEIGHT, EDGE = 1000, 700, 32  # of the map, in its own units
THUMB = 27  # side of a thumbnail there
PIXELS = 52  # of a thumbnail: sharp where the map is enlarged
MOST_COLORS = 20
LONGEST_NAME = 60  # signs, so that 10,000 names fit
# Eight hues that can be told apart on white and on black, then the same darker and lighter.
COLORS = [
    f"hsl({hue} 70% {light}%)"
    for light in (52, 36, 72)
    for hue in (210, 25, 130, 275, 48, 330, 180, 0)
]
OTHERS = "hsl(0 0% 55%)"

STYLE = """
.map { overflow: auto; border: 1px solid var(--edge); border-radius: 6px; background: var(--card) }
.map svg { min-width: 40rem } .map rect { fill: none; stroke-width: 2.5 }
.map g:hover rect, .map circle:hover { stroke: var(--ink) } .map circle { stroke-width: 2 }
.zoom { display: flex; gap: 1rem; flex-wrap: wrap; margin: .6rem 0 }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; font-size: .9rem }
.legend label, .zoom label { white-space: nowrap }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; margin: 0 .3rem }
#z2:checked ~ .map svg { width: 200% } #z4:checked ~ .map svg { width: 400% }
.zoom-control { margin-right: .2rem }
"""


class Place(NamedTuple):
    """An image on the map: its number, its place in 0..1 (down from the top), its class."""

    image: int
    x: float
    y: float
    kind: int | None


def map_page(
    title: str,
    lead: Sequence[str],
    places: Float[ndarray, "N 2"],
    names: Sequence[str],
    labels: Sequence[str | None],
    thumb: Callable[[int], str],
) -> tuple[str, int]:
    """The page, and how many thumbnails it has.

    Images are taken in the order given: each gets a thumbnail unless that would cover another one,
    then it is a dot.

    Args:
        title: its title.
        lead: paragraphs below it.
        places: of the images, across and up, in any units.
        names: of the images.
        labels: of the images; None for none.
        thumb: the source of an <img> of an image, by its number here; empty where it cannot be
            read.
    """
    kinds = classes(labels)
    scaled = fit(places)
    shown = set(uncovered(scaled))
    drawn, dots = [], []
    for i, (x, y) in enumerate(scaled.tolist()):
        label = labels[i]
        kind = None if label is None else kinds.get(label, len(kinds) - 1)
        words = short(names[i]) + (f" ({short(label)})" if label else "")
        source = thumb(i) if i in shown else ""
        if source:
            drawn.append(thumbnail(x, y, kind, words, source))
        else:
            dots.append(dot(x, y, kind, words))
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}: '
        f'{len(names):,} images">{"".join(dots)}{"".join(drawn)}</svg>'
    )
    counts = Counter(kinds.get(label, len(kinds) - 1) for label in labels if label is not None)
    body = f"<style>{STYLE}{rules(len(kinds))}</style>{zoom()}{legend(kinds, counts)}"
    body += f'<div class="map">{svg}</div>'
    words = "".join(paragraph(one) for one in lead)
    said = f"{len(drawn):,} of {len(names):,} images have a thumbnail, all others are dots: "
    said += "names show where the pointer rests. The 1 % farthest out on each axis is at the rim."
    words += paragraph(said, True)
    return page(title, words, [Section("Map", body)]), len(drawn)


def classes(labels: Sequence[str | None]) -> dict[str, int]:
    """Classes to the numbers of their colors; of too many the commonest, and the others share the
    last."""
    common = Counter(label for label in labels if label is not None).most_common()
    if len(common) <= MOST_COLORS:
        return {name: i for i, name in enumerate(sorted(name for name, _ in common))}
    kept = {name: i for i, (name, _) in enumerate(common[: MOST_COLORS - 1])}
    return {**kept, f"{len(common) - len(kept):,} other classes": MOST_COLORS - 1}


def color(kind: int, count: int) -> str:
    """Of a class; of the rest, where there is one, gray."""
    return OTHERS if count == MOST_COLORS and kind == MOST_COLORS - 1 else COLORS[kind]


def fit(places: Float[ndarray, "N 2"]) -> Float[ndarray, "N 2"]:
    """Places on the map: each axis from its 0.5th to its 99.5th percentile, what is beyond at the
    rim; up is up."""
    low, high = np.percentile(places, (0.5, 99.5), axis=0)
    share = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
    share[:, 1] = 1 - share[:, 1]
    return EDGE + share * (np.array([WIDTH, HEIGHT]) - 2 * EDGE)


def uncovered(places: Float[ndarray, "N 2"]) -> list[int]:
    """The images whose thumbnails cover no earlier one."""
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
    apart = THUMB + 4  # with their frames
    kept = []
    for i, (x, y) in enumerate(places.tolist()):
        column, row = int(x // apart), int(y // apart)
        near = (
            place
            for across in (-1, 0, 1)
            for down in (-1, 0, 1)
            for place in cells.get((column + across, row + down), ())
        )
        if all(max(abs(x - a), abs(y - b)) >= apart for a, b in near):
            cells.setdefault((column, row), []).append((x, y))
            kept.append(i)
    return kept


def short(name: str) -> str:
    """A name without its middle, where it is long."""
    if len(name) <= LONGEST_NAME:
        return name
    half = LONGEST_NAME // 2
    return f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def of_class(kind: int | None) -> str:
    return "" if kind is None else f' class="k{kind}"'


def dot(x: float, y: float, kind: int | None, words: str) -> str:
    """An image as a dot."""
    at = f'cx="{x:.0f}" cy="{y:.0f}" r="3"'
    return f"<circle{of_class(kind)} {at}><title>{text(words)}</title></circle>"


def thumbnail(x: float, y: float, kind: int | None, words: str, source: str) -> str:
    """An image as a picture with a frame in the color of its class."""
    left, top = x - THUMB / 2, y - THUMB / 2
    at = f'x="{left:.0f}" y="{top:.0f}" width="{THUMB}" height="{THUMB}"'
    return (
        f'<g{of_class(kind)}><image {at} href="{source}"/><rect {at}/>'
        f"<title>{text(words)}</title></g>\n"
    )


def rules(count: int) -> str:
    """The colors of the classes, and how the legend hides them."""
    lines = [".map circle { fill: var(--pale) } .map rect { stroke: var(--edge) }"]
    for kind in range(count):
        tint = color(kind, count)
        lines.append(
            f".map circle.k{kind} {{ fill: {tint} }} .map .k{kind} rect {{ stroke: {tint} }} "
            f".legend:has(#c{kind}:not(:checked)) ~ .map .k{kind} {{ display: none }}"
        )
    return "\n".join(lines)


def zoom() -> str:
    """Buttons that enlarge the map, without a script."""
    sizes = (("z1", "whole map"), ("z2", "2 times"), ("z4", "4 times"))
    return "".join(
        f'<input type="radio" name="zoom" id="{name}" class="zoom-control"{" checked" * (i == 0)}>'
        f'<label for="{name}">{words}</label> '
        for i, (name, words) in enumerate(sizes)
    )


def legend(kinds: Mapping[str, int], counts: Mapping[int, int]) -> str:
    """A box for each class, which hides it where it is not checked."""
    if not kinds:
        return ""
    items = "".join(
        f'<label><input type="checkbox" id="c{kind}" checked><span class="key" '
        f'style="background:{color(kind, len(kinds))}"></span>{text(short(name))} '
        f"({counts.get(kind, 0):,})</label>"
        for name, kind in kinds.items()
    )
    return f'<div class="legend">{items}</div>'
