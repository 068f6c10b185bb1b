"""The correlation length of textures for which it is known."""

import numpy as np
import pytest

from torchmae.data.quality.texture import Texture, autocorrelation, fall, suggest


@pytest.mark.parametrize("sigma", [2, 4, 8])
def test_blurred_noise_is_correlated_over_two_sigma(sigma: int) -> None:
    """Of white noise after a Gaussian blur the correlation is exp(-d² / 4 sigma²)."""
    curves = []
    for seed in range(6):
        noise = np.random.default_rng(seed).normal(0, 1, (512, 512))
        spectrum = np.fft.fft2(noise)
        f = np.fft.fftfreq(512)
        gain = np.exp(-2 * (np.pi * sigma) ** 2 * (f[:, None] ** 2 + f[None] ** 2))
        image = np.fft.ifft2(spectrum * gain).real[:224, :224]
        curve = autocorrelation(image / image.std() * 30)
        assert curve is not None
        curves.append(curve)
    assert fall(np.mean(curves, axis=0)) == pytest.approx(2 * sigma, rel=0.15)


def test_a_blank_image_has_no_correlation() -> None:
    assert autocorrelation(np.full((32, 32), 7.0)) is None
    assert fall([1.0, 0.9, 0.8]) is None


@pytest.mark.parametrize(
    "length, side, patch, ratio",
    [(32.0, 224, 16, 0.75), (8.0, 32, 4, 0.75), (3.0, 224, 2, 0.55), (None, 64, 8, 0.9)],
)
def test_the_rule_gives_the_papers_setting_at_32_px(
    length: float | None, side: int, patch: int, ratio: float
) -> None:
    found = suggest(Texture(np.ones(2), length, 1, side))
    assert (found.patch, found.ratio) == (patch, ratio)
