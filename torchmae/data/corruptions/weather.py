"""Weather: snow, frost, fog, bright light. Frost is drawn; the published one is of photographs."""

import numpy as np

from torchmae.data.corruptions.filters import (
    Values,
    convolve,
    plasma,
    sampled_at,
    scale_of,
    trail,
    zoomed,
)

ICE = np.array([0.80, 0.88, 0.95])  # color of thick frost: white with a trace of blue
GRAY = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue (ITU-R BT.601)


def snow(image: Values, strength: tuple[float, ...], rng: np.random.Generator) -> Values:
    """Flakes are the peaks of normal noise, enlarged and moved; the scene gets paler."""
    mean, std, zoom, threshold, radius, sigma, share = strength
    scale = scale_of(image)
    height, width, channels = image.shape
    layer = zoomed(rng.normal(mean, std, (height, width)), max(1.0, scale * zoom))
    layer = np.clip(np.where(layer < threshold, 0.0, layer), 0, 1)[..., None]
    kernel = trail(scale * radius, scale * sigma, rng.uniform(45, 135))
    flakes = convolve(layer, kernel)
    gray = image @ GRAY if channels == 3 else image[..., 0]
    pale = np.maximum(image, 1.5 * gray[..., None] + 0.5)
    return share * image + (1 - share) * pale + flakes + flakes[::-1, ::-1]


def frost(image: Values, strength: tuple[float, float], rng: np.random.Generator) -> Values:
    """The image and a drawn layer of ice, each times a weight."""
    seen, covered = strength
    layer = ice(image.shape[0], image.shape[1], scale_of(image), rng)[..., None] * ICE
    if image.shape[2] == 1:
        layer = (layer @ GRAY)[..., None]
    return seen * image + covered * layer


def ice(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness [H, W] of ice on a pane: needles in three directions are ridges of fractal noise,
    drawn out and bent, on a haze; they grow where it is thick."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    bend = [30 * scale * (plasma(height, width, 2.2, rng) - 0.5) for _ in range(2)]
    haze = plasma(height, width, 2.0, rng)
    needles = np.zeros((height, width))
    angles = rng.uniform(0, np.pi) + np.pi / 3 * np.arange(3)  # ice has six sides
    for angle in angles:
        along = np.cos(angle) * columns + np.sin(angle) * rows + bend[0]
        across = np.cos(angle) * rows - np.sin(angle) * columns + bend[1]
        noise = plasma(height, width, 1.6, rng)[..., None]
        drawn_out = sampled_at(noise, across, along / 8)[..., 0]
        ridge = 1 - np.abs(drawn_out - np.median(drawn_out)) / 0.12
        needles = np.maximum(needles, np.clip(ridge, 0, 1))
    return np.clip(0.1 + 0.4 * haze + 0.9 * needles * haze, 0, 1)


def fog(image: Values, strength: tuple[float, float], rng: np.random.Generator) -> Values:
    """Fractal noise is added, so many times, and the brightest value kept."""
    amount, decay = strength
    brightest = float(image.max())
    made = image + amount * plasma(image.shape[0], image.shape[1], decay, rng)[..., None]
    return made * brightest / (brightest + amount)


def brightness(image: Values, strength: tuple[float], rng: np.random.Generator) -> Values:
    """The value of HSV is raised; hue and saturation stay."""
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + strength[0], 1)
    return np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)
