"""Bytes to pixels: fast where that is exact, safe everywhere. What comes in, and what it becomes:

| the image                        | becomes                                                      |
|----------------------------------|--------------------------------------------------------------|
| 8-bit gray, RGB                  | itself; gray repeated for 3 channels, RGB to luma (BT.601)   |
| 1-bit                            | 0 or 255                                                     |
| palette, CMYK, YCbCr, HSV, LAB   | RGB (LAB where Pillow has Little CMS; else refused)          |
| alpha or a transparent color     | laid over white                                              |
| 16-bit integers, 16-bit floats   | themselves                                                   |
| 32-bit floats                    | themselves; infinite values are none, as NaN                 |
| other integers, 64-bit floats    | 32-bit floats; refused where these cannot hold an integer    |
| with several slices or pages     | DICOM, NIfTI: each slice; TIFF: each page like the first one |
| animated                         | the first frame                                              |
| EXIF orientation 1 to 8          | applied; damaged EXIF counts as none                         |
| empty, truncated, damaged, large | refused; too large is known from the header, before decoding |
| a file of many bytes             | refused before it is read: see `max_bytes`                   |

8-bit images never mix with others: theirs are shares of white, all others are values themselves.
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Integer, Shaped, UInt8
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from torchmae.data.config import DecodeOptions
from torchmae.data.formats import FORMATS, LISTED, format_of
from torchmae.data.formats.raster import BadImage as BadImage
from torchmae.data.formats.raster import Raster, known_kind, over_white
from torchmae.data.formats.tiff import (
    band_names,
    has_channel_pages,
    is_tiff,
    nodata_of,
    read_tiff,
    tiff_pages,
)
from torchmae.data.formats.tiff_pages import stack_pages
from torchmae.errors import UserError, library

# What Pillow reads, without formats that start another program (EPS), are stubs (WMF, BUFR, GRIB,
# HDF5, MPEG), open any inner format (IPTC) or inflate without a limit (FITS). TGA has no signature,
# so it comes last and claims only what no other format does.
SAFE_FORMATS = (
    *(
        "JPEG",
        "MPO",
        "PNG",
        "WEBP",
        "AVIF",
        "HEIF",
        "GIF",
        "TIFF",
        "BMP",
        "DIB",
        "JPEG2000",
        "PPM",
        "ICO",
        "CUR",
        "ICNS",
        "PSD",
    ),
    *(
        "QOI",
        "SGI",
        "PCX",
        "DCX",
        "DDS",
        "FTEX",
        "BLP",
        "FLI",
        "GBR",
        "IM",
        "MSP",
        "PCD",
        "PIXAR",
        "SUN",
        "XBM",
        "XPM",
    ),
    "TGA",
)


@cache
def _formats() -> list[str]:
    Image.init()
    with suppress(ImportError):  # an extra
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [
        name for name in SAFE_FORMATS if name in Image.OPEN
    ]  # MPO is opened as JPEG; AVIF may not be built in


# Pillow logs errors beside raising them, which Python prints where nobody handles them.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# A pixel of any format has at most 8 bytes (four channels of 16 bits); the rest of a file is
# metadata, thumbnails and further pages.
PIXEL_BYTES, OTHER_BYTES = 8, 64 * 10**6


def max_bytes(options: DecodeOptions) -> int:
    """The size in bytes of the largest file that is read."""
    return int(options.max_megapixels * 1e6) * PIXEL_BYTES + OTHER_BYTES


def check_bytes(size: int, options: DecodeOptions) -> None:
    """Raises `BadImage` for a file of more than `max_bytes`, before it is read."""
    most = max_bytes(options)
    if size > most:
        raise BadImage(
            f"{size / 1e6:,.0f} MB, more than the {most / 1e6:,.0f} MB that an image of "
            f"{options.max_megapixels:g} megapixels can need (--max-megapixels)"
        )


def image_extensions() -> frozenset[str]:
    """The file extensions that are read: lower case, with the dot."""
    readable = {*_formats(), "MPO"}
    known = {ext for ext, name in Image.registered_extensions().items() if name in readable}
    return frozenset(known | LISTED)


def extension(data: bytes, options: DecodeOptions = DecodeOptions()) -> str:
    """The usual extension of encoded images of this kind, with the dot."""
    with _pillow(options.max_megapixels):
        other = format_of(data)
        if other is not None:
            return FORMATS[other].extensions[0]
        kind = "TIFF" if is_tiff(data) else _open(data).format
    endings = {name: ending for ending, name in reversed(Image.registered_extensions().items())}
    return ".jpg" if kind in ("JPEG", "MPO") else endings[str(kind)]


Pixels = Shaped[np.ndarray, "H W C"]


class Kind(NamedTuple):
    """What the pixels of an image are."""

    channels: int
    dtype: str


def decode(
    data: bytes | Shaped[np.ndarray, "H W K"], options: DecodeOptions = DecodeOptions()
) -> Pixels:
    """An image to new pixels, by the table above.

    Args:
        data: an encoded image, or pixels.
        options: `channels` None is 3 for an encoded image of 8 bits, and else what there are.

    Returns:
        [H, W, channels] of `options.dtype`; no-data is NaN.

    Raises:
        BadImage: whatever is wrong with this image.
        UserError: pixels have other channels than `options`.
    """
    encoded = isinstance(data, bytes)
    if isinstance(data, bytes):
        raster = read_encoded(data, options)
    else:
        raster = Raster(known_kind(np.array(data)))
    pixels = with_nodata(with_bands(raster, options.bands), raster.nodata, options.nodata)
    pixels = with_dtype(pixels, options.dtype)
    if pixels.size == 0:
        raise BadImage(f"no pixels: {pixels.shape[1]} x {pixels.shape[0]}")
    photo = encoded and options.bands is None and is_photo(pixels)
    channels = options.channels or (3 if photo else pixels.shape[2])
    try:
        return np.require(_with_channels(pixels, channels), requirements=["C", "W"])
    except UserError as error:
        if encoded:  # of files, others may have the right ones
            ways = "take one kind (--include, --exclude), or channels that all have (--bands)"
            raise BadImage(f"{error}: {ways}") from error
        raise


def is_photo(pixels: Pixels) -> bool:
    """Whether pixels are those of a usual picture: 8-bit gray or color."""
    return pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3)


def kind_of(data: bytes, options: DecodeOptions) -> Kind:
    """What `decode` returns for a file, if its channels and type are not chosen.

    Raises:
        BadImage: whatever is wrong with the file.
    """
    plain = options.bands is None and options.nodata is None
    if plain and (data.startswith(b"\xff\xd8") or (data[:4] == b"\x89PNG" and data[24] <= 8)):
        return Kind(3, "uint8")
    pixels = decode(data, replace(options, channels=None, dtype=None))
    return Kind(pixels.shape[2], pixels.dtype.name)


def with_bands(raster: Raster, bands: tuple[str, ...] | None) -> Pixels:
    """The channels of these names or numbers (from 1), in their order; all for None."""
    if bands is None:
        return raster.pixels
    count, places = raster.pixels.shape[2], []
    for band in bands:
        if band in raster.bands:
            places.append(raster.bands.index(band))
        elif band.isdecimal() and 1 <= int(band) <= count:
            places.append(int(band) - 1)
        else:
            have = f"{', '.join(raster.bands)}, or " if raster.bands else "no names, only "
            raise BadImage(f"it has no band {band} (--bands); it has {have}1 to {count}")
    return raster.pixels[:, :, places]


def with_nodata(pixels: Pixels, declared: float | None, requested: float | None) -> Pixels:
    """Pixels whose no-data is NaN: what is not finite, and the value that stands for none.

    Raises:
        BadImage: there is nothing else.
    """
    nodata = declared if requested is None else requested
    if nodata is not None and np.isfinite(nodata):
        pixels = pixels.astype(np.float32)  # which holds all of `KINDS` exactly
        pixels[pixels == np.float32(nodata)] = np.nan
    if pixels.dtype.kind != "f":
        return pixels
    missing = ~np.isfinite(pixels)
    if missing.all() and pixels.size:
        raise BadImage("no values: every pixel is no-data (NaN)")
    return np.where(missing, pixels.dtype.type(np.nan), pixels) if missing.any() else pixels


def with_dtype(pixels: Pixels, dtype: str | None) -> Pixels:
    """The same values as another type; `BadImage` unless that is float32, and holds the same."""
    have = pixels.dtype.name
    if dtype in (None, have):
        return pixels
    if dtype == "float32" and have != "uint8":
        return pixels.astype(np.float32)
    raise BadImage(
        f"{have} pixels, where {dtype} is expected: take one kind (--include, --exclude), convert "
        "the others, or train with --dtype float32, which is for all but 8 bits"
    )


def read_encoded(data: bytes, options: DecodeOptions, number: int = 0) -> Raster:
    """An encoded image as its file has it, turned by its EXIF orientation.

    Args:
        data: the file.
        options: of which the limit counts.
        number: of the slice, or of the page of a TIFF, among those of one shape.

    Raises:
        BadImage: whatever is wrong with it.
        UserError: a library that this kind needs is missing.
    """
    limit = options.max_megapixels
    other = format_of(data)
    if other is not None:
        return FORMATS[other].read(data, number, limit)
    with _pillow(limit):
        try:
            image = _open(data)
            first = None
            if number:  # what the first page says holds for the others, but is not in them
                assert isinstance(image, TiffImagePlugin.TiffImageFile)
                about = str(image.tag_v2.get(TiffImagePlugin.IMAGEDESCRIPTION, ""))
                if has_channel_pages(about):
                    return read_tiff(data, limit, number)
                first = nodata_of(image.tag_v2)
                image.seek(stack_pages(data)[number])
        except BadImage:
            if not is_tiff(data):
                raise
            image = None
        if image is not None and not lossy(data, image):
            pixels = _fast_jpeg(data, image)
            if pixels is None:
                image.load()
                pixels = from_pil(image)
            pixels = _oriented(pixels, _orientation(image))
            if not isinstance(image, TiffImagePlugin.TiffImageFile):
                return Raster(pixels)
            tags = image.tag_v2
            own = nodata_of(tags)
            return Raster(pixels, first if own is None else own, band_names(tags, pixels.shape[2]))
    if is_tiff(data):
        return read_tiff(data, limit, number)
    assert image is not None
    # As in `inspect`: Pillow would decode a whole PNG to find EXIF after the pixels.
    turn = _orientation(image, shallow=b"eXIf" not in data)
    return Raster(_oriented(deep(data, str(image.format)), turn))


def lossy(data: bytes, image: ImageFile.ImageFile) -> bool:
    """Whether Pillow would drop bits or channels of an image."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return not is_whole(image)
    if image.format == "PNG":
        return data[24] > 8 and not image.mode.startswith("I")
    if image.format == "JPEG2000":
        size = data.find(b"\xff\x4f\xff\x51")  # begin of the code, then its sizes
        bits = (data[size + 42] & 0x7F) + 1 if 0 <= size < len(data) - 42 else 8
        return bits > 8 and not image.mode.startswith("I")
    return False


# Samples of a pixel by TIFF's PhotometricInterpretation, as far as Pillow reads them.
SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
SAMPLE_FORMAT, ALPHA = 339, ((1,), (2,))


def is_whole(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow reads all of a TIFF: 8 bits of gray, a palette or color, with or without
    alpha; one channel of 16 bits, or of floats."""
    tags = image.tag_v2
    about = str(tags.get(TiffImagePlugin.IMAGEDESCRIPTION, ""))
    if has_channel_pages(about):
        return False
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    samples = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    kind = set(tags.get(SAMPLE_FORMAT, (1,)))
    if bits > 8:
        right = image.mode == "F" or (image.mode.startswith("I;16") and kind == {1})
        return samples == 1 and right
    own = SAMPLES.get(int(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)), 0)
    extra = tuple(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))
    return kind <= {1, 4} and (samples == own or (samples == own + 1 and extra in ALPHA))


def deep(data: bytes, kind: str) -> Pixels:
    """A color PNG or JPEG 2000 of more than 8 bits: uint16, laid over white where it has alpha."""
    codecs = library("imagecodecs", "tiff")
    reader = {"PNG": codecs.png_decode, "JPEG2000": codecs.jpeg2k_decode}[kind]
    try:
        values = np.atleast_3d(reader(data))
    except Exception as error:
        raise BadImage(f"damaged {kind}: {(str(error).splitlines() or ['?'])[0]}") from error
    return known_kind(over_white(values))


class Stored(NamedTuple):
    """The values of an image as its file has them, without any conversion: those of a mask."""

    values: Integer[np.ndarray, "H W"]
    """Of colors 65536 red + 256 green + blue."""
    format: str
    """Pillow's name, such as "PNG"."""
    colored: bool
    """Whether the values are colors."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """The colors of the values, where the file has a palette."""


def stored_values(data: bytes, options: DecodeOptions = DecodeOptions()) -> Stored:
    """The values of a gray, palette or color image, turned by its EXIF orientation as in `decode`.

    A color image whose channels are equal is gray. Transparency is left out.

    Raises:
        BadImage: whatever is wrong with this image.
    """
    with _pillow(options.max_megapixels):
        opened = _open(data)
        opened.load()
        image: Image.Image = opened
        kind, mode, turn = str(opened.format), opened.mode, _orientation(opened)
        palette: list[int] = image.getpalette("RGB") or [] if mode == "P" else []
        if mode not in ("1", "L", "P", "I", "RGB") and not mode.startswith("I;16"):
            gray = mode in ("LA", "La")
            image = image.convert("L" if gray else "RGB")
        values = np.asarray(image)
    if values.ndim == 2:
        values = values.astype(np.int32)[..., None]
    elif (values == values[..., :1]).all():
        values = values[..., :1].astype(np.int32)
    colored = values.shape[2] == 3
    if colored:
        values = (values.astype(np.int32) @ np.array([65536, 256, 1], np.int32))[..., None]
    colors = tuple(zip(palette[::3], palette[1::3], palette[2::3]))
    values = _oriented(values, turn)[..., 0]
    return Stored(np.ascontiguousarray(values), kind, colored, colors)


def inspect(data: bytes, options: DecodeOptions = DecodeOptions()) -> tuple[int, int]:
    """(height, width) of what `decode` would return, from header and end alone where Pillow reads
    the format.

    Raises:
        BadImage: for what these show.
    """
    if format_of(data) is not None:
        height, width, _ = read_encoded(data, options).pixels.shape
        return height, width
    with _pillow(options.max_megapixels):
        try:
            image = _open(data)
        except BadImage:
            if not is_tiff(data):
                raise
            height, width, _ = read_tiff(data, options.max_megapixels).pixels.shape
            return height, width
        # Pillow would decode a whole PNG to find EXIF after the pixels, even where there is none.
        turn = _orientation(image, shallow=image.format == "PNG" and b"eXIf" not in data)
        width, height = image.size
    return (width, height) if turn > 4 else (height, width)


class Encoding(NamedTuple):
    """How an image is stored: format, channels, bits of a sample; names of its channels and the
    value that stands for none, where it declares these."""

    format: str
    channels: int
    bits: int
    bands: tuple[str, ...] = ()
    nodata: float | None = None

    def words(self) -> str:
        """Such as "JPEG, 3 channels of 8 bits"."""
        bits = f"{self.bits} bit{'s' * (self.bits > 1)}"
        words = f"{self.format}, {self.channels} channel{'s' * (self.channels > 1)} of {bits}"
        if self.bands:
            words += f" ({', '.join(self.bands)})"
        return words if self.nodata is None else f"{words}, no-data {self.nodata:g}"


# Bits of a sample in Pillow's modes, where these are not 8.
MODE_BITS = {"1": 1, "I": 32, "F": 32}


def encoding(data: bytes, options: DecodeOptions = DecodeOptions()) -> Encoding:
    """How an image that `decode` accepts is stored, from its header.

    Raises:
        BadImage: for what the header shows.
    """
    other = format_of(data)
    with _pillow(options.max_megapixels):
        try:
            image = _open(data)
        except BadImage:
            if other is None and not is_tiff(data):
                raise
            raster = read_encoded(data, options)
            channels, bits = raster.pixels.shape[2], 8 * raster.pixels.dtype.itemsize
            return Encoding(other or "TIFF", channels, bits, raster.bands, raster.nodata)
        bits = 16 if image.mode.startswith("I;16") else MODE_BITS.get(image.mode, 8)
        if image.format == "PNG":  # Pillow's mode has not the bits of 16-bit color, nor of 1 to 4
            bits = data[24]
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            tags, channels = image.tag_v2, len(image.getbands())
            bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (bits,)))
            return Encoding("TIFF", channels, bits, band_names(tags, channels), nodata_of(tags))
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        return Encoding(kind, len(image.getbands()), bits)


def has_more_pages(data: bytes, options: DecodeOptions = DecodeOptions()) -> bool:
    """Whether an image that `inspect` accepts is a stack or an animation: `decode` returns its
    first page or frame. The preview in a photograph of two cameras (MPO) does not count."""
    # The others are not opened again: nearly all files are JPEGs and plain PNGs.
    may = data.startswith((b"GIF8", b"II", b"MM", b"RIFF")) or b"acTL" in data[:4096]
    if not may:
        return False
    with _pillow(options.max_megapixels):
        try:
            return bool(getattr(_open(data), "is_animated", False))
        except BadImage:
            return is_tiff(data) and tiff_pages(data) > 1


def from_pil(image: Image.Image) -> Shaped[np.ndarray, "H W C"]:
    """A Pillow image to pixels [H, W, 1 or 3], by the table above.

    Raises:
        BadImage: the table has no row for it.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "I" and values.size and values.min() >= 0 and values.max() < 2**16:
            values = values.astype(np.uint16)  # a PGM of 16 bits
        return known_kind(values)[:, :, None]
    if image.mode == "F":
        return np.array(image)[:, :, None]
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert(
            "RGBA"
        )  # La converts to LA alone
        over = Image.new("RGB", image.size, "white")
        over.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return np.array(over)
    return (
        np.array(image.convert("L"))[:, :, None]
        if image.mode in ("1", "L")
        else np.array(image.convert("RGB"))
    )


def _with_channels(pixels: Shaped[np.ndarray, "H W K"], channels: int) -> Pixels:
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if (have, channels) == (1, 3):
        return np.concatenate((pixels, pixels, pixels), axis=2)  # half the time of np.repeat
    if (have, channels) == (3, 1) and pixels.dtype != np.uint8:
        luma = (pixels.astype(np.float64) @ LUMA)[:, :, None]
        return (np.rint(luma) if pixels.dtype.kind in "ui" else luma).astype(pixels.dtype)
    if (have, channels) == (3, 1):
        return np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    raise UserError(
        f"the images have {have} channels, which cannot become {channels}; only 1 and 3 convert "
        "to each other"
    )


LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue (BT.601)


def _open(data: bytes) -> ImageFile.ImageFile:
    if not data:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise BadImage("not an image, or not of a format that is read") from error
    if 0 in image.size:
        raise BadImage(f"no pixels: {image.width} x {image.height}")
    # From the end, where the marker is: to search from the scan takes 6 % of the whole decoding.
    if image.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9", _jpeg_scan(data)) < 0:
        raise BadImage("truncated JPEG: no end marker")
    if image.format == "PNG" and b"IEND" not in data[-12:] and data.rfind(b"IEND") < 0:
        raise BadImage("truncated PNG: no end chunk")
    return image


def _jpeg_scan(data: bytes) -> int:
    """Where the first scan begins: an embedded thumbnail before it has an end marker of its own."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        # A marker may be preceded by any number of fill bytes 0xff.
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def _fast_jpeg(data: bytes, image: Image.Image) -> UInt8[np.ndarray, "H W K"] | None:
    """An RGB or grey JPEG, bit for bit as Pillow decodes it; None where Pillow has to judge."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    try:
        space = "GRAY" if image.mode == "L" else "RGB"
        pixels = simplejpeg.decode_jpeg(data, colorspace=space, fastdct=False, fastupsample=False)
    except Exception:  # libjpeg's complaints, which Pillow may forgive
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


def _orientation(image: Image.Image, shallow: bool = False) -> int:
    if image.format == "TIFF":  # Pillow turns it by itself
        return 1
    try:
        exif = Image.Image.getexif(image) if shallow else image.getexif()
        turn = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF does not make a bad picture
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _oriented(pixels: Shaped[np.ndarray, "H W K"], turn: int) -> Shaped[np.ndarray, "Y X K"]:
    if turn > 4:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if turn in (2, 3, 6, 7) else pixels


_guard = threading.Lock()
_inside: list[int] = []  # the limits of the threads that are inside `_pillow`
_before: list[Any] = []  # what the first of them found


@contextmanager
def _pillow(max_megapixels: float) -> Iterator[None]:
    """Pillow's errors as `BadImage`, its limit of pixels set to ours, its warnings silent.

    The limit also guards images inside images (ICO, ICNS). It holds until the last thread has left.
    """
    limit = int(max_megapixels * 1e6)
    with _guard:
        if not _inside:
            quiet = warnings.catch_warnings()
            _before[:] = [quiet, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES]
            quiet.__enter__()
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _inside.append(limit)
        Image.MAX_IMAGE_PIXELS = max(_inside)
    try:
        yield
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        number = re.search(r"\((\d+) pixels", str(error))
        size = f"{int(number[1]) / 1e6:.1f} megapixels" if number else "so large when unpacked"
        raise BadImage(f"{size}, more than the limit of {max_megapixels:g}") from error
    except Exception as error:  # hostile bytes can raise anything inside Pillow
        raise BadImage((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    finally:
        with _guard:
            _inside.remove(limit)
            if not _inside:
                quiet, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _before
                quiet.__exit__(None, None, None)
