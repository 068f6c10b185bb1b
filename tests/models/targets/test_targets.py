"""Every target: shape, finite values, and the way back to pixels; normalisation against numpy in float64."""

import numpy as np
import pytest
import torch

from torchmae.models.patches import gather_tokens, patch_statistics, patchify
from torchmae.models.targets import TARGETS

CASES = [(1, 2, 4, 6), (3, 4, 8, 8), (5, 3, 9, 6), (2, 8, 8, 24)]  # channels, patch, height, width


def sample(channels, patch, height, width, dtype=torch.float32):
    images = torch.randn(3, channels, height, width, dtype=dtype) * 2 + 0.3
    count = height * width // patch**2
    return images, torch.stack([torch.randperm(count)[: max(1, count // 2)] for _ in range(3)])


@pytest.mark.parametrize("channels, patch, height, width", CASES)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_shape_and_round_trip(name, channels, patch, height, width):
    images, ids = sample(channels, patch, height, width)
    target = TARGETS[name](patch, channels)
    values = target(images, ids)
    assert values.shape == (3, ids.shape[1], target.width)
    assert values.isfinite().all()
    patches = gather_tokens(patchify(images, patch), ids)
    back = target.to_pixels(values, patch_statistics(patches))
    torch.testing.assert_close(back, patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_only_the_patches_asked_for_in_their_order(name):
    images, _ = sample(3, 2, 6, 8)
    target = TARGETS[name](2, 3)
    everything = target(images, torch.arange(12).expand(3, -1))
    ids = torch.tensor([[3, 0], [11, 5], [7, 7]])
    assert torch.equal(target(images, ids), gather_tokens(everything, ids))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_constant_patches_are_finite(name):
    for value in (0.0, 1.0, -2.117904):
        images = torch.full((1, 3, 8, 8), value)
        values = TARGETS[name](4, 3)(images, torch.arange(4).view(1, -1))
        assert values.isfinite().all()
        if TARGETS[name].loses_statistics:
            assert values.abs().max() < 1e-3
        statistics = patch_statistics(patchify(images, 4))
        back = TARGETS[name](4, 3).to_pixels(values, statistics)
        torch.testing.assert_close(back, patchify(images, 4))


@pytest.mark.parametrize("channels, patch, height, width", CASES)
def test_normalised_equals_numpy(channels, patch, height, width):
    images, ids = sample(channels, patch, height, width)
    patches = gather_tokens(patchify(images, patch), ids).double().numpy()
    mean, variance = (
        patches.mean(axis=-1, keepdims=True),
        patches.var(axis=-1, ddof=1, keepdims=True),
    )
    expected = (patches - mean) / np.sqrt(variance + 1e-6)
    values = TARGETS["norm-pixels"](patch, channels)(images, ids)
    np.testing.assert_allclose(values.numpy(), expected, rtol=2e-5, atol=2e-6)
    exact = TARGETS["norm-pixels"](patch, channels)(images.double(), ids)
    np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_epsilon_counts_on_faint_patches():
    """Deviations near 1e-3, where a wrong place or size of the epsilon shows."""
    images, ids = sample(3, 4, 8, 8, torch.float64)
    images = images * 1e-3
    patches = gather_tokens(patchify(images, 4), ids).numpy()
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
        patches.var(-1, ddof=1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(
        TARGETS["norm-pixels"](4, 3)(images, ids).numpy(), expected, rtol=1e-10
    )


def test_statistics():
    patches = torch.randn(2, 5, 48, dtype=torch.float64)
    mean, deviation = patch_statistics(patches).unbind(-1)
    np.testing.assert_allclose(mean.numpy(), patches.numpy().mean(-1), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        deviation.numpy(), np.sqrt(patches.numpy().var(-1, ddof=1) + 1e-6), rtol=1e-12
    )


def test_pixels_are_the_pixels():
    images, ids = sample(3, 4, 8, 8)
    assert torch.equal(
        TARGETS["pixels"](4, 3)(images, ids), gather_tokens(patchify(images, 4), ids)
    )
    assert not TARGETS["pixels"].loses_statistics and TARGETS["norm-pixels"].loses_statistics


def test_normalised_pixels_need_statistics():
    with pytest.raises(AssertionError, match="statistics"):
        TARGETS["norm-pixels"](4, 3).to_pixels(torch.zeros(1, 1, 48), None)
