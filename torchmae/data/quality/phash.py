"""A hash of what an image looks like: 64 bits that stay nearly the same in another size, format or
compression."""

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from torchmae.data.formats.raster import viewable
from torchmae.data.sources.source import Pixels

SIDE, THUMB = 32, 16  # px: what is hashed, what is compared where hashes are close

Grey = UInt8[np.ndarray, "32 32"]


def cosines(count: int, side: int) -> Float64[np.ndarray, "count side"]:
    """The first rows of the orthonormal cosine transform (DCT-II) of a line of pixels."""
    frequency, place = np.mgrid[0:count, 0:side]
    rows = np.cos(np.pi * (2 * place + 1) * frequency / (2 * side)) * np.sqrt(2 / side)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)


ROWS = cosines(12, SIDE)
# The 64 lowest frequencies without the mean: a brighter copy has the same hash.
LOWEST = sorted((u * u + v * v, u, v) for u in range(12) for v in range(12))[1:65]
U, V = (np.array(part) for part in tuple(zip(*LOWEST))[1:])


def shrink(pixels: Pixels) -> Grey:
    """An image in grey, 32 px wide and high."""
    pixels = viewable(pixels)
    if pixels.shape[2] == 3:
        grey = Image.fromarray(pixels).convert("L")
    else:
        grey = Image.fromarray(pixels.mean(axis=2).round().astype(np.uint8))
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def phash(grey: Grey) -> int:
    """The signs of its 64 lowest frequencies, as an integer below 2**64."""
    waves = ROWS @ grey.astype(np.float64) @ ROWS.T
    return int.from_bytes(np.packbits(waves[U, V] > 0).tobytes())


def thumb(grey: Grey) -> UInt8[np.ndarray, "256"]:
    """The image at 16 px, in one row."""
    blocks = grey.reshape(THUMB, 2, THUMB, 2).mean(axis=(1, 3))
    return np.asarray(blocks.round().astype(np.uint8).reshape(-1))
