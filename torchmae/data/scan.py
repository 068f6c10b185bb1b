"""A scan of the data set before training: bad files, sizes, mean and std.

The scan of a set of files is cached, so that it is made once as long as no file changes.
"""

import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float64, Int32
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from torchmae.data import workers
from torchmae.data.decode import BadImage, has_more_pages, inspect
from torchmae.data.loader import to_pixels
from torchmae.data.sources.source import BadFile, Pixels, Source, digest_of
from torchmae.disk import cache_folder, write_text, write_whole
from torchmae.errors import UserError, printable
from torchmae.runfolder import DATA_SHEET, note_bad_files
from torchmae.scaling import PERCENTILES, Scaling, scaled
from torchmae.version import __version__

logger = logging.getLogger(__name__)

T = TypeVar("T")

# So many images are all decoded, in seconds; of larger sets only headers and ends are read.
FULL = 20_000

MEASURED = 2_000  # images behind mean and std

CACHED = ("bad", "sizes", "moments", "stacks", "shares", "window")

PLAIN, AS_THEY_ARE = ("none",), Scaling()  # values of --scale, and what becomes of them

SAMPLED, OF_EACH = 200, 10_000  # images, and values of each channel, behind percentiles

POWERS = (np.arange(256) / 255) ** [[1], [2]]  # of pixel values, to be weighted by a histogram


Sizes = Int32[np.ndarray, "N 2"]


Moments = Float64[np.ndarray, "2 C"]


class Scan(NamedTuple):
    """What a scan found.

    `mean` and `std` are per channel. Of 8-bit images they are those of pixels in 0..1, every image
    with the same weight; of others those of the values that there are, after `scaling`, every value
    with the same weight. `height` and `width` are medians; `sizes` are (height, width) of each
    image of the source, 0 where it is bad; `stacks` are files with more pages than the first (not
    known of packed sets); `missing` is the share of values that are no-data, `outside` that of
    values outside of the window of `scaling`.
    """

    images: int
    bad: Sequence[BadFile]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    complete: bool
    stacks: int = 0
    scaling: Scaling | None = None
    missing: float = 0.0
    outside: float = 0.0
    sizes: Sizes = np.zeros((0, 2), dtype=np.int32)

    @property
    def grey(self) -> bool:
        """Whether the images have no colour: one channel, or three that are equal throughout."""
        return len(self.mean) == 1 or (
            len(self.mean) == 3 and len(set(self.mean)) == len(set(self.std)) == 1
        )

    def sheet(self) -> dict[str, Any]:
        """What is known, in a few numbers: for the report."""
        good = self.sizes[self.sizes[:, 0] > 0]
        ends = (
            {"smallest": good.min(0).tolist(), "largest": good.max(0).tolist()} if len(good) else {}
        )
        return {
            "images": self.images,
            "bad": len(self.bad),
            "median": [self.height, self.width],
            **ends,
            "mean": list(self.mean),
            "std": list(self.std),
            "gray": self.grey,
            "stacks": self.stacks,
            "all_decoded": self.complete,
        }


class Found(NamedTuple):
    """Bad images, sizes, mean and mean square of the pixels of the images that were measured, how
    many files have several pages, the shares of values that are missing, and outside of the window
    (its ends by channel)."""

    bad: list[BadFile]
    sizes: Sizes
    moments: Moments
    stacks: int = 0
    shares: np.ndarray = np.zeros(2)
    window: np.ndarray = np.zeros((2, 0))
    worth_caching: bool = False  # files were decoded, and none failed for what may pass


@runtime_checkable
class Scanned(Protocol):
    """A source that may know by itself what a scan would find."""

    def scanned(self) -> tuple[Sizes, Moments] | None: ...


class Measured(NamedTuple):
    """Mean and mean square of the pixels of an image by channel, of how many values; how many there
    are, and how many of these are missing and outside of the window."""

    moments: Moments
    counts: np.ndarray
    values: int
    missing: int = 0
    outside: int = 0


class FileStats(NamedTuple):
    """Size, and what was measured (if decoded), of a file; or why it is bad."""

    size: tuple[int, int] = (0, 0)
    moments: Measured | None = None
    bad: BadFile | None = None
    temporary: bool = False  # the system refused, which may be different next time
    stack: bool = False  # it has more pages than the first
    encoded: bool = True  # a file, not pixels, whose scan is cheap


def scan(source: Source, scale: tuple[Any, ...] = PLAIN) -> Scan:
    """Reads every file in threads (decoders release the GIL), or finds the cached scan.

    Sets of more than `FULL` images are not decoded: headers and ends are checked, and `MEASURED`
    images are decoded. Bad files that this misses are found, replaced and named while training.

    Args:
        source: the images.
        scale: the value of --scale, for pixels that are not of 8 bits; or a `Scaling`.
    """
    known = source.scanned() if isinstance(source, Scanned) else None
    found = Found([], *known) if known else load_or_scan(source, scale)
    bad, sizes, moments, stacks, (missing, outside), window, _ = found
    good = sizes[sizes[:, 0] > 0]
    height, width = (int(x) for x in np.median(good, axis=0)) if len(good) else (0, 0)
    mean, square = moments
    scaling = None
    if source.dtype == "uint8":
        std = np.sqrt(
            np.maximum(square - mean**2, 1e-4)
        )  # at least 0.01: a blank data set is not divided by zero
        mean, std = mean.round(4), std.round(4)
    else:
        std = np.sqrt(np.maximum(square - mean**2, 0))
        std[std <= 1e-6 * np.abs(mean)] = 1.0  # blank, up to rounding
        scaling = Scaling("window" if window.size else scale[0], *map(tuple, window.tolist()))
    bad = [*source.unusable, *bad]
    complete = len(source) <= FULL
    known_of_all = (complete, stacks, scaling, float(missing), float(outside), sizes)
    mean, std = tuple(mean.tolist()), tuple(std.tolist())
    return Scan(len(source), bad, height, width, mean, std, *known_of_all)


def load_or_scan(source: Source, scale: tuple[Any, ...] = PLAIN) -> Found:
    """The cached scan of the same data, or a new one."""
    file = cache_file(source, scale)
    found = load_cached(file, len(source)) if file else None
    if found is None:
        found = scan_all(source, scale)
        if file and found.worth_caching:
            save_cached(file, found)
    return found


def scan_all(source: Source, scale: tuple[Any, ...] = PLAIN) -> Found:
    scaling = settled(source, scale)
    bad: list[BadFile] = []
    sizes = array("i")
    moments = []
    stacks = 0
    worth_caching = True
    for one in inspect_files(source, range(len(source)), scaling):
        sizes.extend(one.size)
        stacks += one.stack
        worth_caching &= one.encoded and not one.temporary
        if one.bad:
            bad.append(one.bad)
        if one.moments is not None:
            moments.append(one.moments)
    sizes_of_all = np.array(sizes, dtype=np.int32).reshape(-1, 2)
    values = max(1, sum(one.values for one in moments))
    shares = np.array([sum(one[i] for one in moments) / values for i in (3, 4)])
    window = np.array([scaling.low, scaling.high], dtype=np.float64)
    return Found(bad, sizes_of_all, merged(source, moments), stacks, shares, window, worth_caching)


def measure(source: Source, scaling: Scaling = AS_THEY_ARE) -> Moments:
    """Mean and mean square of the pixels as a scan finds them, without reading all images."""
    some = inspect_files(source, range(0, len(source), stride(source)), scaling)
    return merged(source, [one.moments for one in some if one.moments is not None])


def merged(source: Source, images: Sequence[Measured]) -> Moments:
    """Those of several images together: see `Scan`."""
    if not images:
        return np.zeros((2, source.channels))
    moments = np.stack([one.moments for one in images])
    if source.dtype == "uint8":
        return np.mean(moments, axis=0)
    counts = np.stack([one.counts for one in images])[:, None].astype(np.float64)
    return (moments * counts).sum(0) / np.maximum(counts.sum(0), 1)


def settled(source: Source, scale: tuple[Any, ...]) -> Scaling:
    """What --scale means for these images: its percentiles are measured."""
    if isinstance(scale, Scaling):
        return scale
    kind, *ends = scale
    if source.dtype == "uint8" and kind != "none":
        raise UserError(
            f"--scale {kind} is for more than 8 bits and for floats, and the images are uint8: "
            "leave it out"
        )
    if kind == "window":
        low, high = ((float(end),) * source.channels for end in ends)
        return Scaling(kind, low, high)
    if kind != "percentile":
        return Scaling(kind)
    values = []
    for i in range(0, len(source), max(1, len(source) // SAMPLED)):
        with suppress(BadImage, OSError):
            flat = to_pixels(source, source.read(i)).reshape(-1, source.channels)
            values.append(flat[:: max(1, len(flat) // OF_EACH)].astype(np.float32))
    if not values:
        return Scaling()  # no image can be read: the scan says so
    ends_of = np.nanpercentile(np.concatenate(values), PERCENTILES, axis=0)
    low, high = ends_of[0], np.maximum(ends_of[1], np.nextafter(ends_of[0], np.inf))
    return Scaling("window", tuple(low.tolist()), tuple(high.tolist()))


def stride(source: Source) -> int:
    """One in so many images is measured."""
    return max(1, len(source) // MEASURED)


def inspect_files(
    source: Source, which: range, scaling: Scaling = AS_THEY_ARE
) -> Iterator[FileStats]:
    complete = len(source) <= FULL
    every = stride(source)

    reading: dict[int, None] = {}  # by the threads, now

    def inspect_file(index: int) -> FileStats:
        reading[index] = None
        try:
            data = source.read(index)
            moments = None
            if complete or index % every == 0:
                image = to_pixels(source, data)
                size = image.shape[:2]
                moments = None if index % every else measured(image, scaling)
            else:
                size = inspect(data, source.decode) if isinstance(data, bytes) else data.shape[:2]
            if not isinstance(data, bytes):
                return FileStats(size, moments, encoded=False)
            return FileStats(size, moments, stack=has_more_pages(data, source.decode))
        except (BadImage, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            cause = error.__cause__ if isinstance(error, BadImage) else error
            temporary = isinstance(cause, MemoryError) or getattr(cause, "errno", None) is not None
            return FileStats(bad=BadFile(source.name(index), reason), temporary=temporary)
        finally:
            del reading[index]

    def names() -> list[str]:
        return [printable(source.name(i)) for i in list(reading)]

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="scan", total=len(which), unit=" images", disable=None, leave=False) as bar,
    ):
        for first in range(0, len(which), 4096):  # a million waiting tasks would need gigabytes
            tasks = [pool.submit(inspect_file, i) for i in which[first : first + 4096]]
            for task in tasks:
                yield awaited(task, names)
                bar.update()


def awaited(task: Future[T], names: Callable[[], list[str]]) -> T:
    """The result of a task; the files that are being read are named while it does not come, as
    `Loading.wait` does."""
    waited, limit = 0.0, workers.STALL_SECONDS
    while not wait([task], timeout=limit - waited).done:
        workers.say_waiting(limit, names())
        waited, limit = limit, 2 * limit
    return task.result()


def moments_of(image: Pixels) -> Moments:
    """Mean and mean square of the pixels of an image in 0..1, for each channel."""
    height, width, channels = image.shape
    counts = [np.bincount(one, minlength=256) for one in image.reshape(-1, channels).T]
    return POWERS @ np.stack(counts, axis=1) / (height * width)


def measured(image: Pixels, scaling: Scaling) -> Measured:
    """What a scan keeps of the pixels of an image."""
    height, width, channels = image.shape
    if image.dtype == np.uint8:
        return Measured(moments_of(image), np.full(channels, height * width), image.size)
    values = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)
    window = torch.tensor([scaling.low, scaling.high], dtype=torch.float64).view(2, -1, 1, 1)
    there = ~values.isnan()
    beyond = torch.zeros_like(there)
    if scaling.low:
        beyond = values.ne(scaled(values, "window", window)) & there
    kept = scaled(values, scaling.kind, window).nan_to_num_(0.0)
    counts = there.sum((1, 2))
    sums = torch.stack([kept.sum((1, 2)), kept.square().sum((1, 2))])
    return Measured(
        (sums / counts.clamp(min=1)).numpy(),
        counts.numpy(),
        image.size,
        int((~there).sum()),
        int(beyond.sum()),
    )


def cache_file(source: Source, scale: tuple[Any, ...] = PLAIN) -> Path | None:
    """Where the scan of this data is cached; None if changes of it cannot be noticed."""
    stamp = source.stamp()
    if stamp is None:
        return None
    versions = __version__, version("pillow"), version("simplejpeg")
    decode = source.decode
    chosen = decode.max_megapixels, decode.nodata, decode.bands
    options = source.channels, source.dtype, *chosen, scale
    key = digest_of(stamp, *options, FULL, MEASURED, versions)
    return cache_folder("scans") / f"{key}.safetensors"


def load_cached(file: Path, images: int) -> Found | None:
    """An earlier scan; None if there is none, or not a whole one."""
    try:
        kept = load(file.read_bytes())
        arrays = [kept[name] for name in CACHED]
        bad, sizes, moments, stacks, shares, window = arrays
        if len(sizes) != images or kept["sum"] != checksum(*arrays):
            return None
        files = [BadFile(*pair) for pair in json.loads(bad.tobytes())]
        return Found(files, sizes, moments, int(stacks), shares, window)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def save_cached(file: Path, found: Found) -> None:
    """Writes a scan into the cache, if that is possible."""
    bad = np.frombuffer(json.dumps(found.bad).encode(), dtype=np.uint8)
    stacks = np.array(found.stacks, dtype=np.int64)
    arrays: dict[str, np.ndarray] = dict(
        zip(
            CACHED,
            (bad, found.sizes, found.moments, stacks, found.shares, found.window),
            strict=True,
        )
    )
    arrays["sum"] = np.array(checksum(*arrays.values()), dtype=np.uint32)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, save(arrays))


def checksum(*arrays: np.ndarray) -> int:
    return crc32(b"".join(x.tobytes() for x in arrays))


def max_bad_files(count: int, percent: float) -> int:
    """How many of `count` files may be bad: the given share, and at least 20."""
    return max(20, int(count * percent / 100))


def scan_and_report(
    source: Source, out: Path, max_bad_percent: float = 1.0, scale: tuple[Any, ...] = PLAIN
) -> Scan:
    """Scans the data and writes bad-files.jsonl.

    Args:
        source: the images.
        out: the run folder.
        max_bad_percent: share of bad files that is allowed; 20 files always are.
        scale: the value of --scale.

    Raises:
        UserError: too many images are bad.
    """
    found = scan(source, scale)
    (out / "bad-files.jsonl").unlink(missing_ok=True)
    note_bad_files(out, found.bad)
    listed = f"All are listed in {out / 'bad-files.jsonl'}"
    if found.height == 0:  # no image had a size
        raise UserError(
            f"none of {found.images} images can be read; the first: {found.bad[0]}. {listed}"
        )
    if len(found.bad) > max_bad_files(found.images, max_bad_percent):
        examples = "; ".join(map(str, found.bad[:3]))
        raise UserError(
            f"{len(found.bad)} of {found.images} images cannot be read, more than "
            f"--max-bad-percent {max_bad_percent:g} and 20 files allow. {examples}. {listed}"
        )
    if found.missing:
        logger.info(f"{found.missing:.2%} of the values are no-data: not learned, not measured")
    if found.scaling is not None and found.scaling.low:
        logger.info(
            f"{found.outside:.2%} of the values are outside of the {found.scaling.words()}, and "
            "are cut to it (--scale)"
        )
    if found.bad:
        share = len(found.bad) / found.images
        log = logger.warning if share > 0.1 else logger.info
        log(f"{len(found.bad)} of {found.images} images cannot be read; the first: {found.bad[0]}")
    with suppress(OSError):  # the report does without
        write_text(out / DATA_SHEET, json.dumps(found.sheet(), indent=1))
    return found
