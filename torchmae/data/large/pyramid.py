"""Files of which windows are read without decoding the rest, and their levels: each kind is a row
of `PYRAMIDS`."""

import io
from collections.abc import Callable
from typing import NamedTuple

from torchmae.data.large.jp2 import is_jp2, jp2_levels, jp2_overview, jp2_place, jp2_window
from torchmae.data.large.window import (
    Box,
    Overview,
    has_windows,
    opened,
    read_window,
    tiff_levels,
    tiff_overview,
)

NODATA = 42113
# What places a GeoTIFF on the earth, with TIFF's types: scale, tie points, transform, keys.
SCALE, TIES, MATRIX = 33550, 33922, 34264
GEO = {SCALE: "d", TIES: "d", MATRIX: "d", 34735: "H", 34736: "d", 34737: "s"}

Tag = tuple[int, str, int, object, bool]  # as tifffile writes them


class Pyramid(NamedTuple):
    """How windows of one kind of file are read.

    `claims` says whether a file (by its path) is of it, `levels` the height and width of each
    level, the full one first, `window` makes a TIFF of (path, box, --max-megapixels, level),
    `overview` looks at (path, coarsest step, --max-megapixels, level), `place` is a TIFF that has
    the file's place on the earth.
    """

    claims: Callable[[str], bool]
    levels: Callable[[str], list[tuple[int, int]]]
    window: Callable[[str, Box, float, int], bytes]
    overview: Callable[[str, int, float, int], Overview]
    place: Callable[[str], str | io.BytesIO]


PYRAMIDS: dict[str, Pyramid] = {
    "TIFF": Pyramid(has_windows, tiff_levels, read_window, tiff_overview, str),
    "JPEG 2000": Pyramid(is_jp2, jp2_levels, jp2_window, jp2_overview, jp2_place),
}


def kind_of(path: str) -> str:
    """The name in `PYRAMIDS` that claims a file; "" for none."""
    return next((name for name, kind in PYRAMIDS.items() if kind.claims(path)), "")


def geo_tags(path: str, level: int = 0) -> list[Tag]:
    """The tags of a TIFF that place a level of an image on the earth; [] where it has no place."""
    kind = kind_of(path)
    if not kind:
        return []
    one = PYRAMIDS[kind]
    with opened(one.place(path)) as file:
        tags = file.pages[0].tags
        found = {code: tags[code].value for code in GEO if code in tags}
    sizes = one.levels(path) if level else [(1, 1)]
    down, across = (whole / side for whole, side in zip(sizes[0], sizes[level]))
    steps = {
        SCALE: (across, down, 1.0),
        TIES: (1 / across, 1 / down, 1.0, 1.0, 1.0, 1.0),
        MATRIX: (across, down, 1.0, 1.0),
    }
    for code in found.keys() & steps.keys():
        turns = steps[code] * (len(found[code]) // len(steps[code]))
        found[code] = tuple(value * step for value, step in zip(found[code], turns))
    return [
        (code, letter, 0 if letter == "s" else len(found[code]), found[code], True)
        for code, letter in GEO.items()
        if code in found
    ]
