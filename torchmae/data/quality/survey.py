"""What every image of some sets is, read once: kind, size, blank or saturated, what it looks
like."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt64
from tqdm import tqdm

from torchmae.data.decode import BadImage, encoding
from torchmae.data.loader import to_pixels
from torchmae.data.quality.phash import phash, shrink, thumb
from torchmae.data.scan import awaited
from torchmae.data.sources.source import BadFile, Pixels, Source
from torchmae.errors import printable

ENDS = 2  # of 255: as near to black or white counts as saturated


class Facts(NamedTuple):
    """What is known of one image; of one that cannot be read only `bad`, the reason."""

    kind: str = ""
    size: tuple[int, int] = (0, 0)
    stored: int = 0
    digest: bytes = b""
    hash: int = 0
    thumb: UInt8[np.ndarray, "256"] = np.zeros(256, dtype=np.uint8)
    blank: bool = False
    black: float = 0.0
    white: float = 0.0
    missing: float = 0.0
    bad: str = ""


@dataclass(frozen=True)
class Survey:
    """What is known of N images, of one set or several.

    Attributes:
        sources: the sets, one after the other.
        parts: the part of each image, such as "train"; "" where there is one part only.
        labels: the class of each image, if it has one.
        kinds: such as "JPEG, 3 channels of 8 bits"; "" where the image is bad.
        sizes: (height, width) in pixels, 0 where it is bad.
        stored: bytes of the file, or of the pixels.
        digests: of the decoded pixels and their shape.
        hashes: see `phash`.
        thumbs: the image in grey at 16 px, for comparing.
        blank: whether all its pixels are equal.
        black: the share of pixels that are black in every channel.
        white: likewise.
        missing: the share of values that are no-data.
        bad: those that cannot be read, and what could not even be listed.
    """

    sources: Sequence[Source]
    parts: Sequence[str]
    labels: Sequence[str | None]
    kinds: Sequence[str]
    sizes: Int32[np.ndarray, "N 2"]
    stored: Int64[np.ndarray, " N"]
    digests: Sequence[bytes]
    hashes: UInt64[np.ndarray, " N"]
    thumbs: UInt8[np.ndarray, "N 256"]
    blank: Bool[np.ndarray, " N"]
    black: Float32[np.ndarray, " N"]
    white: Float32[np.ndarray, " N"]
    missing: Float32[np.ndarray, " N"]
    bad: Sequence[BadFile]

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def good(self) -> Int64[np.ndarray, " M"]:
        """The numbers of the images that can be read."""
        return np.flatnonzero(self.sizes[:, 0] > 0)

    def place(self, i: int) -> tuple[Source, int]:
        """The set of image `i`, and its number there."""
        for source in self.sources:
            if i < len(source):
                return source, i
            i -= len(source)
        raise IndexError(i)

    def name(self, i: int) -> str:
        """What to call image `i`."""
        source, k = self.place(i)
        return source.name(k)


def survey(sources: Sequence[Source], parts: Sequence[str], labels: Sequence[str | None]) -> Survey:
    """Reads and decodes every image once, in threads.

    Args:
        sources: the sets.
        parts: of all images, set after set.
        labels: likewise.
    """
    found = [facts for source in sources for facts in facts_of(source)]
    names = (source.name(i) for source in sources for i in range(len(source)))
    bad = [BadFile(name, one.bad) for name, one in zip(names, found) if one.bad]
    columns = list(zip(*found))
    kinds, sizes, stored, digests, hashes, thumbs, blank, black, white, missing, _ = columns
    return Survey(
        sources,
        parts,
        labels,
        kinds,
        np.array(sizes, dtype=np.int32),
        np.array(stored, dtype=np.int64),
        digests,
        np.array(hashes, dtype=np.uint64),
        np.stack(thumbs),
        np.array(blank, dtype=bool),
        np.array(black, dtype=np.float32),
        np.array(white, dtype=np.float32),
        np.array(missing, dtype=np.float32),
        [*(file for source in sources for file in source.unusable), *bad],
    )


def facts_of(source: Source) -> Iterator[Facts]:
    """The facts of each image of a set, in order."""
    reading: dict[int, None] = {}

    def one(i: int) -> Facts:
        reading[i] = None
        try:
            return facts_of_image(source, i)
        finally:
            del reading[i]

    def names() -> list[str]:
        return [printable(source.name(i)) for i in list(reading)]

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="look", total=len(source), unit=" images", disable=None, leave=False) as bar,
    ):
        for first in range(0, len(source), 4096):  # a million waiting tasks would need gigabytes
            last = min(first + 4096, len(source))
            for task in [pool.submit(one, i) for i in range(first, last)]:
                yield awaited(task, names)
                bar.update()


def facts_of_image(source: Source, i: int) -> Facts:
    """Reads, decodes and measures one image."""
    try:
        data = source.read(i)
        pixels = to_pixels(source, data)
        if isinstance(data, bytes):
            kind = printable(encoding(data, source.decode).words())
        else:
            bits = 8 * data.dtype.itemsize
            kind = f"pixels, {channels_words(data.shape[2])} of {bits} bits"
    except (BadImage, OSError) as error:
        return Facts(bad=getattr(error, "strerror", None) or str(error))
    grey = shrink(pixels)
    black, white = saturated(pixels)
    return Facts(
        kind,
        (pixels.shape[0], pixels.shape[1]),
        len(data) if isinstance(data, bytes) else data.nbytes,
        digest_of_pixels(pixels),
        phash(grey),
        thumb(grey),
        bool((pixels == pixels[0, 0]).all()),
        black,
        white,
        float(np.isnan(pixels).mean()) if pixels.dtype.kind == "f" else 0.0,
    )


def channels_words(count: int) -> str:
    """Such as "3 channels"."""
    return f"{count} channel{'s' * (count != 1)}"


def digest_of_pixels(pixels: Pixels) -> bytes:
    """16 bytes that differ for images that differ anywhere."""
    state = hashlib.sha256(repr(pixels.shape).encode())
    state.update(np.ascontiguousarray(pixels).data)
    return state.digest()[:16]


def saturated(pixels: Pixels) -> tuple[float, float]:
    """The shares of pixels that are black, and white, in every channel; 0 of what has no white."""
    if pixels.dtype != np.uint8:
        return 0.0, 0.0
    low, high = pixels.max(axis=2) < ENDS, pixels.min(axis=2) > 255 - ENDS
    return float(low.mean()), float(high.mean())
