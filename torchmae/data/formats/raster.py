"""Pixels as a file has them, before anything is chosen or converted."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8


class BadImage(ValueError):
    """This image cannot be used. The message is the reason: one line, without the image's name."""


class Raster(NamedTuple):
    """The pixels of a file, in one of `KINDS`.

    `nodata` is the value that the file itself declares to be none, `bands` the names of its
    channels, where it has some.
    """

    pixels: Shaped[np.ndarray, "H W K"]
    nodata: float | None = None
    bands: tuple[str, ...] = ()


EXACT = 2**24  # integers up to here are float32's


def known_kind(values: np.ndarray) -> np.ndarray:
    """The same values in the first type of `KINDS` that has all values of theirs; float64 is
    rounded to float32.

    Raises:
        BadImage: integers or floats beyond float32, or no numbers.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype == np.int8:
        return values.astype(np.int16)
    if values.dtype.name in ("uint8", "uint16", "int16", "float16", "float32"):
        return values
    if values.dtype.kind in "ui":
        if values.size and max(int(values.max()), -int(values.min())) > EXACT:
            raise BadImage(
                f"{values.dtype} values up to {values.max()}, which float32 cannot hold exactly: "
                "save them as float32"
            )
        return values.astype(np.float32)
    if values.dtype != np.float64:
        raise BadImage(f"{values.dtype} values are no pixels")
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if (np.isinf(rounded) & np.isfinite(values)).any():
        raise BadImage("float64 values beyond the range of float32")
    return rounded


def over_white(values: Shaped[np.ndarray, "H W K"]) -> Shaped[np.ndarray, "H W C"]:
    """Gray or color with alpha (2 or 4 channels of integers) over white; others as they are."""
    if values.shape[2] not in (2, 4) or values.dtype.kind != "u":
        return values
    white = np.iinfo(values.dtype).max
    colors, alpha = values[..., :-1].astype(np.float64), values[..., -1:] / white
    return np.rint(colors * alpha + white * (1 - alpha)).astype(values.dtype)


def one_line(error: Exception) -> str:
    """What an error says first, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_megapixels(height: int, width: int, limit: float) -> None:
    """Raises `BadImage` for an image of more megapixels than `limit`, before it is decoded."""
    if height * width > limit * 1e6:
        raise BadImage(f"{height * width / 1e6:.1f} megapixels, more than the limit of {limit:g}")
    if not height * width:
        raise BadImage(f"no pixels: {width} x {height}")


def viewable(pixels: Shaped[np.ndarray, "H W K"]) -> UInt8[np.ndarray, "H W K"]:
    """Pixels for looking at: those of 8 bits as they are, others from their own 1st to 99th
    percentile, each channel by itself, from black to white; what has no value is gray."""
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float32)
    flat = values.reshape(-1, values.shape[2])
    some = flat[:: max(1, len(flat) // 100_000)]
    some = some[np.isfinite(some).all(axis=1)]
    low, high = np.percentile(some if len(some) else np.zeros((1, flat.shape[1])), (1, 99), axis=0)
    shares = (values - low) / np.maximum(high - low, 1e-12)
    return np.rint(np.nan_to_num(shares, nan=0.5).clip(0, 1) * 255).astype(np.uint8)
