"""Tokens as colors: equal tokens have equal colors, whatever the sign of a component."""

import torch
from helpers.mae import tiny

from torchmae.report.tokens import principal_colors, token_map


def test_groups_of_tokens_are_groups_of_colors() -> None:
    """Three clusters in 20 dimensions: three colors, far apart; the same for mirrored tokens of
    which the sign of a component is not known."""
    generator = torch.Generator().manual_seed(0)
    centers = 5 * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    sizes = [10, 20, 60]
    tokens = torch.cat([center.expand(n, -1) for center, n in zip(centers, sizes)])
    tokens = tokens + 0.01 * torch.randn(tokens.shape, generator=generator, dtype=torch.float64)
    colors = principal_colors(tokens)
    assert colors is not None and colors.shape == (90, 3)
    assert float(colors.min()) >= 0 and float(colors.max()) <= 1
    groups = colors[:, :2].split(sizes)
    assert all(float(group.std(0).max()) < 0.02 for group in groups)
    means = torch.stack([group.mean(0) for group in groups])
    assert float(torch.pdist(means).min()) > 0.5
    turned = principal_colors(tokens @ torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0])
    assert turned is not None
    assert torch.allclose(turned[:, :2], colors[:, :2], atol=0.05)


def test_a_patch_has_one_color_and_the_mode_stays() -> None:
    model = tiny()
    height, width = model.encoder.image_size
    images = torch.randint(0, 256, (3, model.encoder.channels, height, width), dtype=torch.uint8)
    model.train()
    colors = token_map(model, images)
    assert model.training and model.encoder.training
    assert colors is not None and colors.shape == (3, 3, height, width)
    patch = model.encoder.patch[0]
    tiles = colors.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4)
    assert bool((tiles == tiles[..., :1]).all())
    assert len(tiles[..., 0].unique()) > 10


def test_tokens_that_are_not_finite_have_none() -> None:
    assert principal_colors(torch.full((4, 5), torch.nan, dtype=torch.float64)) is None
