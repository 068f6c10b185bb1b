"""The discrete VAE: Gumbel-softmax and divergence against numpy in float64, noise that is a
function of the sample, tokens that are local."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers.tokenizers import small_tokenizer

from torchmae.errors import UserError
from torchmae.models.targets.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    gumbel,
    kl_to_uniform,
    perplexity,
    relax,
)
from torchmae.models.vit import ViT


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 1 / 16])
def test_relax_is_the_softmax_of_noisy_logits(temperature):
    logits, noise = draws(2, 5, 7) * 3, draws(2, 5, 7)
    expected = softmax((logits.numpy() + noise.numpy()) / temperature)
    np.testing.assert_allclose(relax(logits, noise, temperature).numpy(), expected, rtol=1e-12)


def test_the_divergence_is_the_sum_over_tokens():
    logits = draws(3, 4, 9) * 2
    q = softmax(logits.numpy())
    expected = (q * np.log(q / (1 / 9))).sum(-1)
    np.testing.assert_allclose(kl_to_uniform(logits).numpy(), expected, rtol=1e-12, atol=1e-15)
    assert kl_to_uniform(torch.zeros(1, 1, 9)).item() == pytest.approx(0, abs=1e-6)
    certain = torch.full((1, 1, 9), -1e4)
    certain[..., 3] = 1e4
    assert kl_to_uniform(certain).item() == pytest.approx(np.log(9))


def test_gradients_are_those_of_finite_differences():
    logits, noise = draws(2, 3, 5).requires_grad_(), draws(2, 3, 5)
    weight = draws(5, 4)
    assert torch.autograd.gradcheck(lambda x: relax(x, noise, 0.5) @ weight, logits)
    assert torch.autograd.gradcheck(kl_to_uniform, logits)


def test_the_gradient_of_the_whole_model():
    """The loss of a training pass, to each weight, against central differences along a random
    direction."""
    model, images = small_tokenizer().double(), draws(2, 3, 8, 8)
    noise = gumbel(0, torch.zeros(2).long(), torch.arange(2), 4, 16).double()

    def loss() -> torch.Tensor:
        made = model.decoder(
            (relax(model.logits(images), noise, 0.7) @ model.codebook.weight)
            .transpose(1, 2)
            .unflatten(2, (2, 2))
        )
        return (made - images).square().mean() + kl_to_uniform(model.logits(images)).mean()

    loss().backward()
    parameters = list(model.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction))
    values = []
    with torch.no_grad():
        for step in (1e-8, -2e-8):
            for p, d in zip(parameters, direction):
                p.add_(d, alpha=step)
            values.append(loss().item())
    assert (values[0] - values[1]) / 2e-8 == pytest.approx(slope, rel=1e-4)


def test_noise_is_standard_gumbel_and_finite():
    noise = gumbel(0, torch.zeros(40).long(), torch.arange(40), 64, 512).double()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.02)
    for value in (-1.0, 0.0, 2.0):
        share = (noise < value).double().mean().item()
        assert share == pytest.approx(np.exp(-np.exp(-value)), abs=2e-3)


def test_noise_is_a_function_of_seed_epoch_and_sample():
    epoch, sample = torch.tensor([0, 0, 1]), torch.tensor([5, 9, 5])
    noise = gumbel(3, epoch, sample, 4, 16)
    assert torch.equal(gumbel(3, epoch[1:], sample[1:], 4, 16), noise[1:])
    assert torch.equal(gumbel(3, epoch.flip(0), sample.flip(0), 4, 16), noise.flip(0))
    others = [noise[1], noise[2], gumbel(4, epoch, sample, 4, 16)[0]]
    assert all(not torch.equal(noise[0], other) for other in others)


@pytest.mark.parametrize("patch, channels", [(2, 1), (4, 3), (16, 5)])
def test_shapes_tokens_and_the_way_back(patch, channels):
    model = small_tokenizer(patch, channels, vocabulary=24, image_size=(2 * patch, 3 * patch))
    pixels = torch.randint(0, 256, (2, channels, 2 * patch, 3 * patch), dtype=torch.uint8)
    images = model.normalize(pixels)
    assert torch.equal(model.denormalize(images), pixels)
    tokens = model.tokens(images)
    assert tokens.shape == (2, 6) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < 24
    assert torch.equal(tokens, model.logits(images).argmax(2))
    assert model.reconstruct(tokens, (2, 3)).shape == images.shape


def test_a_training_pass_with_a_low_temperature_is_a_draw():
    model, images = small_tokenizer(), torch.randn(2, 3, 8, 8)
    noise = gumbel(0, torch.zeros(2).long(), torch.arange(2), 4, 16)
    relaxed = model(images, noise, 1e-4)
    drawn = (relaxed.logits + noise).argmax(2)
    expected = model.reconstruct(drawn, (2, 2))
    torch.testing.assert_close(relaxed.reconstruction, expected, rtol=1e-4, atol=1e-4)


def test_tokens_do_not_depend_on_the_size_of_the_image():
    """A token far from the new border stays as it is; one near the change does not."""
    model = small_tokenizer(patch=2, image_size=(64, 64))
    large = torch.randn(1, 3, 64, 64)
    small = large[:, :, :48]
    rows = [model.logits(x).unflatten(1, (x.shape[2] // 2, 32)) for x in (large, small)]
    torch.testing.assert_close(rows[0][:, :16], rows[1][:, :16])
    assert not torch.allclose(rows[0][:, 23], rows[1][:, 23])


def test_perplexity_against_numpy():
    counts = np.array([5.0, 0.0, 3.0, 8.0])
    shares = counts[counts > 0] / counts.sum()
    found = perplexity(torch.from_numpy(counts)).item()
    assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert perplexity(torch.ones(64)).item() == pytest.approx(64)
    assert perplexity(torch.tensor([0.0, 7.0])).item() == 1


def test_checkpointing_changes_no_gradient():
    grads = []
    for on in (False, True):
        model = small_tokenizer().train()
        model.set_grad_checkpointing(on)
        noise = gumbel(0, torch.zeros(2).long(), torch.arange(2), 4, 16)
        model(torch.ones(2, 3, 8, 8), noise, 1.0).reconstruction.square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*grads))


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(patch_size=6), "power of two"),
        (dict(patch_size=1), "power of two"),
        (dict(vocabulary=1), "at least 2 tokens"),
        (dict(std=(0.2, 0.0, 0.2)), "std above 0"),
        (dict(mean=(0.5,)), "one value for each channel"),
        (dict(image_size=(10, 8)), "not divisible"),
    ],
)
def test_what_cannot_be_built_is_said(changed, words):
    about = dict(patch_size=4, vocabulary=16, image_size=(8, 8))
    about |= dict(mean=(0.5,) * 3, std=(0.2,) * 3)
    assert Tokenizer.build(about).config == TokenizerConfig(**about)
    with pytest.raises(UserError, match=words):
        Tokenizer.build(about | changed)


@pytest.mark.parametrize(
    "scaling", [None, {"kind": "log"}, {"kind": "window", "low": [0, 1], "high": [9, 8]}]
)
def test_pixels_of_other_types_are_scaled_as_an_encoder_scales_them(scaling):
    mean, std = (0.5, 2.0), (1.5, 3.0)
    tokenizer = Tokenizer(TokenizerConfig(4, 16, (8, 8), mean, std, True, scaling))
    encoder = ViT((8, 8), 4, 2, 16, 1, 1, mean=mean, std=std, scaling=scaling or {"kind": "none"})
    images = 5 * torch.randn(1, 2, 8, 8)
    images[0, 0, 0, 0] = torch.nan
    assert torch.equal(tokenizer.normalize(images), encoder.normalize(images))
    assert tokenizer.scaling == encoder.scaling
    assert Tokenizer.build(asdict(tokenizer.config)).scaling == encoder.scaling
