"""TIFFs that Pillow does not read, or not without loss: by tifffile."""

import io
import re
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree

import numpy as np

from torchmae.data.formats.raster import BadImage, Raster, in_megapixels, known_kind, one_line
from torchmae.data.formats.tiff_pages import stack_pages
from torchmae.errors import library

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_METADATA, GDAL_NODATA = 42112, 42113


def is_tiff(data: bytes) -> bool:
    """Whether bytes are a TIFF or BigTIFF, by their first four."""
    return data[:4] in SIGNATURES


def read_tiff(data: bytes, max_megapixels: float, number: int = 0) -> Raster:
    """One image of a TIFF, the first or one of its stack: of any bands and type, in strips or
    tiles.

    Raises:
        BadImage: whatever is wrong with it.
        UserError: tifffile is missing.
    """
    tifffile = library("tifffile", "tiff")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = slices_of(file, data)[number]
            page = pages[0].keyframe  # whose size and type all have
            in_megapixels(page.imagelength, page.imagewidth, max_megapixels)
            if page.photometric == 3:  # values of a palette mean nothing by themselves
                raise BadImage("a palette of more than 8 bits")
            planes = [channels_last(one.asarray(), page) for one in pages]
            pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
            white_is_zero = page.photometric == 0 and pixels.dtype.kind == "u"
            values = known_kind(np.iinfo(pixels.dtype).max - pixels if white_is_zero else pixels)
            own, first = (nodata_of(one.tags) for one in (page, file.pages[0]))
            nodata = first if own is None else own
            return Raster(values, nodata, band_names(page.tags, values.shape[2]))
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged TIFF: {one_line(error)}") from error


def tiff_pages(data: bytes) -> int:
    """How many pages a TIFF has beside its channels; 1 where that cannot be read."""
    with suppress(Exception), library("tifffile", "tiff").TiffFile(io.BytesIO(data)) as file:
        return len(file.pages) // len(slices_of(file, data)[0])
    return 1


CHANNELS = re.compile(r'^ImageJ=[^\0]*\bchannels=(\d+)|<OME[^\0]* SizeC="(\d+)"')


def has_channel_pages(description: str) -> bool:
    """Whether a TIFF says that its channels are in a page each (ImageJ, OME)."""
    found = CHANNELS.search(description)
    return found is not None and int(found[1] or found[2]) > 1


def count_pages(data: bytes) -> int:
    """How many images of one shape a TIFF has: its stack.

    Raises:
        UserError: tifffile is missing, and the file has its channels in pages.
    """
    pages = stack_pages(data)
    if len(pages) < 2 or not (b"ImageJ=" in data or b"<OME" in data):
        return len(pages)
    tifffile = library("tifffile", "tiff")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return len(slices_of(file, data))
    except Exception:  # hostile bytes can raise anything; reading says what is wrong
        return 1


def slices_of(file: Any, data: bytes) -> list[list[Any]]:
    """The images of a TIFF, each as the pages that hold its channels: one, or one for each where
    the file says so (ImageJ, OME)."""
    return channel_stack(file.series[0]) or [[file.pages[i]] for i in stack_pages(data)]


def channel_pages(file: Any) -> list[Any]:
    """The pages of the first image."""
    return (channel_stack(file.series[0]) or [[file.pages[0]]])[0]


def channel_stack(series: Any) -> list[list[Any]]:
    """The images of a file, or of a level of it, whose channels are in a page each; [] of any
    other."""
    if "C" not in series.axes or series.pages[0].samplesperpixel > 1:
        return []
    place = series.axes.index("C")
    lead = series.shape[:-2]  # T, Z, C, ... in any order
    numbers = np.moveaxis(np.arange(np.prod(lead, dtype=int)).reshape(lead), place, -1)
    return [[series.pages[i] for i in one] for one in numbers.reshape(-1, lead[place]).tolist()]


def channels_last(values: np.ndarray, page: Any) -> np.ndarray:
    """A page, or one like it, as [H, W, K]."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if page.planarconfig == 2 and samples > 1:
        return values.reshape(samples, height, width).transpose(1, 2, 0)
    return values.reshape(height, width, samples)


def nodata_of(tags: Any) -> float | None:
    """What GDAL has noted as no value, by its tag; None where there is none."""
    try:
        text = tags[GDAL_NODATA]
    except KeyError:
        return None
    text = getattr(text, "value", text)
    with suppress(ValueError, TypeError):
        return float(str(text).strip(" \0"))
    return None


def band_names(tags: Any, count: int) -> tuple[str, ...]:
    """The descriptions that GDAL keeps of bands; () unless each band has one."""
    try:
        text = tags[GDAL_METADATA]
    except KeyError:
        return ()
    text = str(getattr(text, "value", text)).strip(" \0")
    if re.search(r"<!(DOCTYPE|ENTITY)", text):  # entities could unfold without end
        return ()
    with suppress(ElementTree.ParseError, ValueError):
        found = {
            int(item.get("sample", "-1")): (item.text or "").strip()
            for item in ElementTree.fromstring(text).iter("Item")
            if item.get("role") == "description"
        }
        if set(found) == set(range(count)) and all(found.values()):
            return tuple(found[i] for i in range(count))
    return ()
