"""Which cache pays by itself, and the batches of a training with a cache."""

import logging
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Integer

from torchmae.data.cache import device, layout
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.cache.disk import make_folder
from torchmae.data.cache.layout import check_room, free_memory
from torchmae.data.cache.memory import Cached
from torchmae.data.decode import BadImage
from torchmae.data.loader import Batches, read_pixels
from torchmae.data.scan import scan
from torchmae.data.sources.source import Pixels, Source, SourceWrapper
from torchmae.data.transforms import WindowCrop
from torchmae.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Reading and decoding a file takes 19 to 850 times as long as reading its pixels from memory, for
# all formats and 6 to 1500 px; reading an array takes 1.1 to 1.8 times as long (one core).
COSTLY = 3

SHARE = 1 / 4  # of the free memory, which a training needs for other things too

SMALL = 256  # px: of larger images, the device makes crops slower than workers do

SAMPLED = 8  # images whose decoding is timed


@runtime_checkable
class Processes(Protocol):
    """What a cache needs to know of a training's processes (`train.distributed.World`)."""

    @property
    def device(self) -> torch.device: ...
    @property
    def is_main(self) -> bool: ...
    @property
    def local_size(self) -> int: ...
    def on_main(self, work: Callable[[], T]) -> T: ...


class CacheChoice(NamedTuple):
    """A value of --cache, and why, as a phrase for the plan."""

    name: str
    reason: str


@dataclass(frozen=True)
class CacheFacts:
    """What decides between caches; times are milliseconds an image, sizes are bytes."""

    decode_ms: float
    copy_ms: float
    memory: int  # of the decoded images
    free_memory: float  # for this process; infinite where that is not known
    shared: bool  # whether loading processes share memory with this one
    device_memory: int | None = None  # None: batches cannot be made on the device, or not fast
    free_device_memory: float = 0.0


def choose_cache(facts: CacheFacts) -> CacheChoice:
    """The cache that pays by itself.

    "device" for small images on a GPU; "memory" for files that are costly to decode and need at
    most a quarter of the free memory; else "none".
    """
    if facts.device_memory is not None:
        room = needed(facts.device_memory, facts.free_device_memory)
        if facts.device_memory <= SHARE * facts.free_device_memory:
            return CacheChoice("device", f"small images, {room} on the device")
    cost = f"decoding takes {facts.decode_ms:.2g} ms an image"
    if facts.decode_ms <= COSTLY * facts.copy_ms:
        return CacheChoice("none", f"{cost}, little more than a copy")
    if not facts.shared:
        return CacheChoice("none", f"{cost}, but this system's workers cannot share memory")
    if math.isinf(facts.free_memory):
        return CacheChoice("none", f"{cost}, but how much memory is free is not known")
    room = needed(facts.memory, facts.free_memory)
    if facts.memory > SHARE * facts.free_memory:
        return CacheChoice("none", f"{cost}, but {room}")
    return CacheChoice("memory", f"{cost} and {room}")


def needed(size: float, free: float) -> str:
    return f"{amount(size)} are needed, {amount(free)} are free"


def amount(size: float) -> str:
    """Bytes in words."""
    unit, power = next(
        ((unit, power) for unit, power in (("GB", 9), ("MB", 6)) if size >= 10**power), ("kB", 3)
    )
    return f"{size / 10**power:,.{int(size < 10 ** (power + 1))}f} {unit}"


def decide_cache(
    batches: Batches,
    world: Processes,
    workers: int,
    sizes: Integer[np.ndarray, "N 2"] | None = None,
) -> CacheChoice:
    """`choose_cache` by what the main process measures; the same in every process.

    Args:
        batches: as they are without a cache.
        world: the processes that train together.
        workers: loading processes of each of them.
        sizes: (height, width) of the images if a scan has found them; else it is made when needed.
    """

    def facts() -> CacheFacts:
        source = batches.source
        free = free_memory() / world.local_size
        decode_ms, copy_ms = decoding_cost(source)
        found = CacheFacts(decode_ms, copy_ms, 0, free, workers == 0 or can_fork())
        on_gpu = world.device.type == "cuda"
        crops = isinstance(batches.transform, WindowCrop) and not batches.shapes
        if decode_ms <= COSTLY * copy_ms and not (on_gpu and crops):
            return found
        have = scan(source).sizes if sizes is None else sizes
        found = replace(found, memory=layout.bytes_needed(have, source.pixel_bytes))
        if not (on_gpu and crops and have.max() <= SMALL):
            return found
        room = torch.cuda.mem_get_info(world.device)[0]
        size = device.bytes_needed(have, source.pixel_bytes)
        return replace(found, device_memory=size, free_device_memory=room)

    return world.on_main(lambda: choose_cache(facts()))


def can_fork() -> bool:
    """Whether the workers of a loader are forked, and so share memory that was mapped before."""
    started = multiprocessing.get_start_method(allow_none=True)
    return (started or multiprocessing.get_all_start_methods()[0]) == "fork"


class OneImage(SourceWrapper):
    """A source all of whose images are an array, as in a cache."""

    holds_pixels = True

    def __init__(self, source: Source, pixels: Pixels):
        super().__init__(source)
        self.pixels = pixels

    def read(self, i: int) -> Pixels:
        return np.array(self.pixels)


def decoding_cost(source: Source) -> tuple[float, float]:
    """Milliseconds to read and decode an image, and to read it where it is an array already.

    Both are medians over some images that are spread over the source; 0 where none can be read.
    """
    costs: list[tuple[float, float]] = []
    for i in np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)).tolist():
        try:
            pair = source, OneImage(source, read_pixels(source, i))
            costs.append((time_to_read(pair[0], i), time_to_read(pair[1], i)))
        except BadImage:
            continue
        if sum(decode for decode, _ in costs) > 1000:  # very large images
            break
    decode, copy = np.median(costs or [(0.0, 0.0)], axis=0)
    return float(decode), float(copy)


def time_to_read(source: Source, i: int) -> float:
    """Milliseconds, the shorter of two times."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        read_pixels(source, i)
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)


def keep_decoded(
    batches: Batches,
    cache: str | None,
    data: str,
    world: Processes,
    sizes: Integer[np.ndarray, "N 2"] | None = None,
) -> Batches | DeviceLoader:
    """The same batches, bit for bit, with each image decoded once.

    Args:
        batches: as they are without a cache.
        cache: "none", "memory", "disk" or "device".
        data: what the images are called on the command line; a cache on disk belongs to it.
        world: the processes that train together.
        sizes: (height, width) of the images, where a scan has found them.

    Raises:
        UserError: there is not enough memory or disk, or this cache is not possible here.
    """
    if cache in (None, "none"):
        return batches
    source = batches.source
    width = batches.source.pixel_bytes
    found = world.on_main(lambda: scan(source).sizes if sizes is None else sizes)

    def room() -> Path | None:
        """Makes sure that there is room; returns the folder of a cache on disk."""
        if cache == "disk":
            return make_folder(data, source, found)
        kind = world.device.type
        if cache == "device" and kind not in ("cpu", "cuda"):
            raise UserError(f"--cache device: on cpu and cuda, not on {kind}; use --cache memory")
        on_host = kind == "cpu" or cache == "memory"
        free = (
            free_memory() / world.local_size
            if on_host
            else torch.cuda.mem_get_info(world.device)[0]
        )
        pixels = layout.bytes_needed(found, width)
        check_room(str(cache), 2 * pixels if cache == "device" else pixels, free)
        return None

    folder = world.on_main(room)  # what the main process finds holds for all
    if folder is not None and world.is_main:
        size = layout.bytes_needed(found, width) / 1e6
        logger.info(f"      cache  {folder}: {size:,.0f} MB, may be deleted at any time")
    if cache == "device":
        return DeviceLoader(batches, world.device)
    if folder is not None:  # on another machine there is none yet
        folder = room()
    return replace(batches, source=Cached(source, found, folder))


def with_cache(
    batches: Batches,
    requested: str | None,
    data: str,
    world: Processes,
    workers: int,
    sizes: Integer[np.ndarray, "n 2"] | None = None,
) -> tuple[CacheChoice, Batches | DeviceLoader]:
    """The batches with the cache that is requested or, for None, that pays; and which it is.

    Args:
        batches: as they are without a cache.
        requested: the value of --cache.
        data: what the images are called on the command line.
        world: the processes that train together.
        workers: loading processes of each of them.
        sizes: (height, width) of the images, where a scan has found them.
    """
    if requested is None:
        cache = decide_cache(batches, world, workers, sizes)
    else:
        cache = CacheChoice(requested, "requested")
    return cache, keep_decoded(batches, cache.name, data, world, sizes)
