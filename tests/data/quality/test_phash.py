"""The hash of what an image looks like stays the same where the image does."""

import io

import numpy as np
import pytest
from helpers.looks import smooth
from PIL import Image
from scipy.fft import dctn

from torchmae.data.quality.phash import ROWS, phash, shrink, thumb


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return (phash(shrink(one)) ^ phash(shrink(other))).bit_count()


def test_the_transform_is_scipys() -> None:
    grey = shrink(smooth(0))
    ours = ROWS @ grey.astype(float) @ ROWS.T
    assert np.allclose(ours, dctn(grey.astype(float), norm="ortho")[:12, :12])


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_near_and_others_far(seed: int) -> None:
    pixels = smooth(seed)
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=40)
    copies = {
        "compressed": np.asarray(Image.open(out)),
        "smaller": np.asarray(image.resize((53, 41), Image.Resampling.LANCZOS)),
        "brighter": (pixels * 0.8 + 40).astype(np.uint8),
        "gray": np.asarray(image.convert("L"))[..., None],
    }
    assert {name: distance(pixels, copy) <= 5 for name, copy in copies.items()} == dict.fromkeys(
        copies, True
    )
    assert distance(pixels, smooth(seed + 100)) > 12


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4000, 1), (8, 8, 5)])
def test_any_shape_has_a_hash(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert 0 <= phash(shrink(pixels)) < 1 << 64
    assert thumb(shrink(pixels)).shape == (256,)
