"""How far pixels know of each other, and what patch and mask ratio that suggests."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from torchmae.data.decode import BadImage
from torchmae.data.formats.raster import viewable
from torchmae.data.loader import read_pixels
from torchmae.data.quality.survey import Survey
from torchmae.data.transforms import CenterCropResize
from torchmae.hashing import SPLIT, hash32

MEASURED = 256  # images
PATCHES = (2, 4, 8, 16)  # larger ones lose what is inside them
LEAST_GRID = 7  # patches on a side: below, masks have too few places to differ


class Texture(NamedTuple):
    """How alike pixels are at a distance.

    Attributes:
        correlation: of two pixels of an image at a distance of 0, 1, 2, ... pixels, along rows and
            columns; the mean over the images.
        length: the distance in pixels at which it has fallen to 1/e; None where it does not.
        images: how many were measured.
        side: of the centre crops that were measured, in pixels.
    """

    correlation: Float64[np.ndarray, " D"]
    length: float | None
    images: int
    side: int


class Suggestion(NamedTuple):
    """A patch size in pixels, a mask ratio, and how they follow from a `Texture`."""

    patch: int
    ratio: float
    why: str


def chosen(ids: np.ndarray, count: int, seed: int) -> list[int]:
    """The first of some images in an order that the seed decides."""
    order = np.argsort(hash32(seed, SPLIT, ids.astype(np.int64)), kind="stable")
    return [int(i) for i in ids[order[:count]]]


def texture(found: Survey, side: int, seed: int) -> Texture | None:
    """Measures images that the seed chooses; None where there is none to measure.

    Args:
        found: the images; blank ones are not measured.
        side: of the centre crops, in pixels: what a training would see.
        seed: of the choice.
    """
    ids = found.good[~found.blank[found.good]]
    crop, curves = CenterCropResize((side, side)), []
    for i in chosen(ids, MEASURED, seed):
        try:
            image, _ = crop(read_pixels(*found.place(i)))
        except BadImage:  # it was there when it was looked at
            continue
        seen = viewable(image.permute(1, 2, 0).numpy())
        curve = autocorrelation(seen.mean(axis=2))
        curves += [] if curve is None else [curve]
    if not curves:
        return None
    mean = np.mean(curves, axis=0)
    return Texture(mean, fall(mean), len(curves), side)


def autocorrelation(grey: Float64[np.ndarray, "S S"]) -> Float64[np.ndarray, " D"] | None:
    """The correlation of pixels at distances of 0 to S/2 - 1; None for a single grey."""
    centred = grey - grey.mean()
    power = (centred**2).mean()
    if power < 0.25:  # of 255 squared: rounding
        return None
    size = len(grey)
    values = [1.0]
    for d in range(1, size // 2):
        down = (centred[d:] * centred[:-d]).mean()
        across = (centred[:, d:] * centred[:, :-d]).mean()
        values.append(float(down + across) / (2 * power))
    return np.array(values)


def fall(curve: Sequence[float] | np.ndarray) -> float | None:
    """The distance at which a curve falls to 1/e, between two of its points."""
    limit = 1 / math.e
    for d in range(1, len(curve)):
        if curve[d] < limit:
            return float(d - 1 + (curve[d - 1] - limit) / (curve[d - 1] - curve[d]))
    return None


def suggest(found: Texture) -> Suggestion:
    """A patch and a mask ratio by a rule of thumb.

    Where a share 1 - m of patches of p px is visible, they are p / sqrt(1 - m) px apart on average.
    The rule makes that distance the correlation length, so that what is hidden is neither copied
    from a neighbour nor unrelated to all: p is the side nearest to half the length, of at most 16
    px, and m = 1 - (p/L)².
    It gives the paper's 16 px and 75 % where the length is 32 px.
    """
    length = found.length or found.side / 2
    fitting = [p for p in PATCHES if found.side % p == 0 and found.side // p >= LEAST_GRID]
    patch = min(fitting or [2], key=lambda p: (abs(math.log(2 * p / length)), p))
    exact = 1 - (patch / length) ** 2
    ratio = min(0.9, max(0.5, round(exact * 20) / 20))
    more = "" if found.length else " or more"
    why = (
        f"pixels are correlated (1/e) over {length:.0f} px{more} of {found.side}; visible patches "
        f"of {patch} px are as far apart where {max(0.0, exact):.0%} are hidden, "
        f"{(found.side // patch) ** 2} patches an image"
    )
    if ratio != round(exact * 20) / 20:
        why += f"; kept between 50 and 90 %: {ratio:.0%}"
    elif f"{ratio:.0%}" != f"{exact:.0%}":
        why += f"; {ratio:.0%} is that, rounded"
    return Suggestion(patch, ratio, why)
