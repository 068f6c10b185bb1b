"""What processing does: less contrast, a bent picture, large pixels, strong compression."""

import io

import numpy as np
from PIL import Image

from torchmae.data.corruptions.filters import Values, blur, sampled_at, scale_of


def contrast(image: Values, strength: tuple[float], rng: np.random.Generator) -> Values:
    """Differences to the mean of each channel are times a factor."""
    mean = image.mean(axis=(0, 1))
    return mean + strength[0] * (image - mean)


def elastic_transform(
    image: Values, strength: tuple[float, float, float], rng: np.random.Generator
) -> Values:
    """An affine map that moves three points, after a smooth field of displacements (Simard et al.
    2003)."""
    scale = scale_of(image)
    sigma, moved = scale * strength[1], scale * strength[2]
    size = scale**2 * strength[0]  # noise that is blurred by sigma gets smaller by as much
    height, width = image.shape[:2]
    middle, arm = np.array([height, width]) / 2, min(height, width) / 3
    corners = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    shifted = corners + rng.uniform(-moved, moved, (3, 2))
    ones = np.ones((3, 1))
    affine = np.linalg.solve(np.hstack([shifted, ones]), corners)  # from the result to the image
    field = size * blur(rng.uniform(-1, 1, (height, width, 2)), sigma)
    places = np.moveaxis(np.mgrid[:height, :width], 0, -1) + field
    rows, columns = np.moveaxis(places @ affine[:2] + affine[2], -1, 0)
    return sampled_at(image, rows, columns)


def pixelate(image: Values, strength: tuple[float], rng: np.random.Generator) -> Values:
    """Reduced to a share of the sides, and enlarged again without smoothing."""
    height, width = image.shape[:2]
    small = [max(1, int(side * strength[0])) for side in (width, height)]
    picture = picture_of(image).resize((small[0], small[1]), Image.Resampling.BOX)
    return values_of(picture.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: Values, strength: tuple[int], rng: np.random.Generator) -> Values:
    """Written as JPEG of a quality, and read again."""
    file = io.BytesIO()
    picture_of(image).save(file, "JPEG", quality=strength[0])
    with Image.open(file) as picture:
        return values_of(picture)


def picture_of(image: Values) -> Image.Image:
    """Values of 0..1 as a picture of Pillow, gray or RGB."""
    pixels = np.rint(image * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def values_of(picture: Image.Image) -> Values:
    """A picture as values of 0..1, [H, W, 1 or 3]."""
    pixels = np.asarray(picture, dtype=np.float64) / 255
    return pixels[..., None] if pixels.ndim == 2 else pixels
