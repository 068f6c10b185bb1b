"""Label maps as pictures: palette images, overlays, a sheet of images with what was predicted."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

from torchmae.disk import whole_file
from torchmae.report.sheet import sheet, three_bands

Color = tuple[int, int, int]

IGNORE = 255
UNLABELLED = (255, 255, 255)  # in pictures: white
STRENGTH = 0.55  # of the colors over an image
TILE = 256  # px: the longer side of an image on a sheet


def color_table(colors: Sequence[Color]) -> UInt8[np.ndarray, "256 3"]:
    """The color of each value of a label map."""
    table = np.full((256, 3), UNLABELLED, dtype=np.uint8)
    table[: len(colors)] = np.array(colors, dtype=np.uint8).reshape(-1, 3)
    return table


def colored(labels: UInt8[Tensor, "H W"], colors: Sequence[Color]) -> UInt8[Tensor, "3 H W"]:
    """A label map in the colors of its classes; ignored pixels are white."""
    return torch.from_numpy(color_table(colors)[labels.numpy()]).permute(2, 0, 1)


def overlay(
    image: Shaped[Tensor, "C H W"],
    labels: UInt8[Tensor, "H W"],
    colors: Sequence[Color],
    clear: Sequence[int] = (),
) -> UInt8[Tensor, "3 H W"]:
    """An image under the colors of its classes.

    Args:
        image: the pixels; of more than three channels the first ones are shown.
        labels: the class of each.
        colors: of the classes.
        clear: classes that are left as they are, such as a background.
    """
    shown = three_bands(image)
    mixed = shown * (1 - STRENGTH) + colored(labels, colors) * STRENGTH
    plain = torch.isin(labels, torch.tensor([*clear, IGNORE], dtype=torch.uint8))
    return torch.where(plain, shown, mixed.round().to(torch.uint8))


def palette_png(values: UInt8[np.ndarray, "H W"], colors: dict[int, Color]) -> bytes:
    """A PNG whose pixels are `values` and that is shown in colors.

    Args:
        values: of the pixels.
        colors: of each value.
    """
    table = np.zeros((256, 3), dtype=np.uint8)
    for value, color in colors.items():
        table[value] = color
    image = Image.fromarray(values)
    image.putpalette(table.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def to_tile(image: UInt8[Tensor, "3 H W"], nearest: bool = False) -> UInt8[Tensor, "3 t t"]:
    """An image as large as fits into a square tile, in its middle."""
    height, width = image.shape[1:]
    ratio = TILE / max(height, width)
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    mode = {"mode": "nearest"} if nearest else {"mode": "bilinear", "antialias": True}
    small = F.interpolate(image.unsqueeze(0), size=size, **mode)[0]
    tile = torch.full((3, TILE, TILE), 255, dtype=torch.uint8)
    top, left = (TILE - size[0]) // 2, (TILE - size[1]) // 2
    tile[:, top : top + size[0], left : left + size[1]] = small
    return tile


def draw_sheet(
    rows: dict[str, list[UInt8[Tensor, "3 _h _w"]]],
    title: str,
    names: Sequence[str],
    notes: Sequence[str],
    path: Path,
) -> None:
    """Draws images below each other, a column for each.

    Args:
        rows: what each row is called, and its images, of any sizes.
        title: above them.
        names: of the columns.
        notes: below them.
        path: the picture.
    """
    tiles = {name: torch.stack([to_tile(one) for one in images]) for name, images in rows.items()}
    with whole_file(path) as partial:
        sheet(tiles, title, names, notes).save(partial)
