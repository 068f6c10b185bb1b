"""Strong augmentation: a function of (seed, epoch, sample), with operations that equal timm's."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from torchmae.data.augment import OPS, StrongAugment
from torchmae.data.transforms import RandomResizedCropFlip

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
FILL = (124, 116, 104)


def strong(
    channels: int = 3, seed: int = 0, magnitude: float = 9.0, erase: float = 0.25
) -> StrongAugment:
    return StrongAugment(
        RandomResizedCropFlip((24, 32), seed),
        magnitude,
        erase,
        (0.5,) * channels,
        (0.2,) * channels,
    )


def test_a_function_of_seed_epoch_and_sample() -> None:
    made = [strong()(PICTURE, None, 3, sample)[0] for sample in range(8)]
    assert all(
        torch.equal(one, strong()(PICTURE, None, 3, sample)[0]) for sample, one in enumerate(made)
    )
    assert made[0].shape == (3, 24, 32) and made[0].dtype == torch.uint8
    for other in (
        strong(seed=1)(PICTURE, None, 3, 0)[0],
        strong()(PICTURE, None, 4, 0)[0],
        made[1],
    ):
        assert not torch.equal(other, made[0])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels(channels: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (30, 30, channels), dtype=np.uint8)
    assert all(
        strong(channels)(picture, None, 0, sample)[0].shape == (channels, 24, 32)
        for sample in range(30)
    )


def test_switched_off_it_is_the_crop_alone_and_erasing_makes_one_rectangle_of_noise() -> None:
    for sample in range(20):
        plain = RandomResizedCropFlip((24, 32), 0)(PICTURE, None, 0, sample)[0]
        assert torch.equal(strong(magnitude=0.0, erase=0.0)(PICTURE, None, 0, sample)[0], plain)
        changed = (strong(magnitude=0.0, erase=1.0)(PICTURE, None, 0, sample)[0] != plain).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert (
            0.01 < height * width / (24 * 32) < 0.36
            and float(changed.sum()) > 0.95 * height * width
        )


@pytest.mark.parametrize("level", [0.9, 0.55, -0.9])
def test_operations_equal_timm_s(level: float) -> None:
    image, how = Image.fromarray(PICTURE), {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    size = abs(level)
    theirs = {
        "auto contrast": auto_augment.auto_contrast(image),
        "equalize": auto_augment.equalize(image),
        "invert": auto_augment.invert(image),
        "rotate": auto_augment.rotate(image, 30 * level, **how),
        "posterize": auto_augment.posterize(image, max(1, 4 - int(4 * size))),
        "solarize": auto_augment.solarize(image, 256 - int(256 * size)),
        "solarize add": auto_augment.solarize_add(image, int(110 * size)),
        "color": auto_augment.color(image, max(0.1, 1 + 0.9 * level)),
        "contrast": auto_augment.contrast(image, max(0.1, 1 + 0.9 * level)),
        "brightness": auto_augment.brightness(image, max(0.1, 1 + 0.9 * level)),
        "sharpness": auto_augment.sharpness(image, max(0.1, 1 + 0.9 * level)),
        "shear x": auto_augment.shear_x(image, 0.3 * level, **how),
        "shear y": auto_augment.shear_y(image, 0.3 * level, **how),
        "translate x": auto_augment.translate_x_rel(image, 0.45 * level, **how),
        "translate y": auto_augment.translate_y_rel(image, 0.45 * level, **how),
    }
    assert set(theirs) == set(OPS)
    for name, expected in theirs.items():
        made = OPS[name](image, level, FILL)
        np.testing.assert_array_equal(np.asarray(made), np.asarray(expected), err_msg=name)
