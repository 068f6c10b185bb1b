"""Scales of pixel values, against numpy."""

import numpy as np
import pytest
import torch

from torchmae.errors import UserError
from torchmae.models.patches import denormalize, normalize
from torchmae.scaling import Scaling, check_scale, scaled, scaling_of

VALUES = np.random.default_rng(0).normal(0, 500, (4, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "kind, theirs",
    [
        ("none", lambda x: x),
        ("sqrt", lambda x: np.sign(x) * np.sqrt(np.abs(x))),
        ("log", lambda x: np.sign(x) * np.log1p(np.abs(x))),
        ("window", lambda x: np.clip(x, -100, 300)),
    ],
)
def test_as_numpy_and_no_data_is_the_mean(kind, theirs):
    window = torch.tensor([[-100.0] * 3, [300.0] * 3]).view(2, 3, 1, 1)
    images = torch.from_numpy(VALUES.copy())
    assert np.allclose(scaled(images, kind, window), theirs(VALUES), atol=1e-4)
    statistics = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(2, 3, 1, 1)
    mean, std = statistics.numpy()
    images[0, 0, 0, 0] = torch.nan
    made = normalize(images, statistics, kind, window)
    want = (theirs(VALUES) - mean) / std
    want[0, 0, 0, 0] = 0
    assert np.allclose(made, want, atol=1e-4)


def test_pictures_of_floats_show_three_standard_deviations():
    levels = torch.tensor([-4.0, -3.0, 0.0, 3.0, 4.0]).view(1, 1, 1, 5)
    shown = denormalize(levels, torch.tensor([[7.0], [2.0]]).view(2, 1, 1, 1), floats=True)
    assert shown.flatten().tolist() == [0, 0, 128, 255, 255]


def test_described_and_read_again():
    for one in (Scaling("log"), Scaling("window", (0.0, 1.0), (5.0, 6.0))):
        assert scaling_of(one.config(), 2) == one
    assert Scaling("window", (0.0, 0.0), (5.0, 5.0)).words() == "window 0 to 5"
    for wrong in ({"kind": "cube"}, {"kind": "window", "low": [1], "high": [2]}):
        with pytest.raises(UserError):
            scaling_of(wrong, 2)


@pytest.mark.parametrize(
    "words", [(), ("window",), ("window", "5"), ("window", "5", "1"), ("window", "a", "b")]
)
def test_mistakes(words):
    with pytest.raises(UserError, match="--scale"):
        check_scale(words)
    check_scale(("window", "-1000", "400"))
    with pytest.raises(UserError, match="--scale log 5"):
        check_scale(("log", "5"))
