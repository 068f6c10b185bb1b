"""A look at the whole data set before training: which files are bad, how large images are, their mean and deviation."""

import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from torchmae.data.decode import BadImage, inspect
from torchmae.data.loader import read
from torchmae.data.sources import BadFile, Source

FULL = 20_000  # up to so many images are decoded, a matter of seconds; of larger sets only heads and ends are read
MEASURED = 2_000  # images behind mean and deviation


class Scan(NamedTuple):
    """What a scan found. `mean` and `std` are per channel, of pixels in 0..1, every image weighing the same; `height` and
    `width` are medians."""

    images: int
    bad: Sequence[BadFile]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    complete: bool


class Look(NamedTuple):
    """What one file said: its size, the mean and the mean square of its pixels (if decoded), or what is wrong with it."""

    size: tuple[int, int] | None = None
    moments: np.ndarray | None = None
    bad: BadFile | None = None


def scan(source: Source, channels: int, max_megapixels: float, white: int) -> Scan:
    """Looks at every file, in threads (decoders release the interpreter's lock), with a progress bar.

    Sets of more than `FULL` images are not decoded whole: headers and ends are checked, `MEASURED` images are decoded; what
    slips through is found, replaced and named while training.
    """
    complete = len(source) <= FULL
    every = max(1, len(source) // MEASURED)

    def look(index: int) -> Look:
        try:
            if not complete and index % every:
                data = source.read(index)
                return Look(inspect(data, max_megapixels) if isinstance(data, bytes) else data.shape[:2])
            image = read(source, index, channels, max_megapixels, white)
            if index % every:
                return Look(image.shape[:2])
            pixels = image.reshape(-1, channels).astype(np.float64) / 255
            return Look(image.shape[:2], np.stack([pixels.mean(0), np.square(pixels).mean(0)]))
        except (BadImage, OSError) as error:
            return Look(bad=BadFile(source.name(index), getattr(error, "strerror", None) or str(error)))

    bad, sizes, moments = [*source.unusable], array("l"), []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="scan", total=len(source), unit=" images", disable=None, leave=False) as bar,
    ):
        for first in range(0, len(source), 4096):  # not all at once: a million waiting tasks need gigabytes
            for one in pool.map(look, range(first, min(first + 4096, len(source)))):
                bar.update()
                if one.bad:
                    bad.append(one.bad)
                if one.size:
                    sizes.extend(one.size)
                if one.moments is not None:
                    moments.append(one.moments)
    mean, square = np.mean(moments, axis=0) if moments else np.zeros((2, channels))
    std = np.sqrt(np.maximum(square - mean**2, 1e-4))  # at least 0.01: a blank data set is not divided by zero
    height, width = (int(x) for x in np.median(np.array(sizes or [0, 0]).reshape(-1, 2), axis=0))
    return Scan(len(source), bad, height, width, tuple(mean.round(4).tolist()), tuple(std.round(4).tolist()), complete)


def bad_budget(count: int, percent: float) -> int:
    """How many bad files of `count` a run puts up with: the given share, and at least 20."""
    return max(20, int(count * percent / 100))
