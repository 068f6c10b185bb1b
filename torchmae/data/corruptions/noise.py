"""Noise: of the sensor, of few photons, of broken pixels."""

import numpy as np

from torchmae.data.corruptions.filters import Values


def gaussian_noise(image: Values, strength: tuple[float], rng: np.random.Generator) -> Values:
    """Normal noise of a standard deviation."""
    (std,) = strength
    return image + std * rng.standard_normal(image.shape)


def shot_noise(image: Values, strength: tuple[float], rng: np.random.Generator) -> Values:
    """Poisson noise: white is so many photons."""
    (photons,) = strength
    return rng.poisson(image * photons) / photons


def impulse_noise(image: Values, strength: tuple[float], rng: np.random.Generator) -> Values:
    """A share of all values becomes black or white, half of them each."""
    (share,) = strength
    draw = rng.random(image.shape)
    return np.where(draw < share / 2, 0.0, np.where(draw >= 1 - share / 2, 1.0, image))
