"""Images as patches: cut, gathered, put back; fixed positions and how they are resized to another
grid.

Shape letters used everywhere:
    B  images in the batch      C  channels           H, W  height and width in pixels
    p, q  height and width of a patch                 h, w  patches down and across (the grid)
    N = h * w  patches of an image                    P = p * q * C  values of a patch
    K  visible patches          M  hidden patches     K + M = N
    D  width of the tokens      T  tokens, with the prefix tokens (class, registers)

Sizes (`image_size`, `patch`, `grid`) are tuples, one entry a dimension of the image; what is built
is 2-D.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from torchmae.errors import UserError, choose
from torchmae.scaling import scaled

Size = tuple[int, ...]

# Mean and std of ImageNet's pixels in 0..1, one value a channel.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

WHITE = 255  # the pixel value that `normalize` maps to 1.0; known here and nowhere else


def as_size(side: int | Size) -> Size:
    """A side, or a side for each dimension, as a 2-D size."""
    size = (side, side) if isinstance(side, int) else tuple(side)
    if len(size) != 2:
        raise UserError(f"{size} is no size: use one side, or height and width")
    return size


def size_name(size: int | Size) -> str:
    """A size for people: "16" for a square, else "16x8"."""
    size = as_size(size)
    return str(size[0]) if len(set(size)) == 1 else "x".join(map(str, size))


MOST_PATCHES = 2**18  # of an image: 8192 x 8192 px in patches of 16


def grid_of(image_size: Size, patch: Size) -> Size:
    """The grid `(h, w)` of an image of `(H, W)` pixels; `UserError` if the patch does not divide
    it."""
    if any(p < 1 or side < p or side % p for side, p in zip(image_size, patch)):
        sides = [max(1, p) for p in patch]
        near = "x".join(str(max(1, round(side / p)) * p) for side, p in zip(image_size, sides))
        raise UserError(
            f"image size {'x'.join(map(str, image_size))} is not divisible by patch size "
            f"{size_name(patch)}: use image size {near} or another patch size"
        )
    grid = tuple(side // p for side, p in zip(image_size, patch))
    if math.prod(grid) > MOST_PATCHES:
        raise UserError(
            f"image size {'x'.join(map(str, image_size))} in patches of {size_name(patch)} px is "
            f"{math.prod(grid):,} patches: use at most {MOST_PATCHES:,} (smaller images, or cut "
            "them into tiles)"
        )
    return grid


def patchify(
    images: Shaped[Tensor, "B C H W"], patch: Size, ids: Int64[Tensor, "B K"] | None = None
) -> Shaped[Tensor, "B K P"]:
    """Cuts images into patches, row by row.

    Args:
        images: any dtype.
        patch: height and width of a patch in pixels.
        ids: return only these patches, for each image its own.

    Returns:
        The values of each patch in the order (row, column, channel), as in the MAE reference.
    """
    batch, channels, height, width = images.shape
    rows, columns = grid_of((height, width), patch)
    p, q = patch
    cut = images.reshape(batch, channels, rows, p, columns, q).permute(0, 2, 4, 3, 5, 1)
    patches = cut.reshape(batch, -1, p * q * channels)
    return patches if ids is None else gather_tokens(patches, ids)


def pad_to_patch(images: Float[Tensor, "B C H W"], patch: Size) -> Float[Tensor, "B C h w"]:
    """Images whose sides the patch divides: zeros at the bottom and on the right, which are the
    mean of normalized pixels."""
    rows, columns = (-side % p for side, p in zip(images.shape[-2:], patch))
    return F.pad(images, (0, columns, 0, rows)) if rows or columns else images


def unpatchify(
    patches: Shaped[Tensor, "B N P"], patch: Size, grid: Size
) -> Shaped[Tensor, "B C H W"]:
    """The inverse of `patchify`; `UserError` if the patches do not fill the grid."""
    batch, count, values = patches.shape
    (rows, columns), (p, q) = grid, patch
    if count != rows * columns or values % (p * q):
        raise UserError(
            f"{count} patches of {values} values do not make a {rows}x{columns} grid of "
            f"{size_name(patch)} px"
        )
    channels = values // (p * q)
    cut = patches.reshape(batch, rows, columns, p, q, channels).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(batch, channels, rows * p, columns * q)


def gather_tokens(
    tokens: Shaped[Tensor, "#B N X"], ids: Int64[Tensor, "B K"]
) -> Shaped[Tensor, "B K X"]:
    """Gathers tokens by index, for each image its own; tokens with `B` = 1 are shared by all
    images."""
    # Whole rows, not `gather`, which looks up every value: on a CPU 3 times as fast with gradient.
    # Each row of each image has its own gradient, so that sums over images are exact and, on GPUs,
    # deterministic.
    count = tokens.shape[1]
    if len(tokens) == 1 and not tokens.requires_grad:
        rows = tokens[0].index_select(0, ids.flatten())
    else:
        first = count * torch.arange(len(ids), device=ids.device).unsqueeze(1)
        rows = (
            tokens.expand(len(ids), -1, -1).flatten(0, 1).index_select(0, (ids + first).flatten())
        )
    return rows.unflatten(0, ids.shape)


def scatter_tokens(
    patches: Shaped[Tensor, "B N X"], ids: Int64[Tensor, "B K"], new: Shaped[Tensor, "B K X"]
) -> Tensor:
    """A copy of `patches` with those at `ids` replaced: the inverse of `gather_tokens`."""
    return patches.scatter(1, ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1]), new)


def sincos_positions(grid: Size, dim: int) -> Float[Tensor, "1 T D"]:
    """Fixed 2-D sin-cos positions with a zero row first for the class token: float32 `[1, 1 + h *
    w, dim]`.

    The first half of the dimensions encodes the column, the second the row (width first, as in the
    MAE reference); within a half, sines then cosines of the coordinate at the frequencies 10000 **
    (-i / (dim / 4)).
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


# Whether a bicubic resize of a position table is antialiased. In torch that also changes the cubic
# (a = -0.5, not -0.75), so the two differ when enlarging too: by up to 0.05 on a sin-cos table.
RESIZINGS = {
    "timm": True,
    "reference": False,  # interpolate_pos_embed of facebookresearch/mae
}


def resize_positions(
    positions: Float[Tensor, "1 T D"], old: Size, new: Size, rule: str = "timm"
) -> Float[Tensor, "1 U D"]:
    """Resizes a position table with a class row, which stays, to another grid: bicubic.

    Args:
        positions: a row for the class token, then one for each patch.
        old: its grid.
        new: the grid of the result.
        rule: a name in `RESIZINGS`.
    """
    if positions.shape[1] != 1 + math.prod(old):
        raise UserError(
            f"the position table has {positions.shape[1]} rows, a {'x'.join(map(str, old))} "
            f"grid needs {1 + math.prod(old)}"
        )
    # A graph for images of any size must not depend on whether the traced one has the table's grid.
    if not torch.compiler.is_exporting() and old == new:
        return positions
    table = positions[:, 1:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    antialias = choose(RESIZINGS, rule, "position resizing")
    table = F.interpolate(table, size=new, mode="bicubic", antialias=antialias)
    return torch.cat(
        [positions[:, :1], table.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1
    )


def check_pixels(images: object, channels: int, eight_bits: bool) -> None:
    """Raises `UserError` for what is no batch of images of a model.

    Args:
        images: a tensor [B, C, H, W] of pixels.
        channels: of the model.
        eight_bits: whether the model was trained on pixels of 8 bits.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
        shape = list(getattr(images, "shape", [])) or type(images).__name__
        raise UserError(
            f"images {shape}: a tensor [B, {channels}, H, W] is needed. Of an array [H, W, C]: "
            "torch.from_numpy(array).permute(2, 0, 1)[None]"
        )
    if eight_bits and images.dtype != torch.uint8:
        raise UserError(
            f"images of {str(images.dtype).removeprefix('torch.')}: the model was trained on "
            "pixels of 8 bits; give uint8 in 0..255"
        )


def normalize(
    images: Shaped[Tensor, "B C H W"],
    statistics: Float[Tensor, "2 C 1 1"],
    kind: str = "none",
    window: Float[Tensor, "2 _ 1 1"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Pixels to what networks take: 8-bit ones to `(pixels / 255 - mean) / std`, floats to `(scaled
    - mean) / std`, and to 0, the mean, where they have no value (NaN).

    Args:
        images: uint8, or floats for images of any other type.
        statistics: mean and std of each channel, of pixels in 0..1, or of floats after they are
            scaled; on the device of the images.
        kind: of floats, how they are scaled: a name in `torchmae.scaling.SCALES`.
        window: its ends, where it is a window.
    """
    mean, std = statistics
    if images.dtype == torch.uint8:
        return (images.float() / WHITE).sub_(mean).div_(std)
    return scaled(images.float(), kind, window).sub(mean).div_(std).nan_to_num_(0.0)


SHOWN = 3.0  # standard deviations around the mean of floats that pictures show, from black to white


def denormalize(
    images: Float[Tensor, "B C H W"], statistics: Float[Tensor, "2 C 1 1"], floats: bool = False
) -> UInt8[Tensor, "B C H W"]:
    """uint8 pixels for people, rounded and clamped to 0..255: the inverse of `normalize`, or of
    `floats` the values from -3 to 3 standard deviations."""
    mean, std = statistics
    shares = (images + SHOWN) / (2 * SHOWN) if floats else images * std + mean
    return (shares * WHITE).round().clamp(0, WHITE).to(torch.uint8)


def patch_statistics(patches: Float[Tensor, "B M P"]) -> Float[Tensor, "B M 2"]:
    """Mean and std of each patch over all of its values; the variance is unbiased, plus 1e-6 (as in
    the reference)."""
    return standardize(patches)[1]


def standardize(
    patches: Float[Tensor, "B M P"],
) -> tuple[Float[Tensor, "B M P"], Float[Tensor, "B M 2"]]:
    """Patches minus their means, over their standard deviations, and their `patch_statistics`.

    By layer normalization, whose variance is biased: 3 to 8 times as fast as `torch.var_mean` on a
    CPU (768 to 192 values).
    """
    values = patches.shape[-1]
    biased = (values - 1) / values
    weight = patches.new_full((values,), math.sqrt(biased))
    normed, mean, inverse = torch.native_layer_norm(patches, (values,), weight, None, 1e-6 * biased)
    return normed, torch.cat([mean, 1 / (inverse * math.sqrt(biased))], dim=-1)


# Tokens [B, prefix + N, D], behind `prefix` tokens that are no patches, to features.
POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda tokens, prefix: tokens[:, prefix:].mean(1),
    "cls": lambda tokens, prefix: tokens[:, 0],
    "cls+mean": lambda tokens, prefix: torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1),
}


@runtime_checkable
class Prefixed(Protocol):
    """An encoder, as far as pooling needs it."""

    num_prefix_tokens: int


def choose_pool(encoder: Prefixed, pool: str) -> Callable[[Tensor, int], Tensor]:
    """A function of `POOLS`; `UserError` where the encoder has no class token for it."""
    pooled = choose(POOLS, pool, "pool")
    if pool != "mean" and not encoder.num_prefix_tokens:
        raise UserError(f"--pool {pool}: this encoder has no class token; use mean")
    return pooled
