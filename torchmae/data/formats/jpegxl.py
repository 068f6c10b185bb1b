"""JPEG XL by imagecodecs, with all of its bits."""

from collections.abc import Iterator

import numpy as np

from torchmae.data.formats.raster import (
    BadImage,
    Raster,
    in_megapixels,
    known_kind,
    one_line,
    over_white,
)
from torchmae.errors import library

CODE, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height


def is_jpegxl(data: bytes) -> bool:
    """Whether bytes are a JPEG XL, in its container or bare."""
    return data.startswith((CODE, CONTAINER))


def read_jpegxl(data: bytes, number: int, max_megapixels: float) -> Raster:
    """The image, or the first frame of an animation; alpha is laid over white.

    Raises:
        BadImage: whatever is wrong with it.
        UserError: imagecodecs is missing.
    """
    in_megapixels(*size_of(data), max_megapixels)
    codecs = library("imagecodecs", "tiff")
    try:
        values = codecs.jpegxl_decode(data, index=0)
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged JPEG XL: {one_line(error)}") from error
    return Raster(known_kind(over_white(np.atleast_3d(values))))


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width, from the header (ISO/IEC 18181-1, SizeHeader)."""
    code = code_of(data)
    stream = int.from_bytes(code[2:14], "little")  # its lowest bit comes first

    def take(bits: int) -> int:
        nonlocal stream
        value = stream & ((1 << bits) - 1)
        stream >>= bits
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    return height, side() if not ratio else height * RATIOS[ratio - 1][0] // RATIOS[ratio - 1][1]


def code_of(data: bytes) -> bytes:
    """The beginning of the code, which a container may have in a box."""
    if data.startswith(CODE):
        return data
    for kind, at in boxes(data):
        if kind in (b"jxlc", b"jxlp"):
            at += 4 * (kind == b"jxlp")  # its number
            return data[at : at + 64]
    raise BadImage("damaged JPEG XL: no code in its container")


def boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The boxes of a container: their kinds, and where their contents begin."""
    at = 0
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        yield kind, at + head
        if size < head:  # 0: up to the end
            return
        at += size
