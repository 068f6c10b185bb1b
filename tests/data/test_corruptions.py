"""The 15 corruptions: pure functions of their arguments, stronger by strength, as published."""

import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.documents import DOCS
from PIL import Image

from torchmae.data.corruptions import (
    CORRUPTIONS,
    STRENGTHS,
    VARIANTS,
    Corrupted,
    blurs,
    corrupt,
    filters,
)
from torchmae.data.transforms import CenterCropResize


def scene(height: int = 64, width: int = 64, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A disk before soft light and textures of several sizes, as a photograph has them."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    phase = draw.uniform(0, 6, channels)
    made = 0.45 + 0.2 * np.sin(9 * columns[..., None] + 4 * rows[..., None] + phase)
    made[np.hypot(rows - 0.5, columns - 0.5) < 0.25] += draw.uniform(-0.3, 0.3, channels)
    for side in (8, 24, 72):
        layer = Image.fromarray(draw.uniform(-0.12, 0.12, (side, side)).astype(np.float32))
        made += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    return (255 * made.clip(0, 1)).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(64, 64, 3), (48, 33, 1), (8, 9, 3)], ids=str)
def test_size_type_and_channels_stay_and_nothing_is_written_to(
    name: str, shape: tuple[int, int, int]
) -> None:
    image = scene(*shape)
    before = image.copy()
    image.flags.writeable = False
    for strength in STRENGTHS:
        made = corrupt(image, name, strength, 0, 0)
        assert made.shape == shape and made.dtype == np.uint8
        assert np.array_equal(made, corrupt(image, name, strength, 0, 0))
    assert np.array_equal(image, before)


RANDOM = set(CORRUPTIONS) - {
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_randomness_is_that_of_the_seed_and_the_sample(name: str) -> None:
    image = scene()
    made = [corrupt(image, name, 3, *keys) for keys in ((0, 0), (1, 0), (0, 1))]
    same = [np.array_equal(made[0], other) for other in made[1:]]
    assert same == [name not in RANDOM] * 2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_distortion_grows_with_the_strength(name: str) -> None:
    """The mean absolute difference, on average over images of the published size. Three corruptions
    are published so that it does not at each step: see the docs."""
    images = [scene(224, 224, seed=seed) for seed in range(3)]
    made = [[corrupt(x, name, s, 0, i) for i, x in enumerate(images)] for s in STRENGTHS]
    distance = [np.abs(np.subtract(some, images, dtype=float)).mean() for some in made]
    assert distance[0] > 0.5
    if name == "elastic_transform":  # 1 and 2 are wide, 3 to 5 fine
        assert distance[0] < distance[1] and distance[2] < distance[3] < distance[4]
    elif name == "frost":  # more ice, but less of the image
        covered = [ice / seen for seen, ice in CORRUPTIONS[name].strengths]
        assert covered == sorted(covered)
    elif name == "fog":  # decays differ: only from end to end
        assert distance[0] < distance[4]
    else:
        assert all(b > 0.99 * a for a, b in pairwise(distance)), distance
        assert distance[4] > 1.1 * distance[0]


def test_noise_has_the_published_size() -> None:
    gray = np.full((200, 200, 3), 128, dtype=np.uint8)
    for strength, (std,) in enumerate(CORRUPTIONS["gaussian_noise"].strengths[:2], 1):
        made = corrupt(gray, "gaussian_noise", strength, 0, 0).astype(float)
        assert made.std() / 255 == pytest.approx(std, rel=0.02)
        assert made.mean() == pytest.approx(128, abs=0.5)
    shot = corrupt(gray, "shot_noise", 1, 0, 0) / 255
    assert shot.var() == pytest.approx(0.5 / 60, rel=0.03)  # that of Poisson
    impulse = corrupt(gray, "impulse_noise", 5, 0, 0)
    assert np.mean(impulse == 0) == pytest.approx(0.135, abs=0.004)
    assert np.mean(impulse == 255) == pytest.approx(0.135, abs=0.004)
    assert np.mean(impulse == 128) == pytest.approx(0.73, abs=0.006)


def test_brightness_is_that_of_hsv_and_contrast_keeps_the_mean() -> None:
    image = scene()
    before = np.asarray(Image.fromarray(image).convert("HSV")).astype(int)
    after = np.asarray(Image.fromarray(corrupt(image, "brightness", 2, 0, 0)).convert("HSV"))
    assert np.abs(after[..., 2] - np.minimum(before[..., 2] + 51, 255)).max() <= 1
    assert np.abs(after[..., 1].astype(int) - before[..., 1]).max() <= 3
    flat = corrupt(image, "contrast", 5, 0, 0).astype(float)
    assert np.allclose(flat.mean((0, 1)), image.mean((0, 1)), atol=0.5)
    assert np.allclose(flat.std((0, 1)), 0.05 * image.std((0, 1)), atol=0.5)


def test_jpeg_and_pixelate_are_pillows() -> None:
    image = scene()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=7)
    assert np.array_equal(corrupt(image, "jpeg_compression", 5, 0, 0), np.asarray(Image.open(file)))
    blocks = corrupt(image, "pixelate", 5, 0, 0)  # a quarter of 64: blocks of 4 px
    means = image.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(blocks[::4, ::4] - means).max() <= 1
    assert np.array_equal(blocks, np.repeat(np.repeat(blocks[::4, ::4], 4, 0), 4, 1))


def test_glass_exchanges_pixels_of_the_neighborhood() -> None:
    """Without a blur the pixels are those of before, in other places."""
    numbered = np.arange(64 * 64, dtype=float).reshape(64, 64, 1) / 4096
    made = blurs.glass_blur(numbered, (1e-6, 4, 2), np.random.default_rng(0))
    places = np.rint(made * 4096).astype(int)
    assert np.array_equal(np.sort(places.ravel()), np.arange(64 * 64))
    assert not np.array_equal(places.ravel(), np.arange(64 * 64))


def test_blur_and_convolution_agree_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = scene(40, 31) / 255
    expected = ndimage.gaussian_filter(image, (2.3, 2.3, 0), mode="reflect", truncate=4)
    assert np.allclose(filters.blur(image, 2.3), expected)
    kernel = np.random.default_rng(0).random((7, 7))
    expected = np.stack(
        [ndimage.convolve(image[..., i], kernel, mode="reflect") for i in range(3)], axis=-1
    )
    assert np.allclose(filters.convolve(image, kernel), expected)
    rows, columns = np.random.default_rng(1).uniform(-9, 50, (2, 40, 31))
    expected = ndimage.map_coordinates(image[..., 0], [rows, columns], order=1, mode="reflect")
    assert np.allclose(filters.sampled_at(image[..., :1], rows, columns)[..., 0], expected)


def test_kernels() -> None:
    disk = filters.disk(10, 1e-6)
    assert disk.sum() == pytest.approx(1)
    assert 1 / disk.max() == pytest.approx(math.pi * 100, rel=0.06)
    trail = filters.trail(10, 5, 0)
    middle = len(trail) // 2
    assert trail.sum() == pytest.approx(1)
    assert np.count_nonzero(trail) == 21 and np.count_nonzero(trail[middle, middle:]) == 21
    assert trail[middle, middle + 5] / trail[middle, middle] == pytest.approx(math.exp(-0.5))


def test_lengths_are_in_proportion_to_the_image() -> None:
    """A picture of half the side is blurred and bent as the whole one is, and then reduced."""

    def halved(image: np.ndarray) -> np.ndarray:
        return image.reshape(112, 2, 112, 2, 3).mean((1, 3))

    image = scene(224, 224)
    small = np.rint(halved(image)).astype(np.uint8)
    for name in ("defocus_blur", "motion_blur", "zoom_blur"):
        one = halved(corrupt(image, name, 3, 0, 0).astype(float))
        other = corrupt(small, name, 3, 0, 0).astype(float)
        unscaled = np.abs(one - small).mean()
        assert np.abs(one - other).mean() < 0.25 * unscaled, name
    field = [
        np.abs(corrupt(x, "elastic_transform", 5, 0, 0).astype(float) - x).mean()
        for x in (image, small)
    ]
    assert field[0] == pytest.approx(field[1], rel=0.5)


def test_all_variants_come_after_the_crop() -> None:
    image = scene(50, 40)
    crop = CenterCropResize((32, 32), 0.875)
    made, label = Corrupted(crop, seed=3)(image, 7, 0, 5)
    assert label == 7
    assert made.shape == (len(VARIANTS), 3, 32, 32) == (76, 3, 32, 32)
    clean = crop(image)[0]
    assert torch.equal(made[0], clean)
    which = VARIANTS.index(("fog", 4))
    expected = corrupt(clean.permute(1, 2, 0).numpy(), "fog", 4, 3, 5)
    assert np.array_equal(made[which].permute(1, 2, 0).numpy(), expected)


def test_the_documents_have_the_table() -> None:
    text = (DOCS / "evaluate.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (.*?) \|((?: [\d., ]+ \|){5})$", text, re.M)
    found = {
        name: (meaning, [tuple(map(float, cell.split(","))) for cell in cells.split("|")[:5]])
        for name, meaning, cells in rows[1:]  # without the head
    }
    assert list(found) == list(CORRUPTIONS)
    for name, (meaning, numbers) in found.items():
        assert meaning == CORRUPTIONS[name].meaning
        assert numbers == [tuple(map(float, some)) for some in CORRUPTIONS[name].strengths]
