"""From decoded pixels to what a model takes: [C, H, W] of one size, uint8 or float32.

Random choices come from a hash of (seed, epoch, sample), not from a state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, Shaped
from torch import Tensor

from torchmae.hashing import CROP, uniform

Pixels = Shaped[np.ndarray, "H W C"]

MAX_ATTEMPTS = 10  # of a random window, before the largest one in the middle is taken


class Crop(NamedTuple):
    """A window of an image in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True)
class WindowCrop:
    """What cuts one window of an image and resizes it; subclasses say which window.

    Args:
        size: (H, W) of the result.
    """

    size: tuple[int, int]

    def sized(self, size: tuple[int, int]) -> "WindowCrop":
        """The same for results of another size."""
        return replace(self, size=size)

    def crop(self, height: int, width: int, epoch: int, sample: int) -> Crop:
        """The window of one sample, in an image of these sides."""
        raise NotImplementedError

    def crops(
        self,
        heights: Int64[np.ndarray, " B"],
        widths: Int64[np.ndarray, " B"],
        epochs: Int64[np.ndarray, " B"],
        samples: Int64[np.ndarray, " B"],
    ) -> list[Crop]:
        """`crop` of each sample."""
        each = zip(heights.tolist(), widths.tolist(), epochs.tolist(), samples.tolist())
        return [self.crop(*one) for one in each]

    def __call__(
        self, image: Pixels, target: Any = None, epoch: int = 0, sample: int = 0
    ) -> tuple[Shaped[Tensor, "C h w"], Any]:
        """The crop of one sample; a label stays as it is."""
        crop = self.crop(image.shape[0], image.shape[1], epoch, sample)
        return resized_crop(image, crop, self.size), target


ASPECTS = (3 / 4, 4 / 3)  # of windows, as in the reference


@dataclass(frozen=True)
class RandomResizedCropFlip(WindowCrop):
    """The paper's pre-training augmentation: random resized crop and horizontal flip (Table 1e).

    A pure function of (seed, epoch, sample).

    Args:
        size: (H, W) of the result.
        seed: of all draws.
        scale: least and largest share of the image's area.
        flip: mirror half of the crops.
        clamp: draw area and aspect once and cut a window that does not fit to the image (the
            reference's linear probe), in place of `MAX_ATTEMPTS` draws (torchvision's).
        aspects: range of the window's aspect, width over height, relative to that of `size`.
    """

    seed: int = 0
    scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    clamp: bool = False
    aspects: tuple[float, float] = ASPECTS

    def crop(self, height: int, width: int, epoch: int, sample: int) -> Crop:
        """The window of one sample."""
        return self.window(
            height, width, lambda counter: uniform(self.seed, CROP, epoch, sample, counter)
        )

    def crops(
        self,
        heights: Int64[np.ndarray, " B"],
        widths: Int64[np.ndarray, " B"],
        epochs: Int64[np.ndarray, " B"],
        samples: Int64[np.ndarray, " B"],
    ) -> list[Crop]:
        """`crop` of each sample in a quarter of the time: all draws are hashed together."""
        draws = uniform(
            self.seed, CROP, epochs[:, None], samples[:, None], np.arange(4 * MAX_ATTEMPTS + 1)
        ).tolist()
        each = zip(heights.tolist(), widths.tolist(), draws)
        return [self.window(height, width, drawn.__getitem__) for height, width, drawn in each]

    def window(self, height: int, width: int, draw: Callable[[int], float]) -> Crop:
        """Up to `MAX_ATTEMPTS` draws of area and aspect; then the largest centred window. With
        `clamp` the first draw always fits.

        Args:
            height: of the image.
            width: of the image.
            draw: a number in [0, 1) for a counter; attempt t uses 4 t + 1 to 4 t + 4.
        """
        flip = self.flip and draw(0) < 0.5
        shape = self.size[1] / self.size[0]
        low, high = self.aspects[0] * shape, self.aspects[1] * shape
        (small, large), (narrow, wide) = self.scale, (math.log(low), math.log(high))
        for first in range(1, 4 * MAX_ATTEMPTS, 4):
            area = height * width * (small + (large - small) * draw(first))
            aspect = math.exp(narrow + (wide - narrow) * draw(first + 1))
            w = round(math.sqrt(area * aspect))
            h = round(math.sqrt(area / aspect))
            if self.clamp:
                w, h = min(max(w, 1), width), min(max(h, 1), height)
            if 0 < w <= width and 0 < h <= height:
                top = int(draw(first + 2) * (height - h + 1))
                left = int(draw(first + 3) * (width - w + 1))
                return Crop(top, left, h, w, flip)
        w = min(width, max(1, round(height * high)))
        h = min(height, max(1, round(width / low)))
        return Crop((height - h) // 2, (width - w) // 2, h, w, flip)


@dataclass(frozen=True)
class FixedCropFlip(WindowCrop):
    """A window of one size at a random place, and horizontal flip: "crop, fixed size" (Table 1e).

    The paper does not give its margin. As usual for 224 px, the shorter side is resized to 256 px
    (in general `size / share`) and `size` is cut; here the window is cut before it is resized.
    A pure function of (seed, epoch, sample).

    Args:
        size: (H, W) of the result.
        seed: of all draws.
        flip: mirror half of the crops.
        share: sides of the window, of those of the largest window of its aspect.
    """

    seed: int = 0
    flip: bool = True
    share: float = 224 / 256

    def crop(self, height: int, width: int, epoch: int, sample: int) -> Crop:
        """The window of one sample, in an image of these sides."""
        h, w = largest_window(height, width, self.size, self.share)
        keys = self.seed, CROP, epoch, sample
        flip, down, across = (uniform(*keys, counter) for counter in range(3))
        top, left = int(down * (height - h + 1)), int(across * (width - w + 1))
        return Crop(top, left, h, w, self.flip and flip < 0.5)


@dataclass(frozen=True)
class CenterCropResize(WindowCrop):
    """The largest centred window of the right aspect, resized; nothing random.

    Args:
        size: (H, W) of the result.
        share: of the window's sides: 0.875 is "resize to 256, crop the centre 224".
        shapes: of which the result has the one whose aspect is nearest to the image's; () for
            `size`.
    """

    share: float = 1.0
    shapes: tuple[tuple[int, int], ...] = ()

    def fitted(self, height: int, width: int) -> "CenterCropResize":
        """The same for images of these sides: with the one size that their result has."""
        if not self.shapes:
            return self
        aspect = math.log(height / width)
        near = min(self.shapes, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))
        return CenterCropResize(near, self.share)

    def crop(self, height: int, width: int, epoch: int = 0, sample: int = 0) -> Crop:
        """The window in an image of these sides, the same in every epoch."""
        h, w = largest_window(height, width, self.fitted(height, width).size, self.share)
        return Crop((height - h) // 2, (width - w) // 2, h, w, False)

    def __call__(
        self, image: Pixels, target: Any = None, epoch: int = 0, sample: int = 0
    ) -> tuple[Shaped[Tensor, "C h w"], Any]:
        """The crop of one sample; a label stays as it is."""
        size = self.fitted(*image.shape[:2]).size
        return resized_crop(image, self.crop(*image.shape[:2]), size), target


def largest_window(
    height: int, width: int, size: tuple[int, int], share: float = 1.0
) -> tuple[int, int]:
    """(height, width) of the largest window in an image that has the aspect of `size`, its sides
    times `share`."""
    ratio = min(height / size[0], width / size[1]) * share
    h, w = (max(1, min(side, round(ratio * wanted))) for side, wanted in zip((height, width), size))
    return h, w


def as_tensor(image: Pixels) -> Shaped[Tensor, "C H W"]:
    """Pixels as a tensor: uint8 those of 8 bits, float32 all others."""
    kind = np.uint8 if image.dtype == np.uint8 else np.float32
    return torch.from_numpy(np.require(image, kind, requirements=["C", "W"])).permute(2, 0, 1)


def resized_crop(
    image: Pixels | Shaped[Tensor, "H W C"], crop: Crop, size: tuple[int, int]
) -> Shaped[Tensor, "C h w"]:
    """The window, resized by an antialiased bicubic filter, mirrored if it says so.

    8-bit pixels stay uint8 (PIL's filter). All others become float32, which holds their values
    exactly where nothing is resized; a pixel that depends on one without a value (NaN) has none.
    """
    window = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if isinstance(window, np.ndarray):
        pixels = as_tensor(window)
    else:
        pixels = window.permute(2, 0, 1)
        pixels = pixels if pixels.dtype == torch.uint8 else pixels.float()
    if pixels.shape[1:] != size:
        pixels = F.interpolate(
            pixels.unsqueeze(0), size=size, mode="bicubic", antialias=True
        ).squeeze(0)
    return (pixels.flip(-1) if crop.flip else pixels).contiguous()
