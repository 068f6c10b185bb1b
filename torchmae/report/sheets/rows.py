"""Sheets of rows of images, each with words of its own."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from torchmae.errors import printable
from torchmae.report.sheet import EDGE, INK, PALE, font_of, refuse_large, shorten, tile, wrap

SIDE = 132  # px of the longer side of a tile
TEXT = 13


class Told(NamedTuple):
    """An image and the lines below it; the first is the one to read."""

    pixels: UInt8[Tensor, "C H W"]
    lines: tuple[str, str]


def sheet_of_rows(
    rows: Sequence[tuple[str, Sequence[Told]]], title: str, notes: Sequence[str]
) -> Image.Image:
    """A row of tiles for each entry, below its heading.

    Args:
        rows: headings ("" for none) and images.
        title: above everything.
        notes: below everything.
    """
    text, head = font_of(TEXT), font_of(round(TEXT * 1.5))
    line, gap, margin = round(TEXT * 1.5), 10, 20
    cell = SIDE + 2 * line + gap
    across = max(len(row) for _, row in rows)
    width = 2 * margin + max(across * (SIDE + gap) - gap, 36 * TEXT)
    titles = wrap(printable(title), head, width - 2 * margin)
    below = [one for note in notes for one in wrap(printable(note), text, width - 2 * margin)]
    top = margin + len(titles) * 2 * line
    heights = [cell + (line + gap if heading else 0) for heading, _ in rows]
    height = top + sum(heights) + len(below) * line + margin
    refuse_large(width, height)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for i, words in enumerate(titles):
        pen.text((margin, margin + i * 2 * line), words, fill=INK, font=head)
    y = top
    for (heading, row), used in zip(rows, heights):
        if heading:
            words = shorten(printable(heading), text, width - 2 * margin)
            pen.text((margin, y + gap // 2), words, fill=INK, font=text)
        for i, (pixels, lines) in enumerate(row):
            x, at = margin + i * (SIDE + gap), y + used - cell
            shown = fitted(pixels)
            left, above = x + (SIDE - shown.width) // 2, at + (SIDE - shown.height) // 2
            pen.rectangle(
                (left - 1, above - 1, left + shown.width, above + shown.height), outline=EDGE
            )
            canvas.paste(shown, (left, above))
            for k, (words, color) in enumerate(zip(lines, (INK, PALE))):
                words = shorten(printable(words), text, SIDE)
                place = (x + SIDE / 2, at + SIDE + k * line + line / 2 + 2)
                pen.text(place, words, fill=color, font=text, anchor="mm")
        y += used
    for i, words in enumerate(below):
        pen.text((margin, y + i * line), words, fill=PALE, font=text)
    return canvas


def fitted(pixels: UInt8[Tensor, "C H W"]) -> Image.Image:
    """An image whose longer side has `SIDE` px."""
    made = tile(pixels, 1)
    scale = SIDE / max(made.size)
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return made.resize((max(1, round(made.width * scale)), max(1, round(made.height * scale))), way)
