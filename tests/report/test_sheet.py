"""Contact sheets: how large tiles are, what is written, what does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from torchmae.errors import UserError
from torchmae.report.sheet import (
    EDGE,
    bands_shown,
    default_scale,
    font_of,
    printable,
    sheet,
    shorten,
    stack,
    wrap,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def find(canvas: Image.Image, tile: np.ndarray) -> list[tuple[int, int]]:
    """Where a tile is on a canvas, to the pixel: below and right of each corner of an edge."""
    pixels = np.asarray(canvas)
    grey = np.array([int(EDGE[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    edge = (pixels == grey).all(2)
    corners = np.argwhere(edge & np.roll(edge, -1, 0) & np.roll(edge, -1, 1))
    height, width = tile.shape[:2]
    return [
        (y + 1, x + 1)
        for y, x in corners.tolist()
        if np.array_equal(pixels[y + 1 : y + 1 + height, x + 1 : x + 1 + width], tile)
    ]


@pytest.mark.parametrize(
    "side, scale", [(8, 18), (12, 12), (28, 6), (32, 5), (64, 3), (128, 2), (144, 1), (224, 1)]
)
def test_small_images_are_enlarged_to_about_150_px(side: int, scale: int) -> None:
    assert default_scale(side, side) == default_scale(side // 2, side) == scale
    assert side * scale >= 144


@pytest.mark.parametrize("scale", [None, 1, 7])
def test_pixels_are_repeated_not_smoothed(scale: int | None) -> None:
    images = noise(2, 3, 16, 24)
    canvas = sheet({"a": images, "b": 255 - images}, "title", ["1", "2"], [], scale)
    zoom = scale or 6
    places = []
    for row in (images, 255 - images):
        for image in row:
            tile = image.permute(1, 2, 0).numpy().repeat(zoom, 0).repeat(zoom, 1)
            places += find(canvas, tile)
    (a1, a2, b1, b2) = places
    assert a1[0] == a2[0] < b1[0] == b2[0] and a1[1] == b1[1] < a2[1] == b2[1]


def test_what_is_written(written: list[str]) -> None:
    names = [f"photo-{i}.jpg" for i in range(11)]
    canvas = sheet({"original": noise(11, 3, 32, 32)}, "photos · step 3", names, ["One.", "Two."])
    assert written[0] == "photos · step 3"
    assert [word for word in written if word.endswith(".jpg")] == names
    assert written.count("original") == 2  # after 8 columns the next ones go below
    assert written[-2:] == ["One.", "Two."]
    assert canvas.width < 9 * 160 + 300


def test_names_are_escaped_and_shortened_to_their_column(written: list[str]) -> None:
    hostile = "a\x1b[31m\u202egnp.exe\n\udcff"
    assert printable(hostile) == "a\\x1b[31m\\u202egnp.exe\\n\\udcff"
    long = "a-photo-from-the-holidays-in-the-south-of-france-2026.jpg"
    sheet({"original": noise(2, 1, 32, 32)}, hostile, [hostile, long], [])
    assert all(word.isprintable() for word in written)
    font = font_of(16)
    short = shorten(long, font, 160)
    assert short in written and font.getlength(short) <= 160
    assert short.startswith("a-phot") and short.endswith(".jpg") and "…" in short
    assert shorten("b.jpg", font, 160) == "b.jpg"
    assert shorten(long, font, 5) == "…"


def test_long_lines_are_wrapped_at_words() -> None:
    font = font_of(16)
    lines = wrap(f"one two three four {'x' * 90}", font, 100)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert lines[:2] == ["one two", "three four"] and len(lines) == 3


@pytest.mark.parametrize(
    "channels, words",
    [
        (1, None),
        (3, None),
        (2, "band 1 of 2 is shown, as gray"),
        (4, "bands 1, 2 and 3 of 4 are shown, as red, green and blue"),
        (5, "bands 1, 2 and 3 of 5 are shown, as red, green and blue"),
    ],
)
def test_which_bands_are_shown(channels: int, words: str | None) -> None:
    assert bands_shown(channels) == words
    images = noise(1, channels, 150, 150)
    shown = images[0, :3] if channels >= 3 else images[0, :1].expand(3, -1, -1)
    canvas = sheet({"original": images}, "", ["1"], [])
    assert len(find(canvas, shown.permute(1, 2, 0).numpy())) == 1


def test_a_picture_that_is_too_large_is_refused() -> None:
    with pytest.raises(UserError, match=r"would have \d+x\d+ px: a smaller --scale"):
        sheet({"original": noise(8, 3, 64, 64)}, "", [""] * 8, [], 100)


def test_sheets_below_each_other() -> None:
    images = noise(2, 3, 150, 150)
    one, other = (sheet({"a": images[i:][:1]}, "", ["1"], []) for i in range(2))
    wide = sheet({"a": noise(3, 3, 150, 150)}, "", ["1"] * 3, [])
    both = stack([one, wide, other])
    assert both.size == (wide.width, 2 * one.height + wide.height)
    places = [find(both, image.permute(1, 2, 0).numpy()) for image in images]
    assert places[1][-1][0] == places[0][0][0] + one.height + wide.height
    with pytest.raises(UserError, match="fewer images"):
        stack([Image.new("RGB", (15_000, 15_000))])
