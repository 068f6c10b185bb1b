"""Which patches the encoder sees. A masking orders the patches of an image: the first K are
visible, the rest hidden.

Every masking hides equally many patches of all images of a batch, works on the device of the noise,
and is deterministic in it. The noise is integers from a counter-based hash, so a mask depends on
(seed, epoch, sample) only, and CPU and GPU agree. `MASKINGS["mine"] = function` adds one.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from torchmae.errors import UserError, choose
from torchmae.hashing import BLOCK, MASK, NOISE, hash32, uniform
from torchmae.models.patches import Size


class Mask(NamedTuple):
    """A partition of an image's patches into those the encoder sees and those to be predicted."""

    keep: Int64[Tensor, "B K"]
    hide: Int64[Tensor, "B M"]

    @property
    def predicted(self) -> Int64[Tensor, "B M"]:
        """The patches whose predictions are shown and judged: the hidden ones, or all where none
        are hidden."""
        return self.hide if self.hide.shape[1] else self.keep


Masking = Callable[[Int64[Tensor, "B N"], Size, float], Mask]


def noise(
    seed: int, epoch: Int64[Tensor, " B"], sample: Int64[Tensor, " B"], patches: int
) -> Int64[Tensor, "B N"]:
    """Integers >= 0, all different within an image: 32 hashed bits, then the patch index, which
    breaks ties."""
    place = torch.arange(patches, device=sample.device)
    return hash32(seed, MASK, epoch.unsqueeze(1), sample.unsqueeze(1), place) * patches + place


def num_visible(patches: int, ratio: float) -> int:
    """How many patches stay visible: `int(N * (1 - ratio))` in floats, as in the reference.

    Floats make it one less than the decimals say where these give a whole number and 1 - ratio is
    rounded down: 39 of 400 patches at 0.9, not 40. The same masks as the reference and
    transformers, in which an exported model must be the same function, are worth more than that
    patch. At ratio 0 all are visible, which is for a denoising autoencoder.

    Raises:
        UserError: unless 0 < K < N, or K = N at ratio 0.
    """
    count = int(patches * (1 - ratio))
    if not 0 < count < patches and ratio:
        raise UserError(
            f"mask ratio {ratio} leaves {count} of {patches} patches visible: at least one "
            "must be visible and one hidden"
        )
    return count


def gaussian(
    seed: int, epoch: Int64[Tensor, " B"], sample: Int64[Tensor, " B"], size: Size
) -> Float[Tensor, "B C H W"]:
    """Standard normal noise for images of a size (C, H, W), a function of (seed, epoch, sample)."""
    place = torch.arange(math.prod(size), device=sample.device)
    keys = (seed, NOISE, epoch.unsqueeze(1), sample.unsqueeze(1), place)
    radius = (-2 * (1 - uniform(*keys, 0)).log()).sqrt()  # Box-Muller; 1 - u is above 0
    return (radius * (2 * math.pi * uniform(*keys, 1)).cos()).unflatten(1, size)


def mask_from_order(order: Int64[Tensor, "B N"], ratio: float) -> Mask:
    """The first K patches of the order are visible, the others hidden."""
    count = num_visible(order.shape[1], ratio)
    return Mask(order[:, :count], order[:, count:])


def random(noise: Int64[Tensor, "B N"], grid: Size, ratio: float) -> Mask:
    """Uniform without replacement (paper section 3, the default)."""
    return mask_from_order(noise.argsort(dim=1), ratio)


def block(noise: Int64[Tensor, "B N"], grid: Size, ratio: float) -> Mask:
    """Blocks as in BEiT (paper Table 1f): rectangles are placed one by one until exactly the ratio
    is hidden.

    Of the last rectangle only as many patches are hidden as are still needed, row by row; if the
    rectangles do not cover enough (rare), single patches follow at random. The paper does not
    publish its generator; the aspect range is BEiT's (Bao et al. 2021, algorithm 1).
    """
    rows, columns = grid
    batch, patches = noise.shape
    shapes = block_table(rows, columns, noise.device)
    draws = torch.arange(BLOCKS, device=noise.device)

    def draw(purpose: int) -> Int64[Tensor, "B Blocks"]:
        return hash32(BLOCK, noise[:, :1], draws, purpose)

    shape = shapes[draw(0) % len(shapes)]
    height, width = shape[..., 0], shape[..., 1]
    top, left = draw(1) % (rows - height + 1), draw(2) % (columns - width + 1)
    place = torch.arange(patches, device=noise.device)
    down, across = (x.view(batch, BLOCKS, 1) for x in (top, left))
    row, column = place // columns - down, place % columns - across
    inside = (
        (row >= 0) & (row < height.unsqueeze(2)) & (column >= 0) & (column < width.unsqueeze(2))
    )
    first = torch.where(inside.any(1), inside.int().argmax(1), BLOCKS)
    # Patches of later blocks come earlier in the order (visible); within a block by place;
    # uncovered ones by noise.
    within = torch.where(first < BLOCKS, patches - 1 - place, noise.argsort(dim=1).argsort(dim=1))
    return mask_from_order(((BLOCKS - first) * patches + within).argsort(dim=1), ratio)


BLOCKS = 32


@cache
def block_shapes(rows: int, columns: int) -> list[tuple[int, int]]:
    """A table of block sizes, so that drawing one needs integers only: 16 areas by 16 log-spaced
    aspects 0.3..1/0.3."""
    patches = rows * columns
    smallest = max(1.0, patches * 16 / 196)  # BEiT's smallest block is 16 patches of 14 x 14
    largest = max(1.0, patches / 2)
    table = []
    for i in range(16):
        area = smallest + (largest - smallest) * (i + 0.5) / 16
        for j in range(16):
            aspect = 0.3 ** (1 - 2 * (j + 0.5) / 16)
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            table.append((min(max(height, 1), rows), min(max(width, 1), columns)))
    return table


@cache
def block_table(rows: int, columns: int, device: torch.device) -> Int64[Tensor, "256 2"]:
    """`block_shapes` on a device, copied there once."""
    return torch.tensor(block_shapes(rows, columns), device=device)


def grid(noise: Int64[Tensor, "B N"], grid: Size, ratio: float) -> Mask:
    """Regular (paper Table 1f): at 75 % the upper left patch of every 2x2 is visible.

    Other ratios use the corners in a fixed order: upper left, lower right, upper right, lower left;
    within the corner of which only a part is visible, the noise decides.
    """
    place = torch.arange(noise.shape[1], device=noise.device)
    row, column = place // grid[1] % 2, place % grid[1] % 2
    # 0 upper left, 1 lower right, 2 upper right, 3 lower left
    turn = 3 * row + 2 * column - 4 * row * column
    rank = noise.argsort(dim=1).argsort(dim=1)
    return mask_from_order((turn * noise.shape[1] + rank).argsort(dim=1), ratio)


def mask_from_bool(hidden: Bool[Tensor, "B N"]) -> Mask:
    """A user's own mask, True where hidden; `UserError` unless all images hide equally many
    patches, at least one and not all."""
    counts = hidden.sum(dim=1)
    count = int(counts[0])
    patches = hidden.shape[1]
    if not bool((counts == count).all()):
        raise UserError(
            f"masks of one batch must hide equally many patches, not {counts.min()} to "
            f"{counts.max()}"
        )
    if not 0 < count < patches:
        raise UserError(
            f"the mask hides {count} of {patches} patches: at least one must be visible and one "
            "hidden"
        )
    order = hidden.int().argsort(dim=1, stable=True)
    return Mask(order[:, : patches - count], order[:, patches - count :])


MASKINGS: dict[str, Masking] = {"random": random, "block": block, "grid": grid}


def masking(name: str) -> Masking:
    """The masking of that name in `MASKINGS`, or a `UserError` with the nearest name."""
    return choose(MASKINGS, name, "masking")
