"""Pictures inside a page."""

import io
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from torchmae.data.formats.raster import viewable
from torchmae.report.html.page import text

SIDE = 112  # px


def thumbnail(pixels: Shaped[np.ndarray, "H W C"], side: int = SIDE) -> str:
    """The source of an <img>: at most `side` px, a JPEG; the first band or three of many."""
    pixels = viewable(pixels)
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    image = Image.fromarray(np.ascontiguousarray(shown))
    # Of a very long image one pixel is left across.
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return embedded(image.resize((size[0], size[1]), way))


def embedded(image: Image.Image, quality: int = 80) -> str:
    """The source of an <img> that is a JPEG inside the page."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{b64encode(out.getvalue()).decode()}"


def picture_file(path: Path, widest: int) -> str:
    """A picture of a run as the source of an <img>, at most `widest` px wide."""
    with Image.open(path) as image:
        if image.width > widest:
            size = (widest, max(1, round(image.height * widest / image.width)))
            return embedded(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        return embedded(image)


def tile(source: str, caption: str) -> str:
    """A picture with its caption; the text for those who do not see it is the caption too."""
    shown = f'<img src="{source}" alt="{text(caption)}">' if source else ""
    return f"<figure>{shown}<figcaption>{text(caption)}</figcaption></figure>"


def tiles(figures: Iterable[str]) -> str:
    """Pictures side by side; empty where there are none."""
    body = "".join(figures)
    return f'<div class="tiles">{body}</div>' if body else ""
