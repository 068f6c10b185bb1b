"""How an image lies on a canvas of fixed size, and what belongs to it with it: label maps, boxes,
points.

The image is resized with its aspect kept, mirrored or not, and moved; what it does not cover, at
the bottom and on the right, is padding. Random placements come from a hash of (seed, epoch,
sample).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, Integer, Shaped
from torch import Tensor

from torchmae.data.transforms import Pixels, as_tensor
from torchmae.hashing import PLACE, uniform

# Which side of an image is that of the canvas at scale 1.
FITS = ("short", "long", "own")


class Placement(NamedTuple):
    """Where an image lies on a canvas.

    Args:
        height, width: of the resized image.
        top, left: of the canvas inside the resized (and mirrored) image, at least 0.
        size: height and width of the canvas.
        flip: whether the image is mirrored, before the canvas is cut.
    """

    height: int
    width: int
    top: int
    left: int
    size: tuple[int, int]
    flip: bool = False

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width of the canvas that the image covers; the rest is padding."""
        down, across = self.height - self.top, self.width - self.left
        return min(self.size[0], down), min(self.size[1], across)


def place_image(
    image: Pixels, placement: Placement, fill: tuple[float, ...] = (0,)
) -> Shaped[Tensor, "C h w"]:
    """The canvas with the image on it: bilinear, antialiased where it shrinks.

    Args:
        image: the pixels.
        placement: where they go.
        fill: of the padding, one value for each channel or one for all.
    """
    pixels = as_tensor(image)
    sides = (placement.height, placement.width)
    if pixels.shape[1:] != sides:
        resized = F.interpolate(pixels.unsqueeze(0), size=sides, mode="bilinear", antialias=True)
        pixels = resized.squeeze(0)
    pixels = pixels.flip(-1) if placement.flip else pixels
    rows, columns = placement.covered
    top, left = placement.top, placement.left
    window = pixels[:, top : top + rows, left : left + columns]
    if window.shape[1:] == placement.size:
        return window.contiguous()
    channels = torch.tensor(fill, dtype=pixels.dtype).expand(len(pixels))
    canvas = channels.view(-1, 1, 1).repeat(1, *placement.size)
    canvas[:, :rows, :columns] = window
    return canvas


def place_labels(
    labels: Integer[np.ndarray, "H W"], placement: Placement, fill: int = 255
) -> Int64[Tensor, "h w"]:
    """The label of the pixel nearest to each pixel of the canvas; `fill` is the padding's."""
    rows, columns = placement.covered
    down = nearest(placement.top, rows, placement.height, labels.shape[0], flip=False)
    across = nearest(placement.left, columns, placement.width, labels.shape[1], placement.flip)
    canvas = torch.full(placement.size, fill, dtype=torch.int64)
    canvas[:rows, :columns] = torch.from_numpy(labels[down[:, None], across].astype(np.int64))
    return canvas


def nearest(first: int, count: int, side: int, source: int, flip: bool) -> Int64[np.ndarray, " n"]:
    """Of `count` pixels from `first` on along a side that was `source` long: the pixel in which
    the centre of each lies."""
    at = np.arange(first, first + count)
    at = side - 1 - at if flip else at
    return np.minimum(((at + 0.5) * (source / side)).astype(np.int64), source - 1)


def place_points(
    points: Float32[np.ndarray, "N 2"], placement: Placement, height: int, width: int
) -> Float32[np.ndarray, "N 2"]:
    """Points (x, y) of an image of `height` x `width`, on the canvas; not clipped.

    Coordinates are those of the plane: the first pixel covers 0 to 1.
    """
    factors = np.array([placement.width / width, placement.height / height])
    placed = points * factors
    if placement.flip:
        placed[:, 0] = placement.width - placed[:, 0]
    return (placed - [placement.left, placement.top]).astype(np.float32)


def place_boxes(
    boxes: Float32[np.ndarray, "N 4"], placement: Placement, height: int, width: int
) -> Float32[np.ndarray, "N 4"]:
    """Boxes (x1, y1, x2, y2) of an image of `height` x `width`, on the canvas and clipped to what
    the image covers; a box that is outside has no area."""
    corners = place_points(boxes.reshape(-1, 2), placement, height, width).reshape(-1, 4)
    if placement.flip:
        corners = corners[:, [2, 1, 0, 3]]
    rows, columns = placement.covered
    return np.clip(corners, 0, np.array([columns, rows, columns, rows], dtype=np.float32))


def unplace_boxes(
    boxes: Float32[np.ndarray, "N 4"], placement: Placement, height: int, width: int
) -> Float32[np.ndarray, "N 4"]:
    """The inverse of `place_boxes`, for predictions: boxes of the canvas in the image, clipped to
    it."""
    moved = boxes.astype(np.float64) + np.tile([placement.left, placement.top], 2)
    if placement.flip:
        moved = placement.width * np.array([1.0, 0, 1, 0]) - moved * np.array([1, -1, 1, -1])
        moved = moved[:, [2, 1, 0, 3]]
    factors = np.array([width / placement.width, height / placement.height])
    inside = np.clip(moved * np.tile(factors, 2), 0, np.tile([width, height], 2))
    return inside.astype(np.float32)


def fitted(
    height: int, width: int, size: tuple[int, int], fit: str, scale: float = 1.0
) -> tuple[int, int]:
    """Height and width of an image that is resized with its aspect kept.

    Args:
        height: of the image.
        width: of the image.
        size: of the canvas.
        fit: "short": at scale 1 the image just covers the canvas; "long": it just fits on it;
            "own": it keeps its pixels.
        scale: times these sides.
    """
    ratios = (size[0] / height, size[1] / width)
    ratio = {"short": max(ratios), "long": min(ratios), "own": 1.0}[fit] * scale
    return max(1, round(height * ratio)), max(1, round(width * ratio))


@dataclass(frozen=True)
class ScaleJitterCrop:
    """A random scale, a random canvas and a flip: large-scale jitter (Ghiasi et al. 2021) with
    fit "long", the usual augmentation of semantic segmentation with "short".

    A pure function of (seed, epoch, sample).

    Args:
        size: (H, W) of the canvas.
        seed: of all draws.
        scale: smallest and largest scale, drawn uniformly.
        fit: what scale 1 is, see `fitted`.
        flip: mirror half of the images.
    """

    size: tuple[int, int]
    seed: int = 0
    scale: tuple[float, float] = (0.5, 2.0)
    fit: str = "short"
    flip: bool = True

    def placement(
        self, height: int, width: int, epoch: int = 0, sample: int = 0, draw: int = 0
    ) -> Placement:
        """Of one sample, in an image of these sides; `draw` counts repeated draws."""
        keys = self.seed, PLACE, epoch, sample, draw
        scale, down, across, flip = (uniform(*keys, counter) for counter in range(4))
        low, high = self.scale
        h, w = fitted(height, width, self.size, self.fit, low + (high - low) * scale)
        top = int(down * (max(0, h - self.size[0]) + 1))
        left = int(across * (max(0, w - self.size[1]) + 1))
        return Placement(h, w, top, left, self.size, self.flip and flip < 0.5)


@dataclass(frozen=True)
class FitResize:
    """The image in the corner of the canvas, or its middle where it is larger; nothing random.

    Args:
        size: (H, W) of the canvas.
        fit: what is resized, see `fitted`.
    """

    size: tuple[int, int]
    fit: str = "long"

    def placement(self, height: int, width: int, epoch: int = 0, sample: int = 0) -> Placement:
        """Of an image of these sides, the same in every epoch."""
        h, w = fitted(height, width, self.size, self.fit)
        top, left = max(0, h - self.size[0]) // 2, max(0, w - self.size[1]) // 2
        return Placement(h, w, top, left, self.size)
