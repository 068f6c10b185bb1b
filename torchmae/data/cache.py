"""Decoded pixels that are kept, in memory or in a file mapped into it: `--cache`. A source around a source."""

import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from torchmae import disk
from torchmae.data.caches import cache_folder
from torchmae.data.decode import decode
from torchmae.data.source import BadFile, Pixels, Source
from torchmae.errors import UserError

LINE = 64  # bytes: images begin at multiples of it


class Cached:
    """A source that decodes each image once: `read` gives pixels `[H, W, channels]`, which must not be written to.

    Whoever reads an image first keeps it for all processes that share the memory or the file: forked workers, and with a file
    other trainings, now and later. Beside each image stands the sum of its words, so that what is half written, or was lost
    with the power, is decoded again; each process looks at it once.

    `sizes` are the (height, width) of the images as a scan found them; an image of another size is decoded every time.
    """

    def __init__(
        self,
        source: Source,
        sizes: Integer[np.ndarray, "N 2"],
        channels: int,
        max_megapixels: float,
        white: int,
        folder: Path | None,
    ):
        """In memory, or in a folder that `make_folder` made."""
        self.source, self.channels, self.limits, self.folder = source, channels, (max_megapixels, white), folder
        self.unusable: Sequence[BadFile] = source.unusable
        self.sizes = sizes
        self.starts = starts_of(sizes, channels)
        self.open()

    def open(self) -> None:
        total, count = int(self.starts[-1]), len(self.source)
        if self.folder is None:
            maps = [mmap.mmap(-1, max(LINE, length)) for length in (total, 8 * count)]
        else:
            maps = []
            for name in (PIXELS, SUMS):
                with (self.folder / name).open("r+b") as file:
                    maps.append(mmap.mmap(file.fileno(), 0))
        self.pixels = np.frombuffer(maps[0], dtype=np.uint8)
        self.sums = np.frombuffer(maps[1], dtype=np.uint64)
        self.trusted = np.zeros(count, dtype=bool)  # whose sum this process has compared

    def __getstate__(self) -> dict[str, object]:
        if self.folder is None:
            raise UserError(
                "--cache memory is shared with forked processes only, which this system does not have: use disk"
            )
        return {name: value for name, value in self.__dict__.items() if name not in ("pixels", "sums", "trusted")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.open()

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def label(self, i: int) -> str | None:
        return self.source.label(i)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def stamp(self) -> str | None:
        return self.source.stamp()

    def read(self, i: int) -> Pixels:
        room = self.pixels[self.starts[i] : self.starts[i + 1]]
        height, width = self.sizes[i].tolist()
        size = height * width * self.channels
        if self.sums[i] and (self.trusted[i] or sum_of(room) == self.sums[i]):
            self.trusted[i] = True
            return room[:size].reshape(height, width, self.channels)
        pixels = decode(self.source.read(i), self.channels, *self.limits)
        if pixels.shape == (height, width, self.channels):
            room[:size] = pixels.reshape(-1)
            self.sums[i] = sum_of(room)
        return pixels


PIXELS, SUMS, ABOUT = "pixels.bin", "sums.bin", "about.json"


def starts_of(sizes: Integer[np.ndarray, "N 2"], channels: int) -> Integer[np.ndarray, "N+1"]:
    """Where each image begins, and last where the file ends."""
    each = sizes.astype(np.int64).prod(axis=1) * channels
    return np.concatenate([[0], np.cumsum(-(-each // LINE) * LINE)])


def sum_of(room: UInt8[np.ndarray, "B"]) -> np.uint64:
    """The sum of the words, never 0: a lost page shows, and 0 is "not there"."""
    return room.view(np.uint64).sum(dtype=np.uint64) | np.uint64(1)


def bytes_needed(sizes: Integer[np.ndarray, "N 2"], channels: int) -> int:
    return int(starts_of(sizes, channels)[-1]) + 8 * len(sizes)


def check_room(where: str, needed: int, free: float) -> None:
    """`UserError` if so many bytes are not free."""
    if needed > 0.9 * free:
        raise UserError(
            f"--cache {where} needs {needed / 1e9:,.1f} GB for the decoded images, {free / 1e9:,.1f} GB are free: "
            "use --cache disk or none, or make the images smaller first (mae pack)"
        )


def free_memory() -> float:
    """Bytes that this process may still take; infinity on systems that do not tell."""
    free = math.inf
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):  # a container's own limit
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def make_folder(
    data: str, source: Source, sizes: Integer[np.ndarray, "N 2"], channels: int, max_megapixels: float, white: int
) -> Path:
    """The folder for the decoded images of `data`: the one that is there if nothing has changed since (names, sizes and times
    of the files, settings, decoders), else a new one, with all the room that it will need, in place of the old."""
    stamp = source.stamp()
    if stamp is None:
        raise UserError(f"--cache disk cannot tell whether {data} has changed since it was kept: use --cache memory")
    facts = (stamp, channels, max_megapixels, white, version("pillow"), version("simplejpeg"), sizes.tobytes())
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    place = os.path.abspath(data)
    whose = f"{hashlib.sha256(f'{place} {channels} {max_megapixels} {white}'.encode()).hexdigest()[:16]}"
    room = cache_folder("decoded")
    folder = room / f"{whose}-{key}"
    if (folder / ABOUT).exists():
        return folder
    partial = room / f".{folder.name}.{os.getpid()}.partial"
    needed = bytes_needed(sizes, channels)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for old in room.glob(f"{whose}-*"):  # who reads it still has it mapped
            shutil.rmtree(old, ignore_errors=True)
        for name, length in ((PIXELS, int(starts_of(sizes, channels)[-1])), (SUMS, 8 * len(sizes))):
            allocate(partial / name, max(LINE, length))
        disk.write_whole(partial / ABOUT, json.dumps({"data": place, "images": len(sizes), "bytes": needed}).encode())
        with suppress(OSError):  # another process was quicker
            partial.rename(folder)
        if not (folder / ABOUT).exists():
            raise OSError(f"{folder} cannot be made")
    except OSError as error:
        free = shutil.disk_usage(room if room.exists() else Path.home()).free
        raise UserError(
            f"--cache disk needs {needed / 1e9:,.1f} GB in {room} ({error.strerror or error}; {free / 1e9:,.1f} GB free): make "
            "room, set XDG_CACHE_HOME to a folder elsewhere, or leave --cache out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def allocate(path: Path, length: int) -> None:
    """A file of zeros whose room on the disk is taken now: a full disk must not end a training that writes through memory."""
    with path.open("wb") as file:
        if shutil.disk_usage(path.parent).free < length:
            raise OSError("too little room")
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)
