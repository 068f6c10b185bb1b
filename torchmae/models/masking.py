"""Which patches the encoder sees. A masking orders the patches of an image: the first K are
visible, the rest hidden.

Every masking hides equally many patches of all images of a batch, works on the device of the noise,
and is deterministic in it. The noise is integers from a counter-based hash, so a mask depends on
(seed, epoch, sample) only, and CPU and GPU agree. `MASKINGS["mine"] = function` adds one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from torchmae.errors import UserError, choose
from torchmae.hashing import BLOCK, GREEN, MASK, NOISE, PREDICT, RATIO, hash32, uniform
from torchmae.models.patches import Size
from torchmae.settings.options import parse_ratio


class Mask(NamedTuple):
    """A partition of an image's patches into those the encoder sees and those to be predicted."""

    keep: Int64[Tensor, "B K"]
    hide: Int64[Tensor, "B M"]

    @property
    def predicted(self) -> Int64[Tensor, "B M"]:
        """The patches whose predictions are shown and judged: the hidden ones, or all where none
        are hidden."""
        return self.hide if self.hide.shape[1] else self.keep


class PartMask(Mask):
    """A mask of which only a part of the hidden patches is to be predicted: the others are in
    neither half, and are not decoded."""


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


def green(noise: Int64[Tensor, "B N"], grid: Size, ratio: float) -> Mask:
    """Green noise (ColorMAE, Hinojosa et al. 2024): hidden regions of middling size, neither single
    patches nor large blocks.

    White noise is smoothed over 3x3 patches, less the same over 7x7, and the patches with the
    largest values are visible. ColorMAE takes Gaussians; box sums of integers are the same bits on
    every device. Smaller grids have smaller boxes, and opposite sides of the grid are neighbours.
    """
    field = hash32(GREEN, noise).unflatten(1, grid)
    narrow, wide = box_sums(field, 3), box_sums(field, 7)
    # Means, both times the number of patches of both boxes.
    values = narrow * box_area(grid, 7) - wide * box_area(grid, 3)
    rank = noise.argsort(dim=1).argsort(dim=1)  # breaks ties
    order = (values.flatten(1) * noise.shape[1] + rank).argsort(dim=1, descending=True)
    return mask_from_order(order, ratio)


def box_sides(grid: Size, side: int) -> list[int]:
    """The sides of a box that fits into the grid, which are odd."""
    return [min(side, length - 1 + length % 2) for length in grid]


def box_area(grid: Size, side: int) -> int:
    """The patches of a box of `box_sums`."""
    return math.prod(box_sides(grid, side))


def box_sums(field: Int64[Tensor, "B h w"], side: int) -> Int64[Tensor, "B h w"]:
    """The sum of the values around each patch, in a square of that side where the grid has it."""
    for dim, length in enumerate(box_sides((field.shape[1], field.shape[2]), side), start=1):
        reach = range(-(length // 2), length // 2 + 1)
        field = torch.stack([field.roll(shift, dims=dim) for shift in reach]).sum(dim=0)
    return field


def in_units(of: Masking, side: int) -> Masking:
    """A masking of units of `side` x `side` patches, all of which are visible or hidden."""

    def masked(noise: Int64[Tensor, "B N"], grid: Size, ratio: float) -> Mask:
        rows, columns = units_of(grid, side)
        first = noise.unflatten(1, grid)[:, ::side, ::side].flatten(1)
        inside = torch.arange(side, device=noise.device)
        within = (inside[:, None] * grid[1] + inside).flatten()

        def patches(units: Int64[Tensor, "B K"]) -> Int64[Tensor, "B P"]:
            corner = units // columns * side * grid[1] + units % columns * side
            return (corner.unsqueeze(2) + within).flatten(1)

        return Mask(*map(patches, of(first, (rows, columns), ratio)))

    return masked


def units_of(grid: Size, side: int) -> Size:
    """Rows and columns of units; `UserError` unless whole units fill the grid."""
    if grid[0] % side or grid[1] % side:
        raise UserError(
            f"mask units of {side}x{side} patches do not fill a grid of {grid[0]}x{grid[1]}: use "
            "a --mask-unit that divides both, or another image or patch size"
        )
    return grid[0] // side, grid[1] // side


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


MASKINGS: dict[str, Masking] = {"random": random, "block": block, "grid": grid, "green": green}


def masking(name: str) -> Masking:
    """The masking of that name in `MASKINGS`, or a `UserError` with the nearest name."""
    return choose(MASKINGS, name, "masking")


@dataclass(frozen=True)
class MaskGenerator:
    """How the patches of images are divided, from their noise and nothing else.

    Attributes:
        name: a name in `MASKINGS`.
        ratio: share of hidden patches (units).
        unit: masks are made of squares of so many patches a side.
        predicted: share of the hidden patches that the decoder predicts, sampled with each mask
            (CrossMAE, Fu et al. 2024; VideoMAE V2, Wang et al. 2023).
        ratios: those that training steps have, one each (`at`); (): all have `ratio`, which is
            their mean.
    """

    name: str = "random"
    ratio: float = 0.75
    unit: int = 1
    predicted: float = 1.0
    ratios: tuple[float, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "MaskGenerator":
        """That of a run with these settings; what older runs do not name is the default."""
        names = {"name": "masking", "unit": "mask_unit", "predicted": "predict_share"}
        known = {mine: settings[name] for mine, name in names.items() if name in settings}
        low, high = parse_ratio(settings.get("mask_ratio", cls.ratio))
        if low == high:
            return cls(**known, ratio=low)
        steps = [low + (high - low) * i / (RATIOS - 1) for i in range(RATIOS)]
        # Decimals as people write them: 0.7, not 0.7000000000000001, so that counts are theirs.
        ratios = tuple(round(ratio, 6) for ratio in steps)
        return cls(**known, ratio=round((low + high) / 2, 6), ratios=ratios)

    def at(self, seed: int, step: int) -> "MaskGenerator":
        """That of a training step (0-based), the same in every process.

        Of `RATIOS` steps in a row each has another ratio, in an order that is drawn by the hash:
        the mean over few steps, of loss, time and operations, is that of the range. The first
        steps begin with the most visible patches, so that what fits into memory then always does.
        """
        if not self.ratios:
            return self
        block, turn = divmod(step, len(self.ratios))
        order = sorted(
            range(len(self.ratios)), key=lambda i: hash32(seed, RATIO, block, i) if block else i
        )
        return replace(self, ratio=self.ratios[order[turn]], ratios=())

    def each(self) -> list["MaskGenerator"]:
        """Those that training steps have, each as often as the others."""
        return [replace(self, ratio=ratio, ratios=()) for ratio in self.ratios or (self.ratio,)]

    def __call__(self, noise: Int64[Tensor, "B N"], grid: Size, turn: int = 0) -> Mask:
        """The masks of some images.

        Args:
            noise: see `noise`.
            grid: patches a column, patches a row.
            turn: of masks that complement each other: in each the next patches in the masking's
                order are visible. At ratio 0.75, turns 0 to 3 make each patch visible once.
        """
        of = masking(self.name)
        mask = (of if self.unit == 1 else in_units(of, self.unit))(noise, grid, self.ratio)
        if turn:
            visible = mask.keep.shape[1]
            order = torch.cat(mask, dim=1).roll(-turn * visible, dims=1)
            mask = Mask(order[:, :visible], order[:, visible:])
        if self.predicted == 1:
            return mask
        order = hash32(PREDICT, noise, turn).gather(1, mask.hide).argsort(dim=1, stable=True)
        some = order[:, : share_of(mask.hide.shape[1], self.predicted)]
        return PartMask(mask.keep, mask.hide.gather(1, some))

    def share(self) -> str:
        """The share of hidden patches in percent: "75" or "60 to 90"."""
        ends = self.ratios[:: RATIOS - 1] or (self.ratio,)
        return " to ".join(f"{100 * ratio:.0f}" for ratio in ends)

    def words(self) -> str:
        """Such as "random, in units of 2x2 patches"."""
        unit = f", in units of {self.unit}x{self.unit} patches" if self.unit > 1 else ""
        return f"{self.name}{unit}"

    def counts(self, grid: Size) -> tuple[int, int]:
        """How many patches of an image are visible, and how many are predicted.

        Raises:
            UserError: unless at least one unit is visible and one hidden, or none at ratio 0;
                units do not fill the grid.
        """
        units = units_of(grid, self.unit)
        visible = num_visible(math.prod(units), self.ratio) * self.unit**2
        return visible, share_of(math.prod(grid) - visible, self.predicted)


RATIOS = 4  # of a range: few numbers of tokens, each of which is compiled once
THREE_QUARTERS = MaskGenerator()  # the paper's


def share_of(hidden: int, share: float) -> int:
    """How many of the hidden patches a share of them is: at least one, if there are any."""
    return min(hidden, max(1, round(hidden * share)))
