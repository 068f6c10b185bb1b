"""Decoded pixels that are kept, in memory or in a file mapped into it: `--cache`. A source around a source."""

import json
import math
import mmap
import os
import shutil
import tempfile
import time
import zlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from torchmae import disk
from torchmae.data.caches import cache_folder
from torchmae.data.decode import decode
from torchmae.data.source import Around, Pixels, Source, digest_of
from torchmae.errors import UserError

LINE = 64  # bytes: images begin at multiples of it


class Cached(Around):
    """A source that decodes each image once: `read` gives pixels `[H, W, channels]`, which must not be written to.

    Whoever reads an image first keeps it for all processes that share the memory or the file: forked workers, and with a file
    other trainings, now and later. Beside each image stands its CRC-32, so that what is half written, or was lost with the
    power, is decoded again; each process compares it once.

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
        super().__init__(source, channels)
        self.limits, self.folder, self.sizes = (max_megapixels, white), folder, sizes
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
    """The CRC-32, and a bit beside it, so that it is never 0, which is "not there"."""
    return np.uint64(zlib.crc32(room.data) | 1 << 32)


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
    with suppress(OSError, ValueError, StopIteration):  # a container's own limit, in which it counts files that it read
        group = Path("/sys/fs/cgroup")
        limit, taken = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        free = min(
            free, limit - taken + int(next(line for line in lines if line.startswith("inactive_file")).split()[1])
        )
    return free


def make_folder(
    data: str, source: Source, sizes: Integer[np.ndarray, "N 2"], channels: int, max_megapixels: float, white: int
) -> Path:
    """The folder for the decoded images of `data`: the one that is there if nothing has changed since (names, sizes and times
    of the files, settings, decoders), else a new one, with all the room that it will need, in place of the old.

    Times are those at opening: what is decoded of a file that changes later is kept under a key that no later run has."""
    stamp = source.stamp()
    if stamp is None:
        raise UserError(f"--cache disk cannot tell whether {data} has changed since it was kept: use --cache memory")
    place, settings = os.path.abspath(data), (channels, max_megapixels, white)
    whose = digest_of(place, *settings)[:16]
    key = digest_of(stamp, *settings, version("pillow"), version("simplejpeg"), sizes.tobytes())[:16]
    room, needed = cache_folder("decoded"), bytes_needed(sizes, channels)
    lengths = {PIXELS: max(LINE, int(starts_of(sizes, channels)[-1])), SUMS: max(LINE, 8 * len(sizes))}
    folder = room / f"{whose}-{key}"
    try:
        if all_there(folder, lengths):
            return folder
        room.mkdir(mode=0o700, parents=True, exist_ok=True)  # of pictures that others need not see
        for old in (*room.glob(f"{whose}-*"), *(p for p in room.glob(f".{whose}-*") if is_left_over(p))):
            if old == folder and all_there(folder, lengths):  # made by another process since
                return folder
            (old / ABOUT).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)  # who reads it still has it mapped
        free = shutil.disk_usage(room).free
        if needed > 0.9 * free:
            raise OSError(f"{free / 1e9:,.1f} GB are free")
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=room))
        try:
            for name, length in lengths.items():
                allocate(partial / name, length)
            disk.write_whole(
                partial / ABOUT, json.dumps({"data": place, "images": len(sizes), "bytes": needed}).encode()
            )
            with suppress(OSError):  # another process was quicker
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if not all_there(folder, lengths):
            raise OSError("it cannot be made")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--cache disk needs {needed / 1e9:,.1f} GB in {room} ({getattr(error, 'strerror', None) or error}): make room, "
            "set XDG_CACHE_HOME to a folder elsewhere, or use --cache none"
        ) from error
    return folder


def all_there(folder: Path, lengths: dict[str, int]) -> bool:
    """Whether it is a whole cache that this process may write to."""
    files = [folder / name for name in lengths]
    if not (folder / ABOUT).exists() or not all(file.exists() for file in files):
        return False
    if not all(os.access(file, os.R_OK | os.W_OK) for file in files):
        raise OSError(f"{folder} is somebody else's")
    return [file.stat().st_size for file in files] == list(lengths.values())


def is_left_over(partial: Path) -> bool:
    """Whether what is in the making has been so for a day: its process was killed."""
    with suppress(OSError):
        return time.time() - partial.stat().st_mtime > 86_400
    return False


def allocate(path: Path, length: int) -> None:
    """A file of zeros whose room on the disk is taken now: a full disk must not end a training that writes through memory."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)
