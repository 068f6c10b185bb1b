"""Blur: out of focus, through frosted glass, of a moving camera, of an approaching one."""

import numpy as np

from torchmae.data.corruptions.filters import (
    Values,
    blur,
    convolve,
    disk,
    scale_of,
    trail,
    zoomed,
)


def defocus_blur(image: Values, strength: tuple[float, float], rng: np.random.Generator) -> Values:
    """A disk of a radius, its edge blurred by a sigma."""
    radius, sigma = (scale_of(image) * length for length in strength)
    return convolve(image, disk(radius, sigma))


def glass_blur(image: Values, strength: tuple[float, int, int], rng: np.random.Generator) -> Values:
    """Pixels change places with near ones, between two Gaussian blurs."""
    height, width, channels = image.shape
    sigma = scale_of(image) * strength[0]
    reach = max(1, round(scale_of(image) * strength[1]))
    soft = blur(image, sigma).reshape(-1, channels)
    rows, columns = np.mgrid[
        height - reach - 1 : reach - 1 : -1, width - reach - 1 : reach - 1 : -1
    ]
    here = (rows * width + columns).ravel()
    order = list(range(height * width))
    for _ in range(strength[2]):
        down, right = rng.integers(-reach, reach, (2, len(here)))
        # One after the other: pixels wander. With a list that takes a tenth of numpy's time.
        for one, other in zip(here.tolist(), (here + down * width + right).tolist()):
            order[one], order[other] = order[other], order[one]
    return blur(soft[order].reshape(image.shape), sigma)


def motion_blur(image: Values, strength: tuple[float, float], rng: np.random.Generator) -> Values:
    """A trail of a radius and a sigma, at up to 45 degrees to the horizon."""
    radius, sigma = (scale_of(image) * length for length in strength)
    return convolve(image, trail(radius, sigma, rng.uniform(-45, 45)))


def zoom_blur(image: Values, strength: tuple[float, int], rng: np.random.Generator) -> Values:
    """The mean of the image and of enlargements by 1, 1 + step, ..., so many."""
    step, count = strength
    made = image.copy()
    for i in range(count):
        for channel in range(image.shape[2]):
            made[..., channel] += zoomed(image[..., channel], 1 + i * step)
    return made / (count + 1)
