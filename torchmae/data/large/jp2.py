"""Windows and levels of JPEG 2000, by rasterio: only what a window touches is decoded."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from torchmae.data.formats.raster import (
    BadImage,
    Raster,
    in_megapixels,
    known_kind,
    one_line,
    over_white,
)
from torchmae.data.large.window import LARGE, STEP, Box, Overview, as_tiff, with_nan
from torchmae.errors import library

SIGNATURES = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # of files, of bare code
ROWS = 512  # that are read at a time
# No files beside an image, and no twentieth of the memory for blocks that are read once.
GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 64,
}


@contextmanager
def opened(path: str, level: int = 0) -> Iterator[Any]:
    """A level of a JPEG 2000; whatever is wrong with it is a `BadImage`.

    Raises:
        UserError: rasterio is missing.
    """
    rasterio = library("rasterio", "jp2")
    # Most images have no place on the earth, and nobody asked for one.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    options = {"overview_level": level - 1} if level else {}
    open(path, "rb").close()  # its own errors are those of the system
    try:
        with (
            rasterio.Env(**GDAL),
            rasterio.open(path, driver="JP2OpenJPEG", **options) as image,
        ):
            yield image
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged JPEG 2000: {one_line(error)}") from error


def is_jp2(path: str) -> bool:
    """Whether a file is a JPEG 2000 of which windows are read: one without a palette."""
    with open(path, "rb") as start:
        if not start.read(8).startswith(SIGNATURES):
            return False
    with opened(path) as image:
        return image.colorinterp[0].name != "palette"


def jp2_levels(path: str) -> list[tuple[int, int]]:
    """Height and width of each level, the full one first."""
    with opened(path) as image:
        full, count = image.shape, len(image.overviews(1))
    sizes = [tuple(full)]
    for level in range(1, count + 1):
        with opened(path, level) as image:
            sizes.append(tuple(image.shape))
    return sizes


def jp2_window(path: str, box: Box, max_megapixels: float, level: int = 0) -> bytes:
    """A window of a level as a TIFF with its values, bands and no-data.

    Raises:
        BadImage: the file is damaged, or stored in pieces of more than `max_megapixels`.
        OSError: it cannot be read.
    """
    with opened(path, level) as image:
        rows, columns = image.block_shapes[0]
        in_megapixels(rows, columns, max_megapixels)
        return as_tiff(Raster(pixels_of(image, box), image.nodata))


def pixels_of(image: Any, box: Box) -> np.ndarray:
    """A window [h, w, K] in one of `KINDS`; gray or color with alpha is laid over white."""
    values = image.read(window=((box.top, box.top + box.height), (box.left, box.left + box.width)))
    values = np.ascontiguousarray(values.transpose(1, 2, 0))
    return known_kind(over_white(values) if image.colorinterp[-1].name == "alpha" else values)


def jp2_overview(path: str, coarsest: int, max_megapixels: float, level: int = 0) -> Overview:
    """A level at a smaller scale, as `tiff_overview`."""
    sizes = jp2_levels(path)
    size = sizes[level]
    wanted = max(1, min(coarsest, max(STEP, -(-max(size) // LARGE))))
    in_megapixels(size[0] // wanted + 1, size[1] // wanted + 1, max_megapixels)
    fine = [k for k in range(level, len(sizes)) if size[0] / sizes[k][0] <= wanted]
    scale = size[0] / sizes[fine[-1]][0]
    step, bands = max(1, int(wanted / scale)), []
    with opened(path, fine[-1]) as image:
        height, width = image.shape
        in_megapixels(min(ROWS, height), width, max_megapixels)
        for top in range(0, height, ROWS):
            band = pixels_of(image, Box(top, 0, min(ROWS, height - top), width))
            bands.append(band[-top % step :: step, ::step].copy())
        values = np.concatenate(bands)
        seen = with_nan(values, image.nodata)
    return Overview(seen, step * scale, size, values.dtype.name)


def jp2_place(path: str) -> io.BytesIO:
    """A GeoTIFF of one pixel at the image's place on the earth."""
    with opened(path) as image:
        about = dict(crs=image.crs, transform=image.transform) if image.crs else {}
    with library("rasterio", "jp2").MemoryFile() as memory:
        memory.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8", **about).close()
        return io.BytesIO(memory.read())
