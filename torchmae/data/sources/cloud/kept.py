"""Files at addresses, in blocks that stay on the local disk, up to a limit.

Which blocks are kept is known from the start: the first of the set, as many as fit. In epochs of
random order no choice is better, and no process has to know what others have kept. Images in other
blocks are asked for alone.
"""

import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from torchmae.data.sources.cloud.ranges import Files
from torchmae.disk import cache_folder

BLOCK = 1 << 20  # bytes that are asked for together: ten photographs, one answer of a server


class Kept:
    """The bytes of some files.

    Args:
        files: where they are.
        sizes: in bytes.
        key: of their content; "" where changes would not be noticed: then nothing is kept.
        limit: bytes that may be kept, of all sets together.
    """

    def __init__(self, files: Files, sizes: Sequence[int], key: str, limit: int):
        self.files = files
        self.sizes = list(sizes)
        counts = [-(-size // BLOCK) for size in sizes]
        self.starts = np.cumsum([0, *counts]).tolist()  # of each file, its first block
        self.folder = cache_folder("cloud") / (key or "none")
        self.most = limit // (BLOCK + 4) if key else 0
        if self.most:
            make_room(self.folder, limit, min(sum(sizes), limit))

    def at(self, number: int, offset: int, size: int) -> bytes:
        """Some bytes of a file; `RunError` where they do not come."""
        size = max(0, min(size, self.sizes[number] - offset))
        first, end = offset // BLOCK, -(-(offset + size) // BLOCK)
        if self.starts[number] + end > self.most:
            return self.files.part(number, offset, size)
        data = b"".join(self.block(number, k) for k in range(first, end))
        return data[offset - first * BLOCK :][:size]

    def block(self, number: int, k: int) -> bytes:
        """A block, from the disk or else onto it."""
        file = self.folder / f"{number}-{k}"
        size = min(BLOCK, self.sizes[number] - k * BLOCK)
        with suppress(OSError):
            kept = file.read_bytes()
            data, total = kept[:size], kept[size:]
            if total == sum_of(data):
                return data
        data = self.files.part(number, k * BLOCK, size)
        with suppress(OSError):  # a full disk only costs time
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.folder, prefix=".")
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(data + sum_of(data))
                os.replace(partial, file)
            except OSError:
                os.unlink(partial)
        return data

    def file(self, number: int) -> io.BufferedReader:
        """A file to read through, block by block."""
        return io.BufferedReader(Through(self, number), BLOCK)


def sum_of(data: bytes) -> bytes:
    """The checksum behind a kept block: what a crash leaves may have the right length."""
    return zlib.crc32(data).to_bytes(4, "big")


class Through(io.RawIOBase):
    """A file of `Kept`, as Python reads files."""

    def __init__(self, kept: Kept, number: int):
        self.kept = kept
        self.number = number
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self.place, self.kept.sizes[self.number])[whence]
        self.place = max(0, base + offset)
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # Up to the end of a block, so that each is asked for once.
        room = min(len(buffer), BLOCK - self.place % BLOCK)
        data = self.kept.at(self.number, self.place, room)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def make_room(own: Path, limit: int, needed: int) -> None:
    """Removes what is kept of other sets, the longest unused first, until all fits."""
    with suppress(OSError):
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(own)
        others = [folder for folder in own.parent.iterdir() if folder.is_dir() and folder != own]
        sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in others}
        for folder in sorted(others, key=lambda f: f.stat().st_mtime):
            if sum(sizes.values()) + needed <= limit:
                return
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
