"""Contact sheets, fit for a slide: tiles that can be seen, a title, captions, notes."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchmae.data.formats.raster import viewable
from torchmae.errors import UserError, printable

Font = ImageFont.FreeTypeFont

SMALLEST_TILE = 144  # px: smaller images are enlarged to at least this
COLUMNS = 8  # further images go below
LARGEST = 200_000_000  # px of a sheet: 600 MB in memory
INK, PALE, EDGE = "#1a1a1a", "#5f5f5f", "#c8c8c8"


def default_scale(height: int, width: int) -> int:
    """How many times images are enlarged so that a tile is at least about 150 px: 5 for 32 px, 1
    for 224 px."""
    return -(-SMALLEST_TILE // max(height, width))


def bands_shown(channels: int, bands: tuple[int, ...] = ()) -> str | None:
    """Which channels a picture shows, in words; None where these are all of them.

    Args:
        channels: that there are.
        bands: the numbers, from 0, of those that were chosen.
    """
    if bands:
        red, green, blue = (band + 1 for band in bands)
        return f"bands {red}, {green} and {blue} of {channels} are shown, as red, green and blue"
    if channels in (1, 3):
        return None
    if channels == 2:
        return "band 1 of 2 is shown, as gray"
    return f"bands 1, 2 and 3 of {channels} are shown, as red, green and blue"


def bands_note(channels: int) -> list[str]:
    """The line below a sheet that says which channels it shows; none where these are all."""
    words = bands_shown(channels)
    return [f"{words[0].upper()}{words[1:]}."] if words else []


def shorten(text: str, font: Font, width: float) -> str:
    """A text without its middle, so that it fits: beginnings and ends of file names matter."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: kept - kept // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - kept // 2 :]}"
        if font.getlength(short) <= width:
            return short
    return "\N{HORIZONTAL ELLIPSIS}"


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Lines of whole words that fit; a longer word is shortened."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shorten(word, font, width))
    return [line for line in lines if line]


@cache
def font_of(size: int) -> Font:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic and more."""
    package = find_spec("matplotlib")
    assert package is not None and package.origin is not None  # a core dependency
    return ImageFont.truetype(
        str(Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size
    )


def three_bands(image: Shaped[Tensor, "C H W"]) -> UInt8[Tensor, "3 H W"]:
    """An image as pictures show it: see `bands_shown` and `viewable`."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if shown.dtype == torch.uint8:
        return shown
    return torch.from_numpy(viewable(shown.permute(1, 2, 0).numpy())).permute(2, 0, 1)


def tile(image: Shaped[Tensor, "C H W"], scale: int) -> Image.Image:
    """An image enlarged without smoothing, so that its pixels can be seen."""
    shown = three_bands(image)
    made = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
    return made.resize((made.width * scale, made.height * scale), Image.Resampling.NEAREST)


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below each other in one picture."""
    width, height = max(one.width for one in sheets), sum(one.height for one in sheets)
    refuse_large(width, height)
    canvas, top = Image.new("RGB", (width, height), "white"), 0
    for one in sheets:
        canvas.paste(one, (0, top))
        top += one.height
    return canvas


def refuse_large(width: int, height: int) -> None:
    """Raises UserError for more pixels than `LARGEST`."""
    if width * height > LARGEST:
        raise UserError(
            f"the picture would have {width}x{height} px: a smaller --scale, or fewer images"
        )


def sheet(
    rows: Mapping[str, Shaped[Tensor, "B _ H W"]],
    title: str,
    columns: Sequence[str],
    notes: Sequence[str],
    scale: int | None = None,
) -> Image.Image:
    """A contact sheet: a row of tiles for each entry, a column for each image; after 8 columns the
    next ones go below.

    Args:
        rows: what the rows are called, and their images.
        title: above everything.
        columns: a name for each image, above its column; shortened to its width.
        notes: below everything.
        scale: how many times images are enlarged; None: `default_scale`.

    Raises:
        UserError: the sheet would be too large.
    """
    count, _, height, width = next(iter(rows.values())).shape
    scale = scale or default_scale(height, width)
    height *= scale
    width *= scale
    across, bands = min(count, COLUMNS), -(-count // COLUMNS)
    text = font_of(max(13, min(22, width // 10)))
    head = font_of(round(text.size * 1.25))
    line, gap, margin = round(text.size * 1.5), max(6, width // 20), round(text.size * 1.5)
    left = margin + round(max(text.getlength(name) for name in rows)) + 2 * gap
    band = line + len(rows) * (height + gap)  # names of files, then the tiles
    title = printable(title)
    least = margin + round(min(head.getlength(title) + 1, 40 * text.size))  # for a single tile
    total = max(left + across * (width + gap) - gap, least) + margin
    titles = wrap(title, head, total - 2 * margin)
    below = [one for note in notes for one in wrap(printable(note), text, total - 2 * margin)]
    top = margin + len(titles) * round(head.size * 1.5) + gap
    foot = len(below) * line + margin
    size = (total, top + bands * (band + gap) + foot)
    refuse_large(*size)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for i, words in enumerate(titles):
        pen.text((margin, margin + i * round(head.size * 1.5)), words, fill=INK, font=head)
    for i in range(count):
        x, y = left + i % COLUMNS * (width + gap), top + i // COLUMNS * (band + gap)
        name = shorten(printable(columns[i]), text, width)
        pen.text((x + width / 2, y + line / 2), name, fill=PALE, font=text, anchor="mm")
        for row, (label, images) in enumerate(rows.items()):
            at = y + line + row * (height + gap)
            if i % COLUMNS == 0:
                pen.text((margin, at + height / 2), label, fill=INK, font=text, anchor="lm")
            pen.rectangle((x - 1, at - 1, x + width, at + height), outline=EDGE)
            canvas.paste(tile(images[i], scale), (x, at))
    for i, words in enumerate(below):
        pen.text((margin, size[1] - foot + i * line), words, fill=PALE, font=text)
    return canvas
