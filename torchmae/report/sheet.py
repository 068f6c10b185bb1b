"""Contact sheets."""

from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def sheet(rows: Sequence[UInt8[Tensor, "B C H W"]], names: Sequence[str], note: str) -> Image.Image:
    """A contact sheet: a line for each row of images, its name at the left, a note below.

    Small images are enlarged without smoothing, so that their pixels can be seen. Of other than 3
    channels the first three are shown, or the first as grey.
    """
    count, channels, height, width = rows[0].shape
    zoom = max(1, round(128 / max(height, width)))
    height *= zoom
    width *= zoom
    gap, margin, foot = 6, 104, 24  # px
    font = ImageFont.load_default(13)
    total = max(margin + count * (width + gap), int(font.getlength(note)) + 2 * gap)
    canvas = Image.new("RGB", (total, gap + len(rows) * (height + gap) + foot), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (images, name) in enumerate(zip(rows, names)):
        top = gap + row * (height + gap)
        pen.text((gap, top + height // 2 - 8), name, fill="black", font=font)
        for i, image in enumerate(images):
            shown = image[:3] if channels >= 3 else image[:1].expand(3, -1, -1)
            tile = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
            tile = tile.resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (margin + i * (width + gap), top))
    pen.text((gap, canvas.height - foot + 3), note, fill="black", font=font)
    return canvas
