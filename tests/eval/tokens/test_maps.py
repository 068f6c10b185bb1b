"""Maps of tokens against numpy: components by its SVD, norms, cosines, attention written out."""

import numpy as np
import pytest
import torch
from helpers.mae import tiny
from helpers.planted import shaken, small_vit

from torchmae.eval.tokens.maps import (
    as_colors,
    class_attention,
    colored_tokens,
    components,
    likeness,
    most_selective,
    outliers,
    token_maps,
)
from torchmae.models.heads import AttentivePool

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def some_maps() -> list[torch.Tensor]:
    """Of two images with different grids, with variances that differ clearly."""
    spread = torch.linspace(4, 0.5, 12)[:, None, None]
    return [5 + spread * torch.randn(12, h, w) for h, w in ((6, 5), (3, 9))]


def test_components_are_those_of_numpy_s_svd() -> None:
    maps = some_maps()
    found = components(maps)
    rows = np.concatenate([m.flatten(1).T.double().numpy() for m in maps])
    _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.shares, (values**2 / (values**2).sum())[:3], rtol=1e-9)
    for own, theirs in zip(found.axes.numpy(), axes[:3]):
        peak = theirs[np.abs(theirs).argmax()]
        np.testing.assert_allclose(own, theirs * np.sign(peak), atol=1e-9)
    np.testing.assert_allclose(
        found.project(maps[1]).flatten(1).T,
        (rows[30:] - rows.mean(0)) @ found.axes.numpy().T,
        atol=1e-9,
    )


def test_signs_do_not_depend_on_the_images_order_nor_on_the_algorithm() -> None:
    maps = some_maps()
    one, other = components(maps), components(maps[::-1])
    torch.testing.assert_close(one.axes, other.axes, rtol=0, atol=1e-9)
    assert all(axis[axis.abs().argmax()] > 0 for axis in one.axes)
    mirrored = components([-m for m in maps])  # the same directions
    torch.testing.assert_close(one.axes, mirrored.axes, rtol=0, atol=1e-9)


def test_equal_tokens_and_narrow_ones_have_colors() -> None:
    equal = [torch.ones(2, 3, 4)]
    found = components(equal)
    assert found.axes.shape == (2, 2) and found.shares.sum() == 0
    (colors,) = as_colors([found.project(equal[0])])
    assert colors.shape == (3, 3, 4) and bool((colors[2] == 0.5).all()) and colors.isfinite().all()


def test_colors_have_one_scale_that_single_tokens_do_not_set() -> None:
    ramp = torch.linspace(0, 1, 1000, dtype=torch.float64)
    first = ramp[:500].repeat(3, 1)
    first[0, 0] = -1e6  # far out
    one, other = as_colors([first.unflatten(1, (20, 25)), ramp[500:].repeat(3, 1, 1)])
    assert one[0, 0, 0] == 0 and one[1].max() < 0.5 < other[1].min()
    assert abs(float(one[1, 10, 0]) - (0.25 - 0.01) / 0.98) < 0.01


def test_likeness_is_the_cosine() -> None:
    tokens, to = torch.randn(8, 2, 3), torch.randn(8)
    a, b = tokens.double().numpy(), to.double().numpy()
    by_hand = np.einsum("dhw,d->hw", a, b) / np.linalg.norm(a, axis=0) / np.linalg.norm(b)
    np.testing.assert_allclose(likeness(tokens, to), by_hand, atol=1e-6)


def test_outliers_are_counted_over_all_images() -> None:
    assert outliers([torch.ones(2, 2), torch.tensor([[1.0, 3.1, 2.9]])]) == 1


def test_the_queries_that_look_at_the_fewest_patches() -> None:
    even, sharp = torch.full((2, 2), 0.25), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    half = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    assert most_selective([torch.stack([even, sharp, half])], 2) == [1, 2]


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("block", [0, 2])
def test_attention_of_the_class_token_written_out(registers: int, block: int) -> None:
    """In float64 by numpy, of an image of another size than the encoder's."""
    encoder = small_vit(registers=registers)
    image = torch.randint(0, 256, (3, 40, 24), dtype=torch.uint8)
    maps = token_maps(encoder, image, block + 1, None, CPU)
    assert maps.attention is not None and maps.attention.shape == (4, 5, 3)
    weights = {name: w.double().numpy() for name, w in encoder.state_dict().items()}
    pixels = encoder.normalize(image[None])
    tokens = encoder.any_size(pixels)[0]
    for one in encoder.blocks[:block]:
        tokens = one(tokens)
    x = tokens[0].detach().double().numpy()
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    at = f"blocks.{block}."
    normed = normed * weights[f"{at}norm1.weight"] + weights[f"{at}norm1.bias"]
    qkv = normed @ weights[f"{at}attn.qkv.weight"].T + weights[f"{at}attn.qkv.bias"]
    q, k, _ = np.split(qkv, 3, axis=1)
    for head in range(4):
        columns = slice(8 * head, 8 * head + 8)
        products = k[:, columns] @ q[0, columns] / np.sqrt(8)
        share = np.exp(products - products.max())
        share /= share.sum()
        np.testing.assert_allclose(
            maps.attention[head].flatten(), share[1 + registers :], rtol=1e-4, atol=1e-7
        )


def test_tokens_are_those_of_the_encoder_and_norms_are_before_its_norm() -> None:
    encoder = small_vit()
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    pixels = encoder.normalize(image[None])
    for layer in (1, 3):
        maps = token_maps(encoder, image, layer, None, CPU)
        tokens = encoder(pixels, layer=layer)[0, 1:].detach()
        torch.testing.assert_close(maps.tokens.flatten(1).T, tokens, rtol=1e-4, atol=1e-5)
        (raw,) = encoder.forward_intermediates(pixels, [layer - 1])
        by_hand = np.sqrt((raw[0].detach().double().numpy() ** 2).sum(0))
        np.testing.assert_allclose(maps.norms, by_hand, rtol=1e-5)


def test_queries_are_the_weights_of_the_pooling() -> None:
    encoder, pool = small_vit(), shaken(AttentivePool(32, 8))
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    maps = token_maps(encoder, image, 3, pool, CPU)
    tokens = encoder(encoder.normalize(image[None]))[:, 1:]
    torch.testing.assert_close(maps.queries.flatten(1), pool.weights(tokens)[0].detach())
    torch.testing.assert_close(maps.queries.sum((1, 2)), torch.ones(8))


def test_an_encoder_without_a_class_token_in_its_blocks_has_no_attention() -> None:
    encoder = small_vit()
    encoder.set_windows(2, global_blocks=1)
    assert class_attention(encoder, torch.randn(1, 3, 32, 32), 0) is None


def test_a_patch_has_one_color() -> None:
    model = tiny().eval()
    encoder = model.encoder
    images = torch.randint(0, 256, (3, encoder.channels, *encoder.image_size), dtype=torch.uint8)
    colors = colored_tokens(encoder, images)
    assert colors is not None and colors.shape == (3, 3, *encoder.image_size)
    patch = encoder.patch[0]
    tiles = colors.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4)
    assert bool((tiles == tiles[..., :1]).all())
    assert len(tiles[..., 0].unique()) > 10
    with torch.no_grad():
        encoder.norm.weight.fill_(torch.nan)
    assert colored_tokens(encoder, images) is None
