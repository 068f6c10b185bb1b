"""Every target: shape, loss, and the way back to pixels; normalisation against numpy, PCA against
an SVD."""

import numpy as np
import pytest
import torch
from helpers.mae import VALUE_TARGETS

from torchmae.models.patches import as_size, gather_tokens, patch_statistics, patchify
from torchmae.models.targets import TARGETS

CASES = [(1, 2, 4, 6), (3, 4, 8, 8), (5, 3, 9, 6), (2, 8, 8, 24)]  # channels, patch, height, width


def sample(channels, patch, height, width, dtype=torch.float32):
    images = torch.randn(3, channels, height, width, dtype=dtype) * 2 + 0.3
    count = height * width // patch**2
    return images, torch.stack([torch.randperm(count)[: max(1, count // 2)] for _ in range(3)])


def make(name, patch, channels):
    """A target that is ready for use."""
    target = TARGETS[name](as_size(patch), channels)
    if target.needs_fit:
        generator = torch.Generator().manual_seed(0)
        target.fit(torch.randn(500, patch**2 * channels, generator=generator) * 2 + 0.3)
    assert not target.needs_fit
    return target


@pytest.mark.parametrize("channels, patch, height, width", CASES)
@pytest.mark.parametrize("name", VALUE_TARGETS)
def test_shape_and_round_trip(name, channels, patch, height, width):
    images, ids = sample(channels, patch, height, width)
    target = make(name, patch, channels)
    values = target(images, ids)
    assert values.shape == (3, ids.shape[1], target.width)
    assert values.isfinite().all()
    assert target.loss(values, values) == 0
    other = torch.randn_like(values)
    assert target.loss(other, values).item() == pytest.approx(
        float(np.square(other.numpy() - values.numpy()).mean()), rel=1e-5
    )
    patches = gather_tokens(patchify(images, (patch, patch)), ids)
    back = target.to_pixels(values, patch_statistics(patches))
    if target.width == patches.shape[2]:
        torch.testing.assert_close(back, patches, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VALUE_TARGETS)
def test_only_the_patches_asked_for_in_their_order(name):
    images, _ = sample(3, 2, 6, 8)
    target = make(name, 2, 3)
    everything = target(images, torch.arange(12).expand(3, -1))
    ids = torch.tensor([[3, 0], [11, 5], [7, 7]])
    assert torch.equal(target(images, ids), gather_tokens(everything, ids))


@pytest.mark.parametrize("name", VALUE_TARGETS)
def test_constant_patches_are_finite(name):
    for value in (0.0, 1.0, -2.117904):
        images = torch.full((1, 3, 8, 8), value)
        values = make(name, 4, 3)(images, torch.arange(4).view(1, -1))
        assert values.isfinite().all()
        if TARGETS[name].needs_statistics:
            assert values.abs().max() < 1e-3
        statistics = patch_statistics(patchify(images, (4, 4)))
        back = make(name, 4, 3).to_pixels(values, statistics)
        torch.testing.assert_close(back, patchify(images, (4, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels, patch, height, width", CASES)
def test_normalised_equals_numpy(channels, patch, height, width):
    images, ids = sample(channels, patch, height, width)
    patches = gather_tokens(patchify(images, (patch, patch)), ids).double().numpy()
    mean, variance = (
        patches.mean(axis=-1, keepdims=True),
        patches.var(axis=-1, ddof=1, keepdims=True),
    )
    expected = (patches - mean) / np.sqrt(variance + 1e-6)
    values = make("norm-pixels", patch, channels)(images, ids)
    np.testing.assert_allclose(values.numpy(), expected, rtol=2e-5, atol=2e-6)
    exact = make("norm-pixels", patch, channels)(images.double(), ids)
    np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_epsilon_counts_on_faint_patches():
    """Deviations near 1e-3, where a wrong place or size of the epsilon shows."""
    images, ids = sample(3, 4, 8, 8, torch.float64)
    images = images * 1e-3
    patches = gather_tokens(patchify(images, (4, 4)), ids).numpy()
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
        patches.var(-1, ddof=1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(make("norm-pixels", 4, 3)(images, ids).numpy(), expected, rtol=1e-10)


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
        make("pixels", 4, 3)(images, ids), gather_tokens(patchify(images, (4, 4)), ids)
    )
    assert not TARGETS["pixels"].needs_statistics and TARGETS["norm-pixels"].needs_statistics


def test_normalised_pixels_need_statistics():
    with pytest.raises(AssertionError, match="statistics"):
        make("norm-pixels", 4, 3).to_pixels(torch.zeros(1, 1, 48), None)


# ---------------------------------------------------------------- PCA


def correlated(count, values):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(values, values, generator=generator)
    return torch.randn(count, values, generator=generator) @ mixing + 3


@pytest.mark.parametrize("patch, channels", [((2, 2), 3), ((8, 8), 3), ((4, 8), 1)])
def test_the_components_are_those_of_an_svd(patch, channels):
    values = patch[0] * patch[1] * channels
    patches, target = correlated(3000, values), TARGETS["pca"](patch, channels)
    assert target.needs_fit and target.width == min(96, values)
    target.fit(patches)
    exact = patches.double().numpy()
    centred = exact - exact.mean(0)
    rows = np.linalg.svd(centred, full_matrices=False)[2][: target.width]
    found = target.components.double().numpy().T
    np.testing.assert_allclose(target.mean.numpy(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(np.abs((found * rows).sum(1)), 1, rtol=0, atol=1e-4)
    largest = np.abs(found).argmax(1)
    assert (found[np.arange(len(found)), largest] > 0).all(), "the sign is fixed"
    again = TARGETS["pca"](patch, channels)
    again.fit(patches.flip(0))  # the order of the sample hardly matters
    torch.testing.assert_close(again.components, target.components, rtol=0, atol=1e-4)


def test_pca_restores_what_its_components_hold():
    target = TARGETS["pca"]((8, 8), 3)
    target.fit(correlated(3000, 192))
    coefficients = torch.randn(2, 5, 96)
    patches = target.to_pixels(coefficients, None)
    torch.testing.assert_close(
        (patches - target.mean) @ target.components, coefficients, rtol=1e-4, atol=1e-3
    )


def test_pca_in_autocast_is_exact():
    images, ids = sample(3, 4, 8, 8)
    target = make("pca", 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target(images, ids), target(images, ids))
        inside = target(images, ids)
    assert inside.dtype == torch.float32 and torch.equal(inside, target(images, ids))


def test_a_target_that_is_not_fitted_cannot_train():
    """No zeros that would pass for a truth."""
    images, ids = sample(3, 4, 8, 8)
    target = TARGETS["pca"]((4, 4), 3)
    assert target(images, ids).isnan().all()
    target.load_state_dict(make("pca", 4, 3).state_dict())
    assert not target.needs_fit and target(images, ids).isfinite().all()


def test_targets_without_state_add_no_names():
    assert not make("pixels", 4, 3).state_dict() and not make("norm-pixels", 4, 3).state_dict()
    assert set(make("pca", 4, 3).state_dict()) == {"mean", "components"}


@pytest.mark.parametrize("name", VALUE_TARGETS)
def test_rectangular_patches(name):
    images = torch.randn(2, 3, 8, 16)
    target = TARGETS[name]((2, 8), 3)
    patches = patchify(images, (2, 8))
    if target.needs_fit:
        target.fit(patches.flatten(0, 1).repeat(20, 1) + torch.randn(320, 48))
    truth = target(images, torch.arange(8).expand(2, -1))
    back = target.to_pixels(truth, patch_statistics(patches))
    torch.testing.assert_close(back, patches, rtol=1e-4, atol=1e-5)
