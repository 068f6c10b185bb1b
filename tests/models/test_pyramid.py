"""The pyramid, and encoders on images of any size, in windows, with relative positions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchmae.errors import UserError
from torchmae.models.encoders import build_encoder
from torchmae.models.patches import resize_positions
from torchmae.models.pyramid import ChannelNorm, Pyramid, pyramid_strides, pyramid_taps
from torchmae.models.vit import ViT, from_windows, into_windows


def vit(**more):
    torch.manual_seed(0)
    size = dict(image_size=(32, 48), patch_size=8, embed_dim=32, depth=4, num_heads=2)
    return ViT(**{**size, **more}).double().eval()


def test_taps_are_the_ends_of_four_equal_subsets():
    assert pyramid_taps(12, "taps") == (2, 5, 8, 11)
    assert pyramid_taps(24, "taps") == (5, 11, 17, 23)
    assert pyramid_taps(4, "taps") == (0, 1, 2, 3)
    assert pyramid_taps(6, "taps")[-1] == 5 and len(set(pyramid_taps(6, "taps"))) == 4
    assert pyramid_taps(12, "simple") == (11,)
    with pytest.raises(UserError, match="at least 4 blocks, the encoder has 3"):
        pyramid_taps(3, "taps")
    with pytest.raises(UserError, match="Did you mean simple"):
        pyramid_taps(3, "simpel")


def test_strides():
    assert pyramid_strides((16, 16)) == ((4, 4), (8, 8), (16, 16), (32, 32))
    assert pyramid_strides((8, 32)) == ((2, 8), (4, 16), (8, 32), (16, 64))
    assert pyramid_strides((14, 14)) == ((3.5, 3.5), (7, 7), (14, 14), (28, 28))


def written_out(pyramid, maps):
    """The four levels by plain matrix products and loops over the cells."""

    def deconv(layer, x):
        batch, _, h, w = x.shape
        out = torch.zeros(batch, layer.out_channels, 2 * h, 2 * w, dtype=x.dtype)
        for i in range(2):
            for j in range(2):
                cells = torch.einsum("bchw,cd->bdhw", x, layer.weight[:, :, i, j])
                out[:, :, i::2, j::2] = cells + layer.bias.view(1, -1, 1, 1)
        return out

    def norm(layer, x):
        mean = x.mean(1, keepdim=True)
        variance = ((x - mean) ** 2).mean(1, keepdim=True)
        scaled = (x - mean) / (variance + 1e-6).sqrt()
        return scaled * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    first, second = pyramid.levels[:2]
    quarter = deconv(first[3], F.gelu(norm(first[1], deconv(first[0], maps[0]))))
    h, w = maps[3].shape[2:]
    rows = [slice(i, i + 2) for i in range(0, h, 2)]
    columns = [slice(j, j + 2) for j in range(0, w, 2)]
    cells = [torch.stack([maps[3][:, :, i, j].amax((2, 3)) for j in columns], 2) for i in rows]
    return [quarter, deconv(second, maps[1]), maps[2], torch.stack(cells, 2)]


@pytest.mark.parametrize("kind", ["taps", "simple"])
def test_levels_equal_those_written_out(kind):
    torch.manual_seed(0)
    pyramid = Pyramid(16, kind).double()
    maps = [torch.randn(2, 16, 5, 6, dtype=torch.float64) for _ in range(4)]
    given = maps if kind == "taps" else maps[:1]
    found = pyramid(given)
    expected = written_out(pyramid, maps if kind == "taps" else maps[:1] * 4)
    assert tuple(level.shape[1] for level in found) == pyramid.widths
    assert pyramid.widths == ((16,) * 4 if kind == "taps" else (4, 8, 16, 16))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_outlets_have_one_width_and_no_batch_statistics():
    pyramid = Pyramid(16, "simple", out_dim=12)
    levels = pyramid([torch.randn(1, 16, 4, 4)])
    assert [tuple(level.shape) for level in levels] == [(1, 12, s, s) for s in (16, 8, 4, 2)]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in pyramid.modules())
    each = [pyramid([x]) for x in torch.randn(2, 1, 16, 4, 4)]
    assert len(each) == 2


def test_channel_norm_is_of_each_place():
    norm, x = ChannelNorm(5), torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(norm(x)[1, :, 2, 3], F.layer_norm(x[1, :, 2, 3], (5,), eps=1e-6))


def test_maps_of_the_own_size_are_those_of_forward():
    model, images = vit(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    (last,) = model.forward_intermediates(images, [-1])
    tokens = model.norm(last.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, model(images)[:, 1:], rtol=1e-12, atol=1e-12)


def test_maps_of_any_size_are_those_of_a_resized_encoder():
    model, other = vit(), vit()
    images = torch.randn(2, 3, 40, 24, dtype=torch.float64)
    other.resize((40, 24))
    found = model.forward_intermediates(images, [0, 3])
    for one, expected in zip(found, other.forward_intermediates(images, [0, 3])):
        assert torch.equal(one, expected)
    padded = F.pad(images[:, :, :37, :20], (0, 4, 0, 3))
    (one,) = model.forward_intermediates(images[:, :, :37, :20], [3])
    (expected,) = model.forward_intermediates(padded, [3])
    assert one.shape[2:] == (5, 3) and torch.equal(one, expected)


def test_stochastic_depth_of_maps():
    model, images = vit(drop_path=0.9).train(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    none = torch.ones(2, 4, 2)  # nothing is dropped, but scaled
    all_but_first = torch.zeros(2, 4, 2)
    (kept,) = model.forward_intermediates(images, [-1], none)
    (dropped,) = model.forward_intermediates(images, [-1], all_but_first)
    (first,) = model.forward_intermediates(images, [0])
    assert torch.equal(dropped, first) and not torch.allclose(kept, first)


@pytest.mark.parametrize("grid, side", [((4, 6), 2), ((5, 7), 3), ((2, 3), 4), ((1, 1), 1)])
def test_windows_hold_the_cells_of_their_place(grid, side):
    x = torch.arange(2 * grid[0] * grid[1] * 3, dtype=torch.float64).reshape(2, -1, 3) + 1
    windows = into_windows(x, grid, side)
    down, across = -(-grid[0] // side), -(-grid[1] // side)
    assert windows.shape == (2 * down * across, side * side, 3)
    cells = x.unflatten(1, grid)
    for image in range(2):
        for i in range(down):
            for j in range(across):
                expected = torch.zeros(side, side, 3, dtype=x.dtype)
                piece = cells[image, i * side : (i + 1) * side, j * side : (j + 1) * side]
                expected[: piece.shape[0], : piece.shape[1]] = piece
                found = windows[(image * down + i) * across + j].unflatten(0, (side, side))
                assert torch.equal(found, expected)
    assert torch.equal(from_windows(windows, grid, side), x)


def attention_written_out(attn, x, grid):
    """Windowed attention with decomposed relative positions, one query after the other."""
    rows, columns = grid
    side = (attn.window, attn.window) if attn.window else grid
    down, across = -(-rows // side[0]), -(-columns // side[1])
    padded = torch.zeros(down * side[0], across * side[1], x.shape[1], dtype=x.dtype)
    padded[:rows, :columns] = x.unflatten(0, grid)
    width = x.shape[1]
    q, k, v = (
        padded @ w.T + b for w, b in zip(attn.qkv.weight.split(width), attn.qkv.bias.split(width))
    )
    out = torch.zeros_like(padded)
    each = width // attn.num_heads
    for r in range(padded.shape[0]):
        for c in range(padded.shape[1]):
            top, left = r // side[0] * side[0], c // side[1] * side[1]
            for head in range(attn.num_heads):
                part = slice(head * each, (head + 1) * each)
                query = q[r, c, part]
                places = [
                    (y, x) for y in range(top, top + side[0]) for x in range(left, left + side[1])
                ]
                logits = []
                for y, z in places:
                    logit = query @ k[y, z, part] / each**0.5
                    logit = logit + query @ attn.rel_pos_h[r - y + side[0] - 1]
                    logits.append(logit + query @ attn.rel_pos_w[c - z + side[1] - 1])
                weights = torch.stack(logits).softmax(0)
                out[r, c, part] = sum(w * v[y, z, part] for w, (y, z) in zip(weights, places))
    return out[:rows, :columns].flatten(0, 1) @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize("window", [0, 3])
def test_attention_on_a_grid_equals_that_written_out(window):
    model = vit(image_size=(32, 40), window=window, global_blocks=1, relative_positions=True)
    attn, grid = model.blocks[0].attn, (4, 5)
    for table in (attn.rel_pos_h, attn.rel_pos_w):
        assert not table.any()
        nn.init.normal_(table)
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    found = attn(x, grid=grid)
    for image in range(2):
        expected = attention_written_out(attn, x[image], grid)
        torch.testing.assert_close(found[image], expected, rtol=1e-10, atol=1e-12)


def test_relative_positions_change_nothing_at_first():
    """And one window as large as the grid is global attention (without the class token)."""
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = vit(image_size=(32, 32), window=0, relative_positions=True)
    windowed = vit(image_size=(32, 32), window=4, global_blocks=2, relative_positions=False)
    for one, other in zip(
        plain.forward_intermediates(images, [0, 3]), windowed.forward_intermediates(images, [0, 3])
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_global_blocks_are_the_last_of_equal_subsets():
    model = ViT((32, 32), 8, embed_dim=32, depth=12, num_heads=2, window=2)
    windows = [block.attn.window for block in model.blocks]
    assert windows == [2, 2, 0] * 4


def test_windows_and_relative_positions_are_described_and_resized():
    model = vit(window=2, global_blocks=2, relative_positions=True)
    again = build_encoder(model.config()).double()
    again.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    assert torch.equal(
        model.forward_intermediates(images, [-1])[0], again.forward_intermediates(images, [-1])[0]
    )
    for block in model.blocks:
        nn.init.normal_(block.attn.rel_pos_h)
    (before,) = model.forward_intermediates(images, [-1])
    model.resize((48, 64))
    (after,) = model.forward_intermediates(images, [-1])
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert model.blocks[3].attn.rel_pos_h.shape[0] == 2 * 6 - 1
    assert model.blocks[0].attn.rel_pos_h.shape[0] == 2 * 2 - 1


def test_a_plain_encoder_is_described_as_before():
    assert not {"window", "global_blocks", "relative_positions"} & set(vit().config())


def test_tokens_of_a_windowed_encoder_are_refused():
    with pytest.raises(UserError, match="mae segment"):
        vit(window=2)(torch.zeros(1, 3, 32, 48, dtype=torch.float64))
    with pytest.raises(UserError, match="at most 4 blocks"):
        vit(window=2, global_blocks=5)


def test_gradient_checkpointing_changes_no_bit():
    model, images = vit(window=2, relative_positions=True), torch.randn(1, 3, 32, 48).double()

    def gradient():
        model.train().zero_grad()
        model.forward_intermediates(images, [-1])[0].square().sum().backward()
        return model.blocks[0].attn.rel_pos_h.grad.clone()

    plain = gradient()
    model.set_grad_checkpointing(True)
    assert torch.equal(gradient(), plain)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_timm_encoders_take_any_size_or_say_so(name):
    pytest.importorskip("timm")
    encoder = build_encoder({"kind": "timm", "name": name, "image_size": (64, 64)}).eval()
    images = torch.randn(1, 3, 40, 90)
    if name.startswith("vit_small"):
        with pytest.raises(UserError, match="64x64 pixels only, not 48x96"):
            encoder.forward_intermediates(images, [-1])
        return
    (found,) = encoder.forward_intermediates(images, [-1])
    assert found.shape[2:] == (3, 6)
    table = resize_positions(encoder.model.pos_embed.data, (4, 4), (3, 6))
    other = build_encoder({"kind": "timm", "name": name, "image_size": (48, 96)}).eval()
    state = {**encoder.state_dict(), "model.pos_embed": table}
    other.load_state_dict(state)
    (expected,) = other.forward_intermediates(F.pad(images, (0, 6, 0, 8)), [-1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert encoder(torch.randn(1, 3, 64, 64)).shape[1] == 17  # as it was
