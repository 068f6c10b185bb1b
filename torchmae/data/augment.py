"""What changes more than the window: the strong augmentation of fine-tuning (paper Table 9), and
the colour jitter of pre-training (paper Table 1e).

Everything is drawn by (seed, epoch, sample): workers and resuming change nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from torchmae.data.transforms import Pixels, RandomResizedCropFlip, WindowCrop
from torchmae.hashing import AUGMENT, JITTER, hash32, uniform

Op = Callable[[Image.Image, float, "Fill"], Image.Image]
Fill = tuple[int, ...] | int


def warp(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Op:
    """A geometric operation from its affine matrix (output to input) at a signed level of -1..1."""
    return lambda image, level, fill: image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix(image, level),
        Image.Resampling.BICUBIC,
        fillcolor=fill,
    )


def enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Op:
    """Colour, contrast, brightness or sharpness times 1 + 0.9 * level, at least 0.1."""
    return lambda image, level, fill: kind(image).enhance(max(0.1, 1 + 0.9 * level))


def solarize_add(image: Image.Image, level: float, fill: Fill) -> Image.Image:
    """Adds up to 110 to values below 128."""
    return image.point(
        [min(255, i + int(110 * abs(level))) if i < 128 else i for i in range(256)]
        * len(image.getbands())
    )


# The 15 operations of RandAugment (Cubuk et al. 2019) in the variant in which all get stronger with
# the level ("inc1" in timm, which the reference uses). The level is -1..1 with a random sign;
# operations without a sign use its absolute value.
OPS: dict[str, Op] = {
    "auto contrast": lambda image, level, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, level, fill: ImageOps.equalize(image),
    "invert": lambda image, level, fill: ImageOps.invert(image),
    "rotate": lambda image, level, fill: image.rotate(
        30 * level, Image.Resampling.BICUBIC, fillcolor=fill
    ),
    "posterize": lambda image, level, fill: ImageOps.posterize(
        image, max(1, 4 - int(4 * abs(level)))
    ),
    "solarize": lambda image, level, fill: ImageOps.solarize(image, 256 - int(256 * abs(level))),
    "solarize add": solarize_add,
    "color": enhance(ImageEnhance.Color),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "shear x": warp(lambda image, level: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear y": warp(lambda image, level: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate x": warp(lambda image, level: (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate y": warp(lambda image, level: (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}


@dataclass(frozen=True)
class StrongAugment:
    """Random crop and flip, RandAugment and random erasing.

    RandAugment applies two operations, each with probability 1/2, to 8-bit images of 1 or 3
    channels. Of others, what is erased has no value: the mean, after normalization.

    Args:
        crop: the random crop and flip.
        magnitude: of RandAugment, 0..10 (0: none); normal noise of std 0.5 is added.
        erase: probability that a rectangle becomes noise (Zhong et al. 2017: area 0.02..1/3 of the
            image, aspect 0.3..1/0.3).
        mean: per channel, 0..1: fills what geometric operations uncover; mean of the noise.
        std: per channel, 0..1: of the noise.
    """

    crop: RandomResizedCropFlip
    magnitude: float
    erase: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self, image: Pixels, target: Any, epoch: int, sample: int
    ) -> tuple[Shaped[Tensor, "C h w"], Any]:
        """The augmented crop of one sample; a label stays as it is."""
        pixels, target = self.crop(image, target, epoch, sample)
        keys = [hash32(self.crop.seed, AUGMENT, epoch, sample, i) for i in range(2)]
        generator = np.random.Generator(np.random.Philox(key=keys[0] << 32 | keys[1]))
        if self.magnitude and len(pixels) in (1, 3) and pixels.dtype == torch.uint8:
            pixels = self.rand_augment(pixels, generator)
        if generator.uniform() < self.erase:
            pixels = self.erased(pixels, generator)
        return pixels, target

    def rand_augment(
        self, pixels: Shaped[Tensor, "C h w"], generator: np.random.Generator
    ) -> Shaped[Tensor, "C h w"]:
        array = pixels.permute(1, 2, 0).numpy()
        grey = array.shape[2] == 1
        image = Image.fromarray(array[:, :, 0] if grey else np.ascontiguousarray(array))
        fill = tuple(round(255 * value) for value in self.mean)
        names = list(OPS)
        for index in generator.integers(0, len(names), 2):
            level = min(10.0, max(0.0, generator.normal(self.magnitude, 0.5))) / 10
            sign = -1 if generator.uniform() < 0.5 else 1
            if generator.uniform() < 0.5:
                image = OPS[names[index]](image, sign * level, fill[0] if grey else fill)
        made = np.array(image)
        return torch.from_numpy(
            made[None] if grey else np.ascontiguousarray(made.transpose(2, 0, 1))
        )

    def erased(
        self, pixels: Shaped[Tensor, "C h w"], generator: np.random.Generator
    ) -> Shaped[Tensor, "C h w"]:
        channels, height, width = pixels.shape
        for _ in range(10):
            area = height * width * generator.uniform(0.02, 1 / 3)
            aspect = np.exp(generator.uniform(np.log(0.3), -np.log(0.3)))
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top = generator.integers(0, height - h + 1)
                left = generator.integers(0, width - w + 1)
                pixels = pixels.clone()
                if pixels.is_floating_point():
                    pixels[:, top : top + h, left : left + w] = torch.nan
                    break
                colour = [np.array(values).reshape(-1, 1, 1) for values in (self.mean, self.std)]
                noise = (colour[0] + colour[1] * generator.standard_normal((channels, h, w))) * 255
                pixels[:, top : top + h, left : left + w] = torch.from_numpy(
                    noise.round().clip(0, 255).astype(np.uint8)
                )
                break
        return pixels


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Hues moved by a share of the colour circle, -0.5..0.5, in steps of 1/255."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(i + int(255 * shift)) % 256 for i in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


# The operations of colour jitter by what their number is: a factor, or a shift of hues. The first
# two are defined for one channel.
JITTERS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": shift_hue,
}


@dataclass(frozen=True)
class ColorJitter:
    """A crop whose colours change at random: "crop + color jitter" (paper Table 1e).

    Brightness, contrast and saturation are multiplied by factors in 1 - strength..1 + strength,
    hues move by up to strength / 4 of the circle, in a random order. These are the proportions of
    SimCLR (Chen et al. 2020, appendix A) and, with 0.4, of MoCo v2; the paper gives none. Images
    that do not have 3 channels have no saturation and no hue: brightness and contrast change, by
    the same factors in each channel, contrast around the channel's own mean.

    Args:
        crop: makes the image, before its colours change.
        strength: 0..1.
        seed: of all draws.
    """

    crop: WindowCrop
    strength: float
    seed: int = 0

    def sized(self, size: tuple[int, int]) -> "ColorJitter":
        """The same for results of another size."""
        return replace(self, crop=self.crop.sized(size))

    def draw(self, epoch: int, sample: int) -> list[tuple[str, float]]:
        """The operations of one sample with their numbers, in their order."""
        drawn = [uniform(self.seed, JITTER, epoch, sample, i) for i in range(2 * len(JITTERS))]
        changes = [(2 * x - 1) * self.strength for x in drawn[: len(JITTERS)]]
        numbers = [*(1 + change for change in changes[:3]), changes[3] / 4]
        order = sorted(zip(drawn[len(JITTERS) :], JITTERS, numbers))
        return [(name, number) for _, name, number in order]

    def __call__(
        self, image: Pixels, target: Any, epoch: int, sample: int
    ) -> tuple[Shaped[Tensor, "C h w"], Any]:
        """The crop of one sample with its colours changed; a label stays as it is."""
        pixels, target = self.crop(image, target, epoch, sample)
        return jittered(pixels, self.draw(epoch, sample)), target


def jittered(
    pixels: Shaped[Tensor, "C h w"], changes: Sequence[tuple[str, float]]
) -> Shaped[Tensor, "C h w"]:
    """The image after some of `JITTERS`, one after the other; of floats brightness and contrast
    change, in float32."""
    if pixels.is_floating_point():
        for name, number in changes:
            if name == "brightness":
                pixels = pixels * number
            elif name == "contrast":
                mean = pixels.nanmean((1, 2), keepdim=True)
                pixels = mean + (pixels - mean) * number
        return pixels
    colour = len(pixels) == 3
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    images = [Image.fromarray(array)] if colour else list(map(Image.fromarray, pixels.numpy()))
    for name, number in changes:
        if colour or name in ("brightness", "contrast"):
            images = [JITTERS[name](image, number) for image in images]
    if colour:
        return torch.from_numpy(np.array(images[0])).permute(2, 0, 1).contiguous()
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))
