"""Results of tiles put together again: one map of each image."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from torchmae.data.large.pyramid import NODATA, geo_tags
from torchmae.data.sources.source import Source
from torchmae.data.sources.tiles import Tiles
from torchmae.errors import library

Color = tuple[int, int, int]

BLOCK = 512  # side of the tiles that maps are stored in, px


class LabelMaps:
    """The classes of the pixels of large images, tile by tile, in sparse files of their size, so
    that memory holds one tile.

    Where tiles overlap each gives the half that is nearer to its middle.

    Args:
        folder: for the files.
        tiles: the images' tiles.
    """

    def __init__(self, folder: Path, tiles: Tiles):
        self.folder = folder
        self.tiles = tiles
        self.stems = stems_of(tiles.source)
        # By the number of an image its map, which is 0 where there is no class.
        self.found: dict[int, Path] = {}

    def add(self, i: int, labels: UInt8[np.ndarray, "h w"]) -> None:
        """The classes of one tile, numbers below 255."""
        number = int(self.tiles.ids[i])
        height, width = self.tiles.sizes[number].tolist()
        top, left, down, across = self.tiles.box(i)
        before, after = self.tiles.overlap // 2, -(-self.tiles.overlap // 2)
        first, start = (before if place else 0 for place in (top, left))
        last = down - after if top + down < height else down
        stop = across - after if left + across < width else across
        if number not in self.found:
            self.found[number] = self.folder / f".{number}.map"
            with self.found[number].open("wb") as file:
                file.truncate(height * width)
        whole = self.mapped(number, "r+")
        whole[top + first : top + last, left + start : left + stop] = (
            labels[first:last, start:stop] + 1
        )

    def mapped(self, number: int, mode: Any) -> np.memmap[Any, Any]:
        shape = tuple(self.tiles.sizes[number].tolist())
        return np.memmap(self.found[number], np.uint8, mode, shape=shape)

    def finish(
        self, values: UInt8[np.ndarray, " classes"], colors: Mapping[int, Color]
    ) -> tuple[int, int]:
        """Writes labels/STEM.tif of each image.

        They are tiled, deflated TIFFs with a palette, at the place on the earth that a GeoTIFF
        has.

        Args:
            values: of each class.
            colors: of each value.

        Returns:
            How many there are, and the value of pixels of tiles that were left out: one that no
            class has, noted as GDAL notes no-data.
        """
        nothing = max(set(range(256)) - set(values.tolist()))
        table = np.concatenate([[nothing], values]).astype(np.uint8)
        palette = np.zeros((3, 256), dtype=np.uint16)
        for value, color in colors.items():
            palette[:, value] = np.array(color) * 257
        palette[:, nothing] = 65535
        for number, raw in self.found.items():
            out = self.folder / "labels" / f"{self.stems[number]}.tif"
            out.parent.mkdir(parents=True, exist_ok=True)
            path = self.tiles.source.path(number)
            place = geo_tags(path, self.tiles.level) if path else []
            height, width = self.tiles.sizes[number].tolist()
            library("tifffile", "tiff").imwrite(
                out,
                self.blocks(number, table),
                shape=(height, width),
                dtype=np.uint8,
                tile=(BLOCK, BLOCK),
                compression="zlib",
                photometric="palette",
                colormap=palette,
                metadata=None,
                extratags=[(NODATA, "s", 0, str(nothing), True), *place],
            )
            raw.unlink()
        return len(self.found), nothing

    def blocks(
        self, number: int, table: UInt8[np.ndarray, " values"]
    ) -> Iterator[UInt8[np.ndarray, "512 512"]]:
        """The values of a map, block by block in rows."""
        height, width = self.tiles.sizes[number].tolist()
        for top in range(0, height, BLOCK):
            rows = np.array(self.mapped(number, "r")[top : top + BLOCK])
            for left in range(0, width, BLOCK):
                part = table[rows[:, left : left + BLOCK]]
                down, across = part.shape
                yield np.pad(part, ((0, BLOCK - down), (0, BLOCK - across)))


def write_feature_maps(
    folder: Path,
    tiles: Tiles,
    ids: Sequence[int],
    features: Float[np.ndarray, "N F"],
) -> int:
    """Writes STEM.npy of each image, float32 [rows, columns, F]: the features of its tiles in their
    grid, NaN where a tile was left out; returns how many there are.

    Args:
        folder: for the files.
        tiles: the images' tiles.
        ids: the numbers of those that were read, in order.
        features: of these.
    """
    stems, numbers = stems_of(tiles.source), tiles.ids[np.asarray(ids)]
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number).tolist()
        tops, lefts = tiles.grid_of(number)
        grid = np.full((len(tops), len(lefts), features.shape[1]), np.nan, dtype=np.float32)
        for row in rows:
            top, left = tiles.corners[ids[row]].tolist()
            grid[tops.index(top), lefts.index(left)] = features[row]
        out = folder / f"{stems[number]}.npy"
        out.parent.mkdir(parents=True, exist_ok=True)
        np.save(out, grid)
    return len(np.unique(numbers))


def stems_of(source: Source) -> list[str]:
    """A path for the results of each image: its name without the suffix; with it where two would
    be the same. Of files that are named by whole paths, without the folder of all of them."""
    names = [source.name(i) for i in range(len(source))]
    if all(name.startswith("/") for name in names):
        top = os.path.commonpath([os.path.dirname(name) for name in names])
        names = [os.path.relpath(name, top) for name in names]
    inside = [
        "/".join(part for part in name.split("/") if part not in ("", "..")) for name in names
    ]
    stems = [os.path.splitext(name)[0] for name in inside]
    often = Counter(stems)
    return [name if often[stem] > 1 else stem for name, stem in zip(inside, stems)]
