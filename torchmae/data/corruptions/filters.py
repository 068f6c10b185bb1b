"""What several corruptions are made of: blurs, sampling between pixels, fractal noise.

Everything computes in float64 on values of 0..1: what rounding does differently on another machine
is then far below the steps of uint8.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image

Values = Float[np.ndarray, "H W C"]

PUBLISHED_SIDE = 224  # px: of the images that the published strengths are for


def scale_of(image: Values) -> float:
    """How much smaller or larger than the published ones an image is: lengths are times this."""
    return min(image.shape[:2]) / PUBLISHED_SIDE


def mirrored(places: np.ndarray, count: int) -> np.ndarray:
    """Indices of any size as indices of 0..count-1, the image being mirrored at its edges."""
    inside = places % (2 * count)
    return np.minimum(inside, 2 * count - 1 - inside)


@lru_cache(maxsize=64)
def gaussian_matrix(count: int, sigma: float) -> Float[np.ndarray, "N N"]:
    """The matrix that blurs a row of `count` values, mirrored at its ends, cut at 4 sigma."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / max(sigma, 1e-9)) ** 2)
    rows = np.broadcast_to(np.arange(count)[:, None], (count, len(offsets)))
    matrix = np.zeros((count, count))
    np.add.at(matrix, (rows, mirrored(rows + offsets, count)), weights / weights.sum())
    return matrix


def blur(image: Values, sigma: float) -> Values:
    """A Gaussian blur; sigma in px."""
    height, width = image.shape[:2]
    rows = np.tensordot(gaussian_matrix(height, sigma), image, axes=1)
    return np.tensordot(gaussian_matrix(width, sigma), rows, axes=(1, 1)).swapaxes(0, 1)


def convolve(image: Values, kernel: Float[np.ndarray, "K K"]) -> Values:
    """The convolution with a kernel of odd side, whose middle stays in place; mirrored edges."""
    height, width = image.shape[:2]
    radius = len(kernel) // 2
    ends = (radius, radius)
    padded = np.pad(image, (ends, ends, (0, 0)), mode="symmetric")
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    made = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return made[2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]


def disk(radius: float, sigma: float) -> Float[np.ndarray, "K K"]:
    """A disk with an edge of one pixel, blurred, with the sum 1; lengths in px."""
    reach = math.ceil(radius) + 2
    axis = np.arange(-reach, reach + 1)
    distance = np.hypot(axis[:, None], axis)
    made = blur(np.clip(radius + 0.5 - distance, 0, 1)[..., None], sigma)[..., 0]
    return made / made.sum()


def trail(radius: float, sigma: float, degrees: float) -> Float[np.ndarray, "K K"]:
    """The trail of a point that moves: half a Gaussian of 2 * radius + 1 px in one direction."""
    steps = np.arange(2 * max(1, round(radius)) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    angle = math.radians(degrees)
    kernel = np.zeros((2 * len(steps) - 1, 2 * len(steps) - 1))
    places = [np.rint(steps * part).astype(int) for part in (math.sin(angle), math.cos(angle))]
    np.add.at(kernel, (places[0] + len(steps) - 1, places[1] + len(steps) - 1), weights)
    return kernel / kernel.sum()


def zoomed(layer: Float[np.ndarray, "H W"], factor: float) -> Float[np.ndarray, "H W"]:
    """The middle of a layer enlarged to its size, bilinear; a factor of at least 1."""
    height, width = layer.shape
    left, top = (side * (1 - 1 / factor) / 2 for side in (width, height))
    made = Image.fromarray(layer.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, width - left, height - top)
    )
    return np.asarray(made, dtype=np.float64)


def sampled_at(
    image: Values, rows: Float[np.ndarray, "H W"], columns: Float[np.ndarray, "H W"]
) -> Values:
    """The values at places between pixels, bilinear; mirrored edges."""
    height, width = image.shape[:2]
    top, left = (np.floor(places).astype(int) for places in (rows, columns))
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    above, below = (mirrored(places, height) for places in (top, top + 1))
    before, after = (mirrored(places, width) for places in (left, left + 1))
    upper = image[above, before] * (1 - right) + image[above, after] * right
    lower = image[below, before] * (1 - right) + image[below, after] * right
    return upper * (1 - down) + lower * down


def plasma(
    height: int, width: int, decay: float, rng: np.random.Generator
) -> Float[np.ndarray, "H W"]:
    """Fractal noise of 0..1 by midpoint displacement on a torus (Fournier et al. 1982).

    Args:
        height: of the result in px.
        width: of the result in px.
        decay: how many times smaller the displacements are at each halving of the distance.
        rng: of the displacements.
    """
    grid = np.zeros((1, 1))
    reach = 1.0
    while len(grid) < max(height, width):
        draws = rng.uniform(-reach, reach, (3, *grid.shape))
        beside, below = np.roll(grid, -1, 1), np.roll(grid, -1, 0)
        middle = (grid + beside + below + np.roll(beside, -1, 0)) / 4 + draws[0]
        made = np.empty((2 * len(grid), 2 * len(grid)))
        made[::2, ::2] = grid
        made[1::2, 1::2] = middle
        made[::2, 1::2] = (grid + beside + middle + np.roll(middle, 1, 0)) / 4 + draws[1]
        made[1::2, ::2] = (grid + below + middle + np.roll(middle, 1, 1)) / 4 + draws[2]
        grid = made
        reach /= decay
    grid = grid - grid.min()
    return grid[:height, :width] / max(float(grid.max()), 1e-9)
