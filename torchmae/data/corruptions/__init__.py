"""The 15 corruptions of ImageNet-C in five strengths (Hendrycks & Dietterich 2019, arXiv
1903.12261), written from their description with the published numbers.

The numbers are for images of 224 px; of other sizes, lengths (those "in px") are in proportion to
the shorter side. Shares, qualities and standard deviations stay as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from torchmae.data.corruptions import blurs, digital, noise, weather
from torchmae.data.transforms import CenterCropResize, Pixels
from torchmae.hashing import CORRUPT, hash32

STRENGTHS = (1, 2, 3, 4, 5)
CHANNELS = (1, 3)  # for which corruptions are defined: gray and color

Make = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]


class Corruption(NamedTuple):
    """One way in which images get worse.

    Attributes:
        make: from values of 0..1, the numbers of a strength and a generator to values, which may
            be beyond 0..1.
        strengths: the numbers of strength 1 to 5.
        meaning: what the numbers are.
    """

    make: Make
    strengths: Sequence[tuple[float, ...]]
    meaning: str

    def __call__(self, image: Pixels, strength: int, rng: np.random.Generator) -> Pixels:
        """The image at a strength of 1 to 5: uint8 [H, W, 1 or 3], a new array."""
        made = self.make(image / 255, self.strengths[strength - 1], rng)
        return np.rint(255 * np.clip(made, 0, 1)).astype(np.uint8)


def singles(*numbers: float) -> list[tuple[float]]:
    return [(number,) for number in numbers]


# In the order of the paper. The numbers of its authors' code (github.com/hendrycks/robustness),
# which TensorFlow Datasets (imagenet2012_corrupted) has too.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        noise.gaussian_noise, singles(0.08, 0.12, 0.18, 0.26, 0.38), "standard deviation"
    ),
    "shot_noise": Corruption(noise.shot_noise, singles(60, 25, 12, 5, 3), "photons of white"),
    "impulse_noise": Corruption(
        noise.impulse_noise, singles(0.03, 0.06, 0.09, 0.17, 0.27), "share of the values"
    ),
    "defocus_blur": Corruption(
        blurs.defocus_blur,
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        "radius in px; sigma of its edge in px",
    ),
    "glass_blur": Corruption(
        blurs.glass_blur,
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        "sigma in px; reach of the exchange in px; rounds",
    ),
    "motion_blur": Corruption(
        blurs.motion_blur,
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        "radius in px; sigma in px",
    ),
    "zoom_blur": Corruption(
        blurs.zoom_blur,
        [(0.01, 11), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)],
        "step of the enlargement; enlargements",
    ),
    "snow": Corruption(
        weather.snow,
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
        "mean; standard deviation; size of flakes in px; threshold; radius of their motion in px; "
        "its sigma in px; share of the image",
    ),
    "frost": Corruption(
        weather.frost,
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
        "weight of the image; of the ice",
    ),
    "fog": Corruption(
        weather.fog, [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)], "amount; decay"
    ),
    "brightness": Corruption(
        weather.brightness, singles(0.1, 0.2, 0.3, 0.4, 0.5), "added to the value of HSV"
    ),
    "contrast": Corruption(
        digital.contrast, singles(0.4, 0.3, 0.2, 0.1, 0.05), "factor of the contrast"
    ),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        # 244 in place of 224, as published
        [
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ],
        "size of the field in px; its sigma in px; how far three points move in px",
    ),
    "pixelate": Corruption(
        digital.pixelate, singles(0.6, 0.5, 0.4, 0.3, 0.25), "share of the sides"
    ),
    "jpeg_compression": Corruption(digital.jpeg_compression, singles(25, 18, 15, 10, 7), "quality"),
}


def corrupt(image: Pixels, name: str, strength: int, seed: int, sample: int) -> Pixels:
    """An image of a set at a strength of a corruption, a pure function of its arguments.

    All strengths begin with the same random numbers: noise grows in place. But for two: the draws
    of shot noise depend on the photons themselves, and the exchanges of glass blur on their reach
    and rounds, so that these differ from strength to strength.

    Args:
        image: uint8 [H, W, 1 or 3].
        name: of `CORRUPTIONS`.
        strength: 1 to 5.
        seed: of everything random.
        sample: the number of the image in its set.
    """
    number = list(CORRUPTIONS).index(name)
    keys = [hash32(seed, CORRUPT, sample, number, i) for i in range(2)]
    rng = np.random.Generator(np.random.Philox(key=keys[0] << 32 | keys[1]))
    return CORRUPTIONS[name](image, strength, rng)


VARIANTS = (None, *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS))
"""What `Corrupted` makes of an image: itself (None), then each corruption in each strength."""


@dataclass(frozen=True)
class Corrupted:
    """Center crops in all of `VARIANTS`, as models get to see them.

    Args:
        crop: the clean image; corruptions come after it, as in ImageNet-C.
        seed: of everything random.
    """

    crop: CenterCropResize
    seed: int = 0

    def __call__(
        self, image: Pixels, target: Any = None, epoch: int = 0, sample: int = 0
    ) -> tuple[UInt8[Tensor, "V C h w"], Any]:
        """The variants of one sample; a label stays as it is."""
        clean = self.crop(image)[0]
        pixels = clean.permute(1, 2, 0).numpy()
        made = [
            pixels if variant is None else corrupt(pixels, *variant, self.seed, sample)
            for variant in VARIANTS
        ]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous(), target
