"""A look at the whole data set before training: which files are bad, how large images are, their mean and deviation.

What a scan of files found is kept in the user's cache, so that it is made once as long as no file changes.
"""

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable
from zlib import crc32

import numpy as np
from jaxtyping import Float64, Int32
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from torchmae.data.cache.folder import cache_folder
from torchmae.data.decode import BadImage, inspect
from torchmae.data.loader import read_pixels
from torchmae.data.sources.source import BadFile, Source, digest_of
from torchmae.disk import write_whole
from torchmae.errors import UserError
from torchmae.runfolder import note_bad_files
from torchmae.version import __version__

FULL = 20_000  # up to so many images are decoded, a matter of seconds; of larger sets only heads and ends are read


KEPT = ("bad", "sizes", "moments")


MEASURED = 2_000  # images behind mean and deviation


POWERS = (np.arange(256) / 255) ** [
    [1],
    [2],
]  # of what a pixel can be, to be weighed by how many are it


Sizes = Int32[np.ndarray, "N 2"]


Moments = Float64[np.ndarray, "2 C"]


class Scan(NamedTuple):
    """What a scan found. `mean` and `std` are per channel, of pixels in 0..1, every image weighing the same; `height` and
    `width` are medians; `sizes` are the height and width of each image of the source, 0 where it is bad."""

    images: int
    bad: Sequence[BadFile]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    complete: bool
    sizes: Sizes = np.zeros((0, 2), dtype=np.int32)


class Found(NamedTuple):
    """What `Scan` is computed from: the bad images, the sizes, and the mean and the mean square of the pixels of those
    images that were measured."""

    bad: list[BadFile]
    sizes: Sizes
    moments: Moments
    passing: bool = False  # some files could not be read now


@runtime_checkable
class Scanned(Protocol):
    """A source that may know by itself what a scan would find."""

    def scanned(self) -> tuple[Sizes, Moments] | None: ...


class FileStats(NamedTuple):
    """What one file said: its size, the mean and the mean square of its pixels (if decoded), or what is wrong with it."""

    size: tuple[int, int] = (0, 0)
    moments: np.ndarray | None = None
    bad: BadFile | None = None
    passing: bool = False  # it is the system that said no, which may be otherwise next time


def scan(source: Source) -> Scan:
    """Looks at every file, in threads (decoders release the interpreter's lock), with a progress bar; or finds again what was
    kept of it.

    Sets of more than `FULL` images are not decoded whole: headers and ends are checked, `MEASURED` images are decoded; what
    slips through is found, replaced and named while training.
    """
    known = source.scanned() if isinstance(source, Scanned) else None
    bad, sizes, moments, _ = Found([], *known) if known else load_or_scan(source)
    good = sizes[sizes[:, 0] > 0]
    height, width = (int(x) for x in np.median(good, axis=0)) if len(good) else (0, 0)
    mean, square = moments
    std = np.sqrt(
        np.maximum(square - mean**2, 1e-4)
    )  # at least 0.01: a blank data set is not divided by zero
    mean, std = (tuple(x.round(4).tolist()) for x in (mean, std))
    return Scan(
        len(source), [*source.unusable, *bad], height, width, mean, std, len(source) <= FULL, sizes
    )


def load_or_scan(source: Source) -> Found:
    """What a look at all files finds, or found when they were the same."""
    file = cache_file(source)
    found = load_cached(file, len(source)) if file else None
    if found is None:
        found = scan_all(source)
        if file and gives_files(source) and not found.passing:
            save_cached(file, found)
    return found


def scan_all(source: Source) -> Found:
    bad, sizes, moments, passing = [], array("i"), [], False
    for one in inspect_files(source, range(len(source))):
        sizes.extend(one.size)
        passing |= one.passing
        if one.bad:
            bad.append(one.bad)
        if one.moments is not None:
            moments.append(one.moments)
    mean = np.mean(moments, axis=0) if moments else np.zeros((2, source.channels))
    return Found(bad, np.array(sizes, dtype=np.int32).reshape(-1, 2), mean, passing)


def measure(source: Source) -> Moments:
    """The mean and the mean square of the pixels as a scan takes them, without the look at all other images."""
    some = inspect_files(source, range(0, len(source), stride(source)))
    moments = [one.moments for one in some if one.moments is not None]
    return np.mean(moments, axis=0) if moments else np.zeros((2, source.channels))


def stride(source: Source) -> int:
    """Every so many images one is measured."""
    return max(1, len(source) // MEASURED)


def inspect_files(source: Source, which: range) -> Iterator[FileStats]:
    complete, every = len(source) <= FULL, stride(source)

    def look(index: int) -> FileStats:
        try:
            if not complete and index % every:
                data = source.read(index)
                return FileStats(
                    inspect(data, source.decode) if isinstance(data, bytes) else data.shape[:2]
                )
            image = read_pixels(source, index)
            if index % every:
                return FileStats(image.shape[:2])
            counts = [
                np.bincount(one, minlength=256) for one in image.reshape(-1, source.channels).T
            ]
            return FileStats(
                image.shape[:2],
                POWERS @ np.stack(counts, axis=1) / (image.shape[0] * image.shape[1]),
            )
        except (BadImage, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            cause = error.__cause__ if isinstance(error, BadImage) else error
            passing = isinstance(cause, MemoryError) or getattr(cause, "errno", None) is not None
            return FileStats(bad=BadFile(source.name(index), reason), passing=passing)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="scan", total=len(which), unit=" images", disable=None, leave=False) as bar,
    ):
        for first in range(
            0, len(which), 4096
        ):  # not all at once: a million waiting tasks need gigabytes
            for one in pool.map(look, which[first : first + 4096]):
                bar.update()
                yield one


def gives_files(source: Source) -> bool:
    """Whether its images are encoded; a scan of pixels is cheap."""
    try:
        return isinstance(source.read(0), bytes)
    except (BadImage, OSError):
        return True


def cache_file(source: Source) -> Path | None:
    """Where the scan of this very data by these very rules is kept; None where changes of the data cannot be noticed."""
    stamp = source.stamp()
    if stamp is None:
        return None
    versions = __version__, version("pillow"), version("simplejpeg")
    options = source.channels, source.decode.max_megapixels, source.decode.white
    key = digest_of(stamp, *options, FULL, MEASURED, versions)
    return cache_folder("scans") / f"{key}.safetensors"


def load_cached(file: Path, images: int) -> Found | None:
    """What was kept of an earlier scan; None if there is nothing, or nothing whole."""
    try:
        kept = load(file.read_bytes())
        bad, sizes, moments = (kept[name] for name in KEPT)
        if len(sizes) != images or kept["sum"] != checksum(bad, sizes, moments):
            return None
        return Found([BadFile(*pair) for pair in json.loads(bad.tobytes())], sizes, moments)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def save_cached(file: Path, found: Found) -> None:
    """Writes what a scan found into the cache, if that can be done."""
    bad = np.frombuffer(json.dumps(found.bad).encode(), dtype=np.uint8)
    arrays = dict(zip(KEPT, (bad, found.sizes, found.moments)))
    arrays["sum"] = np.array(checksum(*arrays.values()), dtype=np.uint32)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, save(arrays))


def checksum(*arrays: np.ndarray) -> int:
    return crc32(b"".join(x.tobytes() for x in arrays))


def max_bad_files(count: int, percent: float) -> int:
    """How many bad files of `count` a run puts up with: the given share, and at least 20."""
    return max(20, int(count * percent / 100))


def scan_and_report(source: Source, out: Path, max_bad_percent: float = 1.0) -> Scan:
    """Scans the data; bad files are named once in bad-files.jsonl, too many of them are a `UserError`."""
    found = scan(source)
    (out / "bad-files.jsonl").unlink(missing_ok=True)
    note_bad_files(out, found.bad)
    if found.height == 0:  # no image had a size
        raise UserError(
            f"none of {found.images} images can be read; the first: {found.bad[0].name}: {found.bad[0].reason}. "
            f"All are listed in {out / 'bad-files.jsonl'}"
        )
    if len(found.bad) > max_bad_files(found.images, max_bad_percent):
        examples = "; ".join(f"{name}: {reason}" for name, reason in found.bad[:3])
        raise UserError(
            f"{len(found.bad)} of {found.images} images cannot be read, more than --max-bad-percent {max_bad_percent:g} "
            f"and 20 files allow. {examples}. All are listed in {out / 'bad-files.jsonl'}"
        )
    return found
