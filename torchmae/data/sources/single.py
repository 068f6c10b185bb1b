"""Images that a user names one by one: files, patterns of paths, arrays."""

import logging
import os
from dataclasses import replace
from glob import glob
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from torchmae.data.config import KINDS, DecodeOptions
from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source
from torchmae.data.sources.arrays import ARRAY_ERRORS
from torchmae.data.sources.files import is_glob
from torchmae.data.sources.source import Pixels, read_file, suffix_of
from torchmae.errors import UserError
from torchmae.settings.python_data import PythonData

logger = logging.getLogger(__name__)

MOST = 8  # of the images of an array


class Named(NamedTuple):
    """An image, and what to call it."""

    name: str
    pixels: Pixels


def expanded(word: str) -> list[str]:
    """The files that a pattern in quotes names; anything else, as what is in Python, is itself."""
    pattern = is_glob(word) and not isinstance(word, PythonData)
    return sorted(glob(word, recursive=True)) if pattern else [word]


def read_named(
    words: tuple[str, ...], options: DecodeOptions, most: int
) -> tuple[list[Named], str]:
    """The images that a user names, decoded, of any size.

    Args:
        words: image files, patterns in quotes, arrays (.npy, .npz: the first 8 images).
        options: how they are decoded; it says the channels.
        most: no more images are read than these.

    Returns:
        The images; in words how many there are more, empty where these are all.

    Raises:
        UserError: a file cannot be read, or a pattern matches none.
    """
    files = []
    for word in words:
        found = expanded(word)
        if not found:
            raise UserError(f"no file matches '{word}': * stands for a name or a part of it")
        files += found
    images: list[Named] = []
    left = list(files)
    while left and len(images) < most:
        path = left.pop(0)
        pixels = read_images(path, options)
        images += map(Named, file_names(path, len(pixels)), pixels)
    cut = bool(left) or len(images) > most
    return images[:most], f"the first {most} images of {len(files)} files are drawn" * cut


def file_names(path: str, count: int) -> list[str]:
    """What the images of a file are called: those of an array are numbered."""
    name = PurePath(path).name
    return [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]


def read_images(path: str, options: DecodeOptions) -> list[Pixels]:
    """The image of a file, or the first ones of an array (.npy, .npz).

    Args:
        path: what the user named; an array of one image, [H, W, C] or [C, H, W], is one image.
        options: how they are decoded; it says the channels.
    """
    if isinstance(path, PythonData):
        return first_images(path, options)
    if suffix_of(path.partition("?")[0]) not in (".npy", ".npz"):
        return [read_image(path, options)]
    one = single_image(path, options.channels or 3)
    if one is None:
        return first_images(path, options)
    try:
        return [decode(one, replace(options, channels=None, bands=None))]
    except BadImage as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_image(path: str, options: DecodeOptions) -> Pixels:
    """A file as pixels; `UserError` where it is none that can be read."""
    try:
        return decode(read_file(path, options), options)
    except IsADirectoryError as error:
        raise UserError(
            f"{path} is a folder: name image files, such as {path.rstrip('/')}/*.jpg"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except BadImage as error:
        raise UserError(f"cannot read {path}: {error}") from error


def single_image(path: str, channels: int) -> Shaped[np.ndarray, "H W C"] | None:
    """A .npy file that is one image of so many channels; None for anything else."""
    if suffix_of(path) != ".npy" or not os.path.isfile(path):
        return None
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except ARRAY_ERRORS:
        return None  # `open_source` says why
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype.name not in KINDS
        or pixels.ndim != 3
        or 0 in pixels.shape
    ):
        return None
    if pixels.shape[2] == channels:
        return np.array(pixels)
    if pixels.shape[0] == channels:
        return np.array(pixels.transpose(1, 2, 0))
    if pixels.shape[2] <= 16 < pixels.shape[1]:  # no grey images are so narrow
        raise UserError(
            f"'{path}' has {pixels.shape[2]} channels, the run takes {channels} (gray images in an "
            "array are [N, H, W])"
        )
    return None


def first_images(path: str, options: DecodeOptions) -> list[Pixels]:
    """The first images of an array of several."""
    source = open_source(path, options)
    if len(source) > MOST:
        logger.info(f"{path}: the first {MOST} of {len(source)} images")
    try:
        return [read_pixels(source, i) for i in range(min(MOST, len(source)))]
    except BadImage as error:
        raise UserError(f"cannot read {path}: {error}") from error
