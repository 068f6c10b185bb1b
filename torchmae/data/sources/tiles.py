"""Large images as tiles, each an image of its own (--tile). Of TIFFs and JPEG 2000 only a tile is
decoded."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from torchmae.data.config import Listing
from torchmae.data.decode import BadImage, Pixels, inspect, read_encoded
from torchmae.data.formats.raster import Raster
from torchmae.data.large.pyramid import PYRAMIDS, kind_of
from torchmae.data.large.window import STEP, Box, Overview, as_tiff, with_nan
from torchmae.data.sources.source import Encoded, Source, Subset
from torchmae.errors import UserError, library, printable
from torchmae.windows import starts

FINE = 16  # of the sides of a tile so many pixels at least are looked at


class Places(NamedTuple):
    """The tiles of one image that are taken: their corners, how many there are in all, the image's
    size, and the name in `PYRAMIDS` of how windows of it are read; "" where it is decoded whole."""

    corners: Int64[np.ndarray, "T 2"]
    total: int
    size: tuple[int, int]
    kind: str = ""


WHOLE = Places(np.zeros((1, 2), dtype=np.int64), 1, (0, 0))


class Tiles(Encoded, Subset):
    """The tiles of images, in rows; an image that is not larger than a tile is itself.

    Args:
        source: the images.
        places: of each image.
        side: of a tile in pixels, at least of an image's that is smaller.
        overlap: pixels that neighbors share.
        level: of the images' pyramids, in whose pixels all this is.
    """

    def __init__(
        self, source: Source, places: Sequence[Places], side: int, overlap: int = 0, level: int = 0
    ):
        Subset.__init__(
            self, source, np.repeat(np.arange(len(places)), [len(one.corners) for one in places])
        )
        self.side = side
        self.overlap = overlap
        self.level = level
        self.corners = np.concatenate([one.corners for one in places])
        self.counts = np.array([one.total for one in places])
        self.sizes = np.array([one.size for one in places]).reshape(-1, 2)
        self.ways = np.array([one.kind for one in places])

    def box(self, i: int) -> Box:
        """Where a tile is in its image."""
        (top, left), (height, width) = self.corners[i], self.sizes[self.ids[i]]
        return Box(int(top), int(left), min(self.side, int(height)), min(self.side, int(width)))

    def grid_of(self, number: int) -> tuple[list[int], list[int]]:
        """The upper and the left ends of all tiles of an image, those left out too."""
        step = self.side - self.overlap
        tops, lefts = (starts(int(length), self.side, step) for length in self.sizes[number])
        return tops, lefts

    def name(self, i: int) -> str:
        """That of the image, with the pixel of the upper left corner: "slide.tif[1024,512]"."""
        if self.counts[self.ids[i]] == 1:
            return super().name(i)
        top, left = self.corners[i]
        return f"{super().name(i)}[{top},{left}]"

    def group(self, i: int) -> str | None:
        """No split divides an image."""
        several = self.counts[self.ids[i]] > 1
        return super().group(i) or (self.source.name(int(self.ids[i])) if several else None)

    def path(self, i: int) -> str | None:
        return None

    def read(self, i: int) -> bytes | Pixels:
        number = int(self.ids[i])
        box, limit, path = self.box(i), self.decode.max_megapixels, self.source.path(number)
        if self.ways[number]:
            assert path is not None
            return PYRAMIDS[str(self.ways[number])].window(path, box, limit, self.level)
        if self.counts[number] == 1:
            return self.source.read(number)
        raster = raster_of(self.source, number)
        cut = raster.pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        return as_tiff(raster._replace(pixels=cut))

    def fingerprint(self) -> str:
        return self.digest(super().fingerprint())

    def stamp(self) -> str | None:
        whole = super().stamp()
        return whole and self.digest(whole)

    def digest(self, whole: str) -> str:
        """That of the images, with the tiles."""
        own = np.array(self.side).tobytes() + self.corners.astype(np.int64).tobytes()
        own += np.array(self.level).tobytes() * bool(self.level)
        return hashlib.sha256(whole.encode() + own).hexdigest()


def raster_of(source: Source, i: int) -> Raster:
    """One image as its file has it."""
    data = source.read(i)
    return read_encoded(data, source.decode) if isinstance(data, bytes) else Raster(data)


def with_tiles(source: Source, listing: Listing) -> Source:
    """The source itself, or with --tile its tiles without the empty ones.

    Raises:
        UserError: all are empty, an image has no such --level, or tifffile is missing.
    """
    if not listing.tile:
        return source
    library("tifffile", "tiff")

    def places(i: int) -> Places:
        try:
            return places_of(source, i, listing)
        except (BadImage, OSError):  # one image, which the scan will name
            return WHOLE

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(places, range(len(source))))
    tiles = Tiles(source, found, listing.tile, listing.overlap, listing.level)
    total, kept = sum(one.total for one in found), len(tiles)
    if not kept:
        raise UserError(
            f"all {total:,} tiles of {listing.tile} px are empty: flat within {listing.empty:.0%} "
            "of their range; --empty 0 takes them all"
        )
    if kept < total:
        empty = f"{total - kept:,} of {total:,} tiles are empty and left out (--empty)"
        tiles.left_out = f"{source.left_out}; {empty}" if source.left_out else empty
    return tiles


def places_of(source: Source, i: int, listing: Listing) -> Places:
    """The tiles of one image that are not empty; of an image without values, or of one that is not
    larger than a tile, the image itself."""
    side, path = listing.tile or 0, source.path(i)
    kind = "" if path is None else kind_of(path)
    limit, coarsest = source.decode.max_megapixels, max(1, side // FINE)
    if listing.level:
        check_level(source.name(i), listing.level, PYRAMIDS[kind].levels(str(path)) if kind else [])
    if kind:
        seen = PYRAMIDS[kind].overview(str(path), coarsest, limit, listing.level)
    else:
        data = source.read(i)
        size = inspect(data, source.decode) if isinstance(data, bytes) else data.shape[:2]
        if max(size) <= side:
            return WHOLE._replace(size=size)
        raster = raster_of(source, i)
        coarsest = min(STEP, coarsest)
        values = with_nan(raster.pixels[::coarsest, ::coarsest], raster.nodata)
        height, width, _ = raster.pixels.shape
        seen = Overview(values, float(coarsest), (height, width), raster.pixels.dtype.name)
    step = side - listing.overlap
    rows, columns = (starts(length, side, step) for length in seen.size)
    corners = np.array([(top, left) for top in rows for left in columns], dtype=np.int64)
    if len(corners) == 1:  # of the full size the file itself
        return WHOLE._replace(size=seen.size, kind=kind if listing.level else "")
    requested = source.decode.nodata
    if requested is not None:
        seen = replace_value(seen, requested)
    kept = ~are_empty(seen, corners, side, listing.empty)
    return Places(corners[kept], len(corners), seen.size, kind)


def check_level(name: str, level: int, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises UserError where an image has no such level."""
    if level < len(sizes):
        return
    known = ", ".join(f"{k}: {width} x {height}" for k, (height, width) in enumerate(sizes))
    raise UserError(
        f"--level {level}: {printable(name)} has "
        + (f"the levels {known} px" if known else "no levels: only TIFFs and JPEG 2000 have some")
    )


def replace_value(seen: Overview, nodata: float) -> Overview:
    """With NaN for another value that stands for none."""
    return seen._replace(values=with_nan(seen.values, nodata))


def are_empty(
    seen: Overview, corners: Int64[np.ndarray, "T 2"], side: int, share: float
) -> np.ndarray:
    """Which tiles are empty: all of their pixels are no-data, or 99 % of them are nearer to the
    tile's median, in every channel, than a share of the range of values.

    The range is 255 for pixels of 8 bits, else the largest such distance of any tile of the image.
    """
    found = np.array([spread(tile_of(seen, corner, side)) for corner in corners.tolist()])
    full = 255.0 if seen.dtype == "uint8" else found.max()
    return (found < 0) | (found < share * full)


def tile_of(seen: Overview, corner: Sequence[int], side: int) -> np.ndarray:
    """What of an overview lies in a tile."""
    top, left = (round(place / seen.step) for place in corner)
    count = max(1, round(side / seen.step))
    return seen.values[top : top + count, left : left + count]


def spread(values: np.ndarray) -> float:
    """The 99th percentile of the distances from the median, the largest of all channels; -1 where
    there is no value."""
    flat = values.reshape(-1, values.shape[2])
    flat = flat[~np.isnan(flat).any(axis=1)]
    if not len(flat):
        return -1.0
    distances = np.abs(flat - np.median(flat, axis=0))
    return float(np.percentile(distances, 99, axis=0).max())
