"""Sheets of maps of patches below the images that they are of."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from torchmae.report.sheet import sheet

SIDE = 288  # px of the longer side of a tile
MARK = ("#ffffff", "#d00000")  # a frame of both can be seen on anything
COLORS = "viridis"

# Values in 0..1 of each patch, or red, green and blue of each.
Patches = Float[Tensor, "_ _"] | Float[Tensor, "3 _ _"]


class Marked(NamedTuple):
    """A patch of an image of a sheet: the image's number, row and column of the patch, its grid."""

    image: int
    row: int
    column: int
    grid: tuple[int, int]

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The corners of its pixels in a tile of so many."""
        down, across = height / self.grid[0], width / self.grid[1]
        return (
            round(self.column * across),
            round(self.row * down),
            round((self.column + 1) * across) - 1,
            round((self.row + 1) * down) - 1,
        )


def sheet_of_maps(
    images: Sequence[UInt8[Tensor, "C _ _"]],
    rows: Mapping[str, Sequence[Patches]],
    title: str,
    names: Sequence[str],
    notes: Sequence[str],
    mark: Marked | None = None,
) -> Image.Image:
    """A column for each image: the image, then its maps; patches are not smoothed.

    Args:
        images: of any sizes; the longer side of each tile has `SIDE` px.
        rows: what the maps are called, and the map of each image.
        title: above everything.
        names: of the images.
        notes: below everything.
        mark: a patch to frame.
    """
    sizes = [tile_size(image.shape[1], image.shape[2]) for image in images]
    canvas = max(h for h, _ in sizes), max(w for _, w in sizes)
    tiles = {
        "image": [picture(image, size) for image, size in zip(images, sizes)],
        **{
            name: [colored(patches).resize(size[::-1], 0) for patches, size in zip(maps, sizes)]
            for name, maps in rows.items()
        },
    }
    if mark is not None:
        for row in tiles.values():
            frame(row[mark.image], mark)
    made = {
        name: torch.stack([on_canvas(one, canvas) for one in row]) for name, row in tiles.items()
    }
    return sheet(made, title, names, notes, scale=1)


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a tile of an image."""
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def picture(image: UInt8[Tensor, "C H W"], size: tuple[int, int]) -> Image.Image:
    """An image as a tile; the first band or three of many."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    made = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
    larger = size[0] > made.height or size[1] > made.width
    way = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    return made.resize(size[::-1], way)


def colored(patches: Patches) -> Image.Image:
    """A pixel for each patch; single values from dark violet to yellow."""
    import matplotlib

    if patches.ndim == 2:
        rgb = matplotlib.colormaps[COLORS](patches.numpy())[..., :3]
    else:
        rgb = patches.permute(1, 2, 0).numpy()
    return Image.fromarray((rgb * 255).round().astype(np.uint8))


def frame(tile: Image.Image, mark: Marked) -> None:
    """Draws a frame around a patch of a tile."""
    pen = ImageDraw.Draw(tile)
    x0, y0, x1, y1 = mark.box(*tile.size)
    for i, color in enumerate((MARK[0], MARK[1], MARK[1])):
        pen.rectangle((x0 - i, y0 - i, max(x1, x0) + i, max(y1, y0) + i), outline=color)


def on_canvas(tile: Image.Image, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """A tile in the middle of a white one of this height and width."""
    canvas = Image.new("RGB", size[::-1], "white")
    canvas.paste(tile, ((size[1] - tile.width) // 2, (size[0] - tile.height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
