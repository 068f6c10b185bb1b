"""Decoded images kept in memory, or in a file mapped into it: a source around a source."""

import mmap
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from torchmae.data.cache.layout import LINE, PIXELS, SUMS, starts_of
from torchmae.data.loader import read_pixels
from torchmae.data.sources.source import Pixels, Source, SourceWrapper
from torchmae.errors import UserError


class Cached(SourceWrapper):
    """A source that decodes each image once.

    `read` returns pixels [H, W, channels], not to be written to. The first process that reads an
    image keeps it for all that share the memory or the file: forked workers, and with a file other
    trainings too, now and later. Each image has its CRC-32 beside it, so that what is half written,
    or was lost in a power cut, is decoded again; each process compares it once.

    Args:
        source: the images.
        sizes: (height, width) of each, as a scan found them; an image of another size is decoded
            every time.
        folder: of `make_folder`; None keeps the images in memory.
    """

    holds_pixels = True

    def __init__(
        self, source: Source, sizes: Integer[np.ndarray, "N 2"], folder: Path | None = None
    ):
        super().__init__(source)
        self.folder = folder
        self.sizes = sizes
        self.starts = starts_of(sizes, source.pixel_bytes)
        self.open()

    def open(self) -> None:
        total = int(self.starts[-1])
        count = len(self.source)
        if self.folder is None:
            maps = [mmap.mmap(-1, max(LINE, length)) for length in (total, 8 * count)]
        else:
            maps = []
            for name in (PIXELS, SUMS):
                with (self.folder / name).open("r+b") as file:
                    maps.append(mmap.mmap(file.fileno(), 0))
        self.pixels = np.frombuffer(maps[0], dtype=np.uint8)
        self.sums = np.frombuffer(maps[1], dtype=np.uint64)
        self.trusted = np.zeros(count, dtype=bool)  # sums that this process has compared

    def __getstate__(self) -> dict[str, object]:
        if self.folder is None:
            raise UserError(
                "--cache memory needs workers that are forked, which this system has not: use disk"
            )
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("pixels", "sums", "trusted")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.open()

    def is_changed(self, i: int) -> bool:
        return not self.trusted[i] and self.source.is_changed(i)

    def read(self, i: int) -> Pixels:
        room = self.pixels[self.starts[i] : self.starts[i + 1]]
        height, width = self.sizes[i].tolist()
        size, kind = height * width * self.pixel_bytes, np.dtype(self.dtype)
        if self.sums[i] and (self.trusted[i] or sum_of(room) == self.sums[i]):
            self.trusted[i] = True
            return room[:size].view(kind).reshape(height, width, self.channels)
        pixels = read_pixels(self.source, i)
        if pixels.shape == (height, width, self.channels) and pixels.dtype == kind:
            room[:size] = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
            self.sums[i] = sum_of(room)
        return pixels


def sum_of(room: UInt8[np.ndarray, " B"]) -> np.uint64:
    """The CRC-32 with another bit set, since 0 means "not there"."""
    return np.uint64(zlib.crc32(room.data) | 1 << 32)
