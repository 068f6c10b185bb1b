"""Windows of large TIFFs and their levels, read without decoding the rest, as TIFFs of their own.

A window has the values, bands and no-data of its file, so that decoding it gives what decoding the
file and cutting gives.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

from torchmae.data.formats.raster import BadImage, Raster, in_megapixels, one_line
from torchmae.data.formats.tiff import (
    GDAL_METADATA,
    GDAL_NODATA,
    channel_pages,
    channel_stack,
    is_tiff,
    nodata_of,
)
from torchmae.errors import library

# PhotometricInterpretation whose windows mean by themselves what they mean in the file: gray, RGB,
# and YCbCr, which is RGB once a tile is decoded.
PLAIN = (0, 1, 2, 6)
YCBCR, RGB = 6, 2
STEP, LARGE = 8, 4096  # of an overview, pixels
ORIENTATION = 274


class Box(NamedTuple):
    """A window in pixels."""

    top: int
    left: int
    height: int
    width: int


class Overview(NamedTuple):
    """Every `step`-th pixel down and across of an image of `size` (height, width), NaN where there
    is no value, and the type of its pixels."""

    values: Float32[np.ndarray, "h w K"]
    step: float
    size: tuple[int, int]
    dtype: str


@contextmanager
def opened(path: str | io.BytesIO) -> Iterator[Any]:
    """A TIFF; whatever is wrong with it is a `BadImage`."""
    tifffile = library("tifffile", "tiff")
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except (BadImage, MemoryError, OSError):
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged TIFF: {one_line(error)}") from error


def has_windows(path: str) -> bool:
    """Whether a file is a TIFF of which windows are read: whole samples, not turned, no palette."""
    with open(path, "rb") as start:
        if not is_tiff(start.read(4)):
            return False
    with opened(path) as file:
        page = file.pages[0]
        turn = page.tags.get(ORIENTATION)
        plain = page.photometric in PLAIN and page.bitspersample in (8, 16, 32, 64)
        return bool(plain and (turn is None or turn.value == 1))


def read_window(path: str, box: Box, max_megapixels: float, level: int = 0) -> bytes:
    """A window of a level of the first image of a TIFF, as a TIFF: only what it touches is decoded.

    Raises:
        BadImage: the file is damaged, or stored in pieces of more than `max_megapixels`.
        OSError: it cannot be read.
    """
    with opened(path) as file:
        pages = level_pages(file)[level]
        planes = [cut(page, box, max_megapixels) for page in pages]
        values = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        tags = channel_pages(file)[0].keyframe.tags
        texts = [(code, tags[code].value) for code in (GDAL_METADATA, GDAL_NODATA) if code in tags]
        photometric, extra = pages[0].keyframe.photometric, pages[0].keyframe.extrasamples
        return encoded(values, RGB if photometric == YCBCR else photometric, extra, texts)


def as_tiff(raster: Raster) -> bytes:
    """Pixels that were decoded already, as a TIFF with their no-data."""
    photometric = RGB if raster.pixels.dtype == np.uint8 and raster.pixels.shape[2] == 3 else 1
    nodata = [] if raster.nodata is None else [(GDAL_NODATA, repr(float(raster.nodata)))]
    extra = () if photometric == RGB else (0,) * (raster.pixels.shape[2] - 1)
    return encoded(raster.pixels, photometric, extra, nodata)


def encoded(
    values: Shaped[np.ndarray, "H W K"],
    photometric: int,
    extra: tuple[int, ...],
    texts: list[tuple[int, Any]],
) -> bytes:
    """Values as an uncompressed TIFF.

    Args:
        values: the pixels.
        photometric: TIFF's PhotometricInterpretation.
        extra: what the samples beyond it are, such as alpha.
        texts: further tags of text, by their codes.
    """
    file = io.BytesIO()
    library("tifffile", "tiff").imwrite(
        file,
        values if values.shape[2] > 1 else values[..., 0],
        photometric=photometric,
        planarconfig=1 if values.shape[2] > 1 else None,
        extrasamples=extra or None,
        metadata=None,
        extratags=[(code, "s", 0, str(text), True) for code, text in texts],
    )
    return file.getvalue()


def cut(page: Any, box: Box, max_megapixels: float) -> Shaped[np.ndarray, "h w K"]:
    """A window of a page, of which only the tiles or strips that it touches are read and decoded.

    A tile that the file leaves out has the page's no-data.
    """
    frame, file = page.keyframe, page.parent.filehandle
    height, width, samples = frame.imagelength, frame.imagewidth, frame.samplesperpixel
    p, q = (frame.tilelength, frame.tilewidth) if frame.is_tiled else (frame.rowsperstrip, width)
    p = min(p, height)  # one strip may say that it has 2**32 - 1 rows
    if p * q > max_megapixels * 1e6:
        raise BadImage(
            f"stored in pieces of {p * q / 1e6:.1f} megapixels, more than the limit of "
            f"{max_megapixels:g}: save it in tiles"
        )
    down, across = -(-height // p), -(-width // q)
    planes = samples if frame.planarconfig == 2 else 1
    values = np.full((box.height, box.width, samples), frame.nodata, dtype=frame.dtype)
    for plane in range(planes):
        for row in range(box.top // p, -(-(box.top + box.height) // p)):
            for column in range(box.left // q, -(-(box.left + box.width) // q)):
                index = (plane * down + row) * across + column
                if not page.databytecounts[index]:
                    continue
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
                tables = page.jpegtables
                found, _, _ = frame.decode(data, index, jpegtables=tables)
                if found is not None:
                    piece, channels = found[0], plane if planes > 1 else slice(None)
                    paste(values[..., channels], piece, row * p - box.top, column * q - box.left)
    return values


def paste(values: np.ndarray, piece: np.ndarray, top: int, left: int) -> None:
    """Puts a piece [h, w, K] at a place of `values` [H, W, K] or [H, W]; what is outside is cut."""
    if values.ndim == 2:
        piece = piece[..., 0]
    first, start = max(0, top), max(0, left)
    last, stop = (min(a, b + c) for a, b, c in zip(values.shape, (top, left), piece.shape))
    values[first:last, start:stop] = piece[first - top : last - top, start - left : stop - left]


def tiff_overview(path: str, coarsest: int, max_megapixels: float, level: int = 0) -> Overview:
    """A level of a TIFF at a smaller scale: about every `STEP`-th pixel, of large images fewer, so
    that about `LARGE` px are left of a side, but at least each `coarsest`-th.

    They are of its smallest level that is fine enough, read a row of tiles at a time.

    Raises:
        BadImage: it is damaged, or even so more than `max_megapixels` at once.
    """
    with opened(path) as file:
        full = level_pages(file)[level][0].keyframe
        size = full.imagelength, full.imagewidth
        in_megapixels(*size, np.inf)
        wanted = max(1, min(coarsest, max(STEP, -(-max(size) // LARGE))))
        in_megapixels(size[0] // wanted + 1, size[1] // wanted + 1, max_megapixels)
        pages, scale = smallest_level(file, wanted, level)
        step = max(1, int(wanted / scale))
        planes = [subsampled(one, step, max_megapixels) for one in pages]
        values = np.concatenate(planes, axis=2)
        return Overview(
            with_nan(values, nodata_of(channel_pages(file)[0].keyframe.tags)),
            step * scale,
            size,
            values.dtype.name,
        )


def level_pages(file: Any) -> list[list[Any]]:
    """The pages that hold the channels of each level of a pyramid, the full one first: those of its
    own list, and pages that are marked as reduced, as GDAL writes them."""
    first = channel_pages(file)
    if len(first) > 1:
        others = [channel_stack(level) for level in file.series[0].levels[1:]]
        return [first, *(stack[0] for stack in others if stack)]
    whole = first[0].keyframe
    found = [level.pages[0].keyframe for level in file.series[0].levels[1:]]
    found += [page.keyframe for page in file.pages[1:64] if page.is_reduced]
    by_height = {}
    for page in found:
        scale = whole.imagelength / page.imagelength
        alike = scale > 1 and abs(whole.imagewidth / scale - page.imagewidth) <= 2
        if alike and page.samplesperpixel == whole.samplesperpixel and page.dtype == whole.dtype:
            by_height[page.imagelength] = page
    return [first, *([by_height[height]] for height in sorted(by_height, reverse=True))]


def tiff_levels(path: str) -> list[tuple[int, int]]:
    """Height and width of each level, the full one first."""
    with opened(path) as file:
        frames = [pages[0].keyframe for pages in level_pages(file)]
        return [(frame.imagelength, frame.imagewidth) for frame in frames]


def smallest_level(file: Any, coarsest: int, level: int = 0) -> tuple[list[Any], float]:
    """The pages of the smallest level that is at most `coarsest` times smaller than another, and
    how many times it is."""
    levels = level_pages(file)[level:]
    full = levels[0][0].keyframe.imagelength
    scales = [full / pages[0].keyframe.imagelength for pages in levels]
    number = max(k for k, scale in enumerate(scales) if scale <= coarsest)
    return levels[number], scales[number]


def subsampled(page: Any, step: int, max_megapixels: float) -> Shaped[np.ndarray, "h w K"]:
    """Every `step`-th pixel of a page down and across; a row of tiles, or some strips, are read at
    a time."""
    frame = page.keyframe
    height, width = frame.imagelength, frame.imagewidth
    rows = min(frame.tilelength if frame.is_tiled else frame.rowsperstrip, height)
    rows = max(rows, 64 // rows * rows)
    in_megapixels(rows, width, max_megapixels)
    bands = []
    for top in range(0, height, rows):
        band = cut(page, Box(top, 0, min(rows, height - top), width), max_megapixels)
        bands.append(band[-top % step :: step, ::step].copy())  # a view would keep the whole band
    return np.concatenate(bands)


def with_nan(values: Shaped[np.ndarray, "h w K"], nodata: float | None) -> np.ndarray:
    """Values as float32, NaN where they are `nodata` or not finite."""
    values = values.astype(np.float32)
    missing = ~np.isfinite(values)
    if nodata is not None:
        missing |= values == np.float32(nodata)
    values[missing] = np.nan
    return values
