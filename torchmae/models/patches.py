"""Images as patches: cutting, picking, putting back; fixed 2-D positions and how they fit another grid.

Legend of the shape letters used everywhere:
    B  images in the batch     C  channels            H, W  height and width in pixels
    p  side of a patch         h, w  patches down, across (the grid)      N = h * w  patches of an image
    K  visible patches         M  hidden patches      K + M = N
    D  width of the tokens     P = p * p * C  values of a patch           T  tokens, with the class token
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from torchmae.errors import UserError

IMAGENET = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # mean and deviation of its pixels, a value a channel


def grid_of(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The grid `(h, w)` of an image of `(H, W)` pixels; `UserError` if the patch does not divide it."""
    height, width = image_size
    if (
        patch_size < 1
        or height < patch_size
        or width < patch_size
        or height % patch_size
        or width % patch_size
    ):
        near = [
            max(1, round(side / max(1, patch_size))) * max(1, patch_size) for side in image_size
        ]
        raise UserError(
            f"image size {height}x{width} is not divisible by patch size {patch_size}: "
            f"use image size {near[0]}x{near[1]} or another patch size"
        )
    return height // patch_size, width // patch_size


def patchify(
    images: Shaped[Tensor, "B C H W"], patch_size: int, ids: Int64[Tensor, "B K"] | None = None
) -> Shaped[Tensor, "B K P"]:
    """Cuts images into patches, row by row; the values of a patch are ordered (row, column, channel).

    With `ids` only those patches are cut out, for each image its own: `gather_tokens(patchify(images, patch_size), ids)`.
    """
    batch, channels, height, width = images.shape
    rows, columns = grid_of((height, width), patch_size)
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size).permute(
        0, 2, 4, 3, 5, 1
    )
    if ids is not None:
        cut = cut[
            torch.arange(batch, device=ids.device).unsqueeze(1), ids // columns, ids % columns
        ]
    return cut.reshape(batch, -1, patch_size * patch_size * channels)


def unpatchify(
    patches: Shaped[Tensor, "B N P"], patch_size: int, grid: tuple[int, int]
) -> Shaped[Tensor, "B C H W"]:
    """The inverse of `patchify`."""
    batch, count, values = patches.shape
    rows, columns = grid
    if count != rows * columns or values % patch_size**2:
        raise UserError(
            f"{count} patches of {values} values do not make a {rows}x{columns} grid of {patch_size} px"
        )
    channels = values // patch_size**2
    cut = patches.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(
        batch, channels, rows * patch_size, columns * patch_size
    )


def gather_tokens(
    tokens: Shaped[Tensor, "#B N X"], ids: Int64[Tensor, "B K"]
) -> Shaped[Tensor, "B K X"]:
    """Picks tokens by index, for each image its own; one row of tokens (`B` = 1) serves all images."""
    tokens = tokens.expand(len(ids), -1, -1)
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def scatter_tokens(
    patches: Shaped[Tensor, "B N X"], ids: Int64[Tensor, "B K"], new: Shaped[Tensor, "B K X"]
) -> Tensor:
    """A copy of `patches` with those at `ids` replaced: the inverse of `gather_tokens`."""
    return patches.scatter(1, ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1]), new)


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "1 T D"]:
    """Fixed 2-D sin-cos positions with a zero row first for the class token: float32 `[1, 1 + h * w, dim]`.

    The first half of the dimensions encodes the column, the second the row (width first, as in the MAE reference); within
    a half, sines then cosines of the coordinate at the frequencies 10000 ** (-i / (dim / 4)).
    """
    if dim % 4:
        raise UserError(f"2-D sin-cos positions need a width divisible by 4, not {dim}")
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij"
    )
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [coordinate.reshape(-1, 1) * frequency for coordinate in (columns, rows)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return F.pad(table, (0, 0, 1, 0)).float().unsqueeze(0)


def resize_positions(
    positions: Float[Tensor, "1 T D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 U D"]:
    """Bicubic resizing of a position table with a class row from one grid to another (antialiased when it shrinks)."""
    if positions.shape[1] != 1 + math.prod(old):
        raise UserError(
            f"the position table has {positions.shape[1]} rows, a {old[0]}x{old[1]} grid needs {1 + math.prod(old)}"
        )
    if old == new:
        return positions
    table = positions[:, 1:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=new, mode="bicubic", antialias=True)
    return torch.cat(
        [positions[:, :1], table.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1
    )


def normalize(
    images: Shaped[Tensor, "B C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "B C H W"]:
    """uint8 pixels (0..255) to floats: `(pixels / 255 - mean) / std`, a mean and a deviation for each channel."""
    shift, scale = (
        images.new_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std)
    )
    return (images.float() / 255 - shift) / scale


def denormalize(
    images: Float[Tensor, "B C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Shaped[Tensor, "B C H W"]:
    """The inverse of `normalize`: uint8 pixels, rounded and clamped to 0..255."""
    shift, scale = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return ((images * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)


def patch_statistics(patches: Float[Tensor, "B M P"]) -> Float[Tensor, "B M 2"]:
    """The mean and deviation of each patch over all of its values: unbiased variance, plus 1e-6, as in the reference."""
    variance, mean = torch.var_mean(patches, dim=-1)
    return torch.stack([mean, (variance + 1e-6).sqrt()], dim=-1)
