"""Strong augmentation and colour jitter: functions of (seed, epoch, sample), with operations that
equal timm's and torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from torchmae.data.augment import JITTERS, OPS, ColorJitter, StrongAugment
from torchmae.data.transforms import CenterCropResize, RandomResizedCropFlip

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


# --- colour jitter


def jitter(strength: float = 0.4, seed: int = 0, size: tuple[int, int] = (40, 56)) -> ColorJitter:
    return ColorJitter(CenterCropResize(size), strength, seed)


def test_jitter_is_a_function_of_seed_epoch_and_sample() -> None:
    made = [jitter()(PICTURE, "label", 3, sample) for sample in range(8)]
    for sample, (pixels, label) in enumerate(made):
        assert torch.equal(pixels, jitter()(PICTURE, None, 3, sample)[0]) and label == "label"
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    for other in (jitter(seed=1).draw(3, 0), jitter().draw(4, 0), jitter().draw(3, 1)):
        assert other != jitter().draw(3, 0)


def test_factors_and_shifts_are_uniform_in_their_ranges_and_every_order_comes() -> None:
    drawn = [jitter(0.6).draw(0, sample) for sample in range(1500)]
    for name in JITTERS:
        numbers = np.array([dict(changes)[name] for changes in drawn])
        middle, reach = (0.0, 0.15) if name == "hue" else (1.0, 0.6)
        assert np.abs(numbers - middle).max() <= reach
        assert np.abs(np.quantile(numbers, [0.25, 0.5, 0.75]) - middle) == pytest.approx(
            [reach / 2, 0, reach / 2], abs=0.1 * reach
        )
    orders = [tuple(name for name, _ in changes) for changes in drawn]
    assert len(set(orders)) == 24 and max(map(orders.count, set(orders))) < 100


@pytest.mark.parametrize("sample", range(6))
def test_jitter_equals_torchvision_s_operations(sample: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    theirs = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
    }
    assert set(theirs) == set(JITTERS)
    expected = Image.fromarray(PICTURE)
    for name, number in jitter(0.8).draw(1, sample):
        expected = theirs[name](expected, number)
    made = jitter(0.8)(PICTURE, None, 1, sample)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(made - np.asarray(expected).astype(int)).max() <= 1
    assert np.abs(made - PICTURE).mean() > 5


def test_without_strength_nothing_changes_but_the_rounding_of_hues() -> None:
    made = jitter(0.0)(PICTURE, None, 0, 0)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(made - PICTURE).max() <= 6 and np.abs(made - PICTURE).mean() < 1
    grey = PICTURE[:, :, :1]
    assert (jitter(0.0)(grey, None, 0, 0)[0][0].numpy() == grey[:, :, 0]).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_change_in_brightness_and_contrast(channels: int) -> None:
    """Each alike and by itself: the result is affine in the values, but for clipping."""
    picture = np.random.default_rng(1).integers(60, 180, (30, 30, channels), dtype=np.uint8)
    made = jitter(0.2, size=(30, 30))(picture, None, 0, 3)[0].numpy().astype(float)
    numbers = dict(jitter(0.2).draw(0, 3))
    for before, after in zip(picture.transpose(2, 0, 1).astype(float), made):
        slope, offset = np.polyfit(before.ravel(), after.ravel(), 1)
        assert slope == pytest.approx(numbers["brightness"] * numbers["contrast"], abs=0.01)
        assert np.abs(slope * before + offset - after).max() < 2
