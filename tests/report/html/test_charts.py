"""Curves as SVG: no spike is lost, whatever the numbers are."""

import math
import re
from xml.etree import ElementTree

import pytest

from torchmae.report.html.charts import MOST, chart, thinned, ticks


def test_thinning_keeps_spikes() -> None:
    points = [(float(x), math.sin(x / 500)) for x in range(10_000)]
    points[7777] = (7777.0, 50.0)
    points[1234] = (1234.0, -50.0)
    kept = thinned(points)
    assert len(kept) <= MOST
    assert kept == sorted(kept)
    assert {(7777.0, 50.0), (1234.0, -50.0)} <= set(kept)


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 7e5), (1e-9, 2e-9), (0.3499, 0.3501), (-2, -1)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-12 <= x <= high + 1e-12 for x in found)


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0.5)],
        [(5, 0.0), (6, 0.0)],
        [(0, 1e30), (1, -1e30)],
        [(0, math.nan), (1, 2.0), (2, math.inf)],
    ],
)
def test_any_points_are_drawn_inside_the_picture(points: list[tuple[float, float]]) -> None:
    made = chart("a < b", {"a < b": points})
    (svg,) = re.findall(r"<svg.*</svg>", made)
    ElementTree.fromstring(svg)
    places = re.findall(r'points="([^"]+)"', svg)[0].split()
    assert all(0 <= float(v) <= 480 for place in places for v in place.split(","))


def test_nothing_finite_is_no_chart() -> None:
    assert chart("loss", {"loss": [(0, math.nan)]}) == chart("loss", {}) == ""
