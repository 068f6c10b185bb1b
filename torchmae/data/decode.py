"""Bytes to pixels: fast where that is exact, safe everywhere. What comes in, and what it becomes:

| the image                        | becomes                                                      |
|----------------------------------|--------------------------------------------------------------|
| 8-bit grey, RGB                  | itself; grey repeated for 3 channels, RGB to luma (BT.601)   |
| 1-bit                            | 0 or 255                                                     |
| palette, CMYK, YCbCr, HSV, LAB   | RGB (LAB where Pillow has Little CMS; else refused)          |
| alpha or a transparent colour    | laid over white                                              |
| 16-bit grey (or 32-bit integer)  | 0..white to 0..255, rounded; refused if clipped or black     |
| 16-bit RGB                       | the high byte of each sample (Pillow reads no more)          |
| 32-bit float                     | refused: no defined white                                    |
| animated or with several pages   | the first frame                                              |
| EXIF orientation 1 to 8          | applied; damaged EXIF counts as none                         |
| empty, truncated, damaged, large | refused; too large is known from the header, before decoding |
| a file of many bytes             | refused before it is read: see `max_bytes`                   |
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Integer, UInt8
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from torchmae.data.config import DecodeOptions
from torchmae.errors import UserError


class BadImage(ValueError):
    """This image cannot be used. The message is the reason: one line, without the image's name."""


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
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in readable)


def extension(data: bytes, options: DecodeOptions = DecodeOptions()) -> str:
    """The usual extension of encoded images of this kind, with the dot."""
    with _pillow(options.max_megapixels):
        kind = _open(data).format
    endings = {name: ending for ending, name in reversed(Image.registered_extensions().items())}
    return ".jpg" if kind in ("JPEG", "MPO") else endings[str(kind)]


def decode(
    data: bytes | UInt8[np.ndarray, "H W K"], options: DecodeOptions = DecodeOptions()
) -> UInt8[np.ndarray, "H W C"]:
    """An image to new uint8 pixels, by the table above.

    Args:
        data: an encoded image, or pixels.
        options: `channels` None is 3 for an encoded image, and what pixels have.

    Returns:
        uint8 [H, W, channels].

    Raises:
        BadImage: whatever is wrong with this image.
        UserError: no image of the kind could have that many channels.
    """
    channels = options.channels or (3 if isinstance(data, bytes) else data.shape[2])
    if isinstance(data, bytes):
        if channels not in (1, 3):
            raise UserError(
                f"image files give 1 or 3 channels, not {channels}; for {channels} use an array "
                "(.npy, .npz)"
            )
        with _pillow(options.max_megapixels):
            image = _open(data)
            pixels = _fast_jpeg(data, image)
            if pixels is None:
                image.load()
                pixels = from_pil(image, options.white)
            pixels = _oriented(pixels, _orientation(image))
    else:
        pixels = np.array(data)
    if pixels.size == 0:
        raise BadImage(f"no pixels: {pixels.shape[1]} x {pixels.shape[0]}")
    return np.require(_with_channels(pixels, channels), requirements=["C", "W"])


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
    """(height, width) of what `decode` would return, from header and end alone.

    Raises:
        BadImage: for what these show.
    """
    with _pillow(options.max_megapixels):
        image = _open(data)
        # Pillow would decode a whole PNG to find EXIF after the pixels, even where there is none.
        turn = _orientation(image, shallow=image.format == "PNG" and b"eXIf" not in data)
        width, height = image.size
    return (width, height) if turn > 4 else (height, width)


class Encoding(NamedTuple):
    """How an image is stored: format, channels, bits of a sample."""

    format: str
    channels: int
    bits: int

    def words(self) -> str:
        """Such as "JPEG, 3 channels of 8 bits"."""
        bits = f"{self.bits} bit{'s' * (self.bits > 1)}"
        return f"{self.format}, {self.channels} channel{'s' * (self.channels > 1)} of {bits}"


# Bits of a sample in Pillow's modes, where these are not 8.
MODE_BITS = {"1": 1, "I": 32, "F": 32}


def encoding(data: bytes, options: DecodeOptions = DecodeOptions()) -> Encoding:
    """How an image that `decode` accepts is stored, from its header.

    Raises:
        BadImage: for what the header shows.
    """
    with _pillow(options.max_megapixels):
        image = _open(data)
        bits = 16 if image.mode.startswith("I;16") else MODE_BITS.get(image.mode, 8)
        if image.format == "PNG":  # Pillow's mode has not the bits of 16-bit color, nor of 1 to 4
            bits = data[24]
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (bits,)))
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
        return bool(getattr(_open(data), "is_animated", False))


def from_pil(image: Image.Image, white: int = 65535) -> UInt8[np.ndarray, "H W C"]:
    """A Pillow image to uint8 pixels [H, W, 1 or 3], by the table above.

    Raises:
        BadImage: the table has no row for it.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled(np.asarray(image).astype(np.int64), white)[:, :, None]
    if image.mode == "F":
        raise BadImage("32-bit float has no defined white; save it as 8- or 16-bit")
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


def _scaled(values: Integer[np.ndarray, "H W"], white: int) -> UInt8[np.ndarray, "H W"]:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0:
        raise BadImage(f"negative values, down to {low}")
    if high > white:
        raise BadImage(f"would clip: its values reach {high}, above --white {white}")
    if 0 < high <= white / 16:
        raise BadImage(
            f"would turn nearly black: its values reach only {high} of {white}; set --white"
        )
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _with_channels(pixels: UInt8[np.ndarray, "H W K"], channels: int) -> UInt8[np.ndarray, "H W C"]:
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if (have, channels) == (1, 3):
        return np.concatenate((pixels, pixels, pixels), axis=2)  # half the time of np.repeat
    if (have, channels) == (3, 1):
        return np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    raise UserError(
        f"the images have {have} channels, which cannot become {channels}; only 1 and 3 convert "
        "to each other"
    )


def _open(data: bytes) -> ImageFile.ImageFile:
    if not data:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise BadImage(_unidentified(data)) from error
    if 0 in image.size:
        raise BadImage(f"no pixels: {image.width} x {image.height}")
    # From the end, where the marker is: to search from the scan takes 6 % of the whole decoding.
    if image.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9", _jpeg_scan(data)) < 0:
        raise BadImage("truncated JPEG: no end marker")
    if image.format == "PNG" and b"IEND" not in data[-12:] and data.rfind(b"IEND") < 0:
        raise BadImage("truncated PNG: no end chunk")
    return image


def _unidentified(data: bytes) -> str:
    """Why no format claims the bytes: TIFFs are described by their tags, if these can be read."""
    what = "not an image, or not of a format that is read"
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return what
    with suppress(Exception):  # damaged tags
        big = b"+" in data[:4]
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        if not tags[TiffImagePlugin.IMAGEWIDTH]:
            raise ValueError("no image")
        bands = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
        depths = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        kind = ("", "unsigned ", "signed ", "float ")[
            tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] % 4
        ]
        return (
            f"a TIFF of {bands} band{'s' * (bands > 1)} of {kind}{depths[0]} bits: not read yet; "
            "convert the images to one array of uint8 [N, H, W, C] in a .npy file"
        )
    return f"{what} (a TIFF whose tags are damaged)"


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


def _oriented(pixels: Integer[np.ndarray, "H W K"], turn: int) -> Integer[np.ndarray, "Y X K"]:
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
