"""Curves as SVG inside a page; a point's numbers appear where the pointer rests on it."""

import math
from collections.abc import Mapping, Sequence

from torchmae.report.html.page import text

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 12, 34
MOST = 300  # points of a curve that are drawn: the lowest and highest of as many spans
TOUCHED = 60  # of which so many answer to the pointer
COLORS = 6


def thinned(points: Points, most: int = MOST) -> list[tuple[float, float]]:
    """At most `most` points, the lowest and the highest of each span: no spike is lost."""
    if len(points) <= most:
        return list(points)
    spans = most // 2
    kept = []
    for k in range(spans):
        span = points[k * len(points) // spans : (k + 1) * len(points) // spans]
        kept += sorted({min(span, key=lambda p: p[1]), max(span, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count`."""
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(title: str, series: Mapping[str, Points], across: str = "step") -> str:
    """A figure of curves; empty where there is nothing finite to draw.

    Args:
        title: above it.
        series: points (x, y) by the name of the curve; those that are not finite are left out.
        across: what x is.
    """
    curves = {
        name: thinned([(x, y) for x, y in points if math.isfinite(y)])
        for name, points in series.items()
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    every = [point for points in curves.values() for point in points]
    (x_low, x_high), (y_low, y_high) = (widened([p[k] for p in every]) for k in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    drawn = [grid(at, (x_low, x_high), (y_low, y_high), across)]
    for k, (name, points) in enumerate(curves.items()):
        drawn.append(curve(name, points, [at(x, y) for x, y in points], f"var(--c{k % COLORS})"))
    names = "".join(
        f'<span style="color:var(--c{k % COLORS})">\N{BLACK SQUARE} {text(name)}</span> '
        for k, name in enumerate(curves)
    )
    return (
        f'<figure><strong>{text(title)}</strong><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{text(title)}">{"".join(drawn)}</svg>'
        f"<figcaption>{names if list(curves) != [title] else ''}</figcaption></figure>"
    )


def widened(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest value, apart."""
    low, high = min(values), max(values)
    room = (high - low) * 0.02 or abs(low) * 0.1 or 1.0
    return low - room, high + room


def grid(at, xs: tuple[float, float], ys: tuple[float, float], across: str) -> str:  # type: ignore[no-untyped-def]
    """Lines and numbers of both axes."""
    drawn = []
    for y in ticks(*ys):
        left, height = at(xs[0], y)
        drawn.append(
            f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
            f'y2="{height:.1f}"/><text x="{LEFT - 6}" y="{height + 4:.1f}" '
            f'text-anchor="end">{y:.4g}</text>'
        )
    for x in ticks(*xs):
        place, _ = at(x, ys[0])
        drawn.append(
            f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:,.6g}</text>'
        )
    drawn.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{text(across)}</text>'
    )
    return "".join(drawn)


def curve(name: str, points: Points, places: Points, color: str) -> str:
    """A line, with some of its points to rest the pointer on."""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    every = -(-len(points) // TOUCHED)
    alone = 1 if len(points) < 12 else 0  # a single point draws no line
    dots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{3 if alone else 6}" fill="{color}" '
        f'fill-opacity="{alone}"><title>{text(name)}: {y:.5g} at {x:,.6g}</title></circle>'
        for (x, y), (a, b) in list(zip(points, places))[::every]
    )
    return f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>{dots}'
