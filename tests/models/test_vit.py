"""The encoder: equal to timm's with the same weights; hidden patches are really absent; resizing;
sizes."""

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from torchmae.errors import UserError
from torchmae.models import vit
from torchmae.models.encoders import build_encoder
from torchmae.models.mae import MAE
from torchmae.models.patches import patchify, scatter_tokens, sincos_positions, unpatchify
from torchmae.models.sizes import SIZES, size_of
from torchmae.models.vit import Attention, PlainAttention, ViT, drop_path

TINY = dict(patch_size=4, embed_dim=32, depth=3, num_heads=4)


def shaken(module, scale=0.1):
    """Random values in every parameter, so that no bias is zero and no norm the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def some_ids(batch, patches, count):
    return torch.stack([torch.randperm(patches)[:count] for _ in range(batch)])


# ---------------------------------------------------------------- timm


def timm_model(encoder, drop_path=0.0):
    return VisionTransformer(
        img_size=encoder.image_size,
        patch_size=encoder.patch_size,
        in_chans=encoder.channels,
        embed_dim=encoder.embed_dim,
        depth=encoder.depth,
        num_heads=encoder.num_heads,
        mlp_ratio=encoder.mlp_ratio,
        drop_path_rate=drop_path,
        num_classes=0,
        global_pool="",
        init_values=encoder.init_values,
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 12)])
@pytest.mark.parametrize("mlp_ratio", [4.0, 2.5])
def test_equals_timm(channels, size, mlp_ratio):
    ours = shaken(ViT(size, channels=channels, mlp_ratio=mlp_ratio, **TINY)).eval()
    theirs = timm_model(ours).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(3, channels, *size)
    torch.testing.assert_close(ours(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5)

    ours.double(), theirs.double()
    difference = (ours(images.double()) - theirs.forward_features(images.double())).abs().max()
    assert difference < 1e-12


def test_layer_scale_equals_timms():
    encoder = ViT((8, 16), init_values=0.1, **TINY)
    assert all(
        (block.ls1.gamma == 0.1).all() and (block.ls2.gamma == 0.1).all()
        for block in encoder.blocks
    )
    assert build_encoder(encoder.config()).config()["init_values"] == 0.1
    ours = shaken(encoder)
    theirs = timm_model(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(3, 3, 8, 16)
    assert torch.equal(ours.eval()(images), theirs.eval().forward_features(images))
    weight = torch.randn(3, 9, 32)
    (ours(images) * weight).sum().backward()
    (theirs.forward_features(images) * weight).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name != "pos_embed":
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)
    # Drop path is after it, as in timm: a dropped branch is zero whatever its scale.
    dropped = ViT((8, 16), init_values=0.1, drop_path=0.5, **TINY)
    dropped.load_state_dict(ours.state_dict())
    plain = dropped(images, draws=torch.ones(3, 3, 2))  # nothing is dropped, branches are scaled up
    assert not torch.equal(plain, ours(images))
    # Without, the names and the function are those of a plain ViT.
    assert not [n for n in ViT((8, 8), **TINY).state_dict() if "ls" in n.split(".")]


def test_loads_from_timm():
    ours = ViT((8, 24), **TINY).eval()
    theirs = shaken(timm_model(ours)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 8, 24)
    torch.testing.assert_close(ours(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5)


def test_gradients_equal_timms():
    ours = shaken(ViT((8, 16), **TINY)).double()
    theirs = timm_model(ours).double()
    theirs.load_state_dict(ours.state_dict())
    images, weight = torch.randn(2, 3, 8, 16).double(), torch.randn(2, 9, 32).double()
    (ours(images) * weight).sum().backward()
    (theirs.forward_features(images) * weight).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name != "pos_embed":
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth, rate", [(1, 0.3), (2, 0.1), (5, 0.2), (12, 0.0)])
def test_drop_path_rates_equal_timms(depth, rate):
    ours = ViT((8, 8), patch_size=4, embed_dim=16, depth=depth, num_heads=2, drop_path=rate)
    theirs = timm_model(ours, rate)
    expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    assert [block.drop_rate for block in ours.blocks] == pytest.approx(expected, abs=1e-7)
    if depth > 1:
        assert ours.blocks[0].drop_rate == 0 and ours.blocks[-1].drop_rate == pytest.approx(rate)


# ---------------------------------------------------------------- keep


def masked_reference(encoder, images, keep):
    """All tokens go through; attention to hidden ones is -inf. From the weights alone, sharing no
    code with the model."""
    weights = {name: value.double() for name, value in encoder.state_dict().items()}

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-6).sqrt() * weights[f"{name}.weight"] + weights[
            f"{name}.bias"
        ]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    images, p, heads = images.double(), encoder.patch_size, encoder.num_heads
    kernel = weights["patch_embed.proj.weight"]
    rows, columns = images.shape[2] // p, images.shape[3] // p
    tokens = [weights["cls_token"][0].expand(len(images), -1)]
    for row in range(rows):
        for column in range(columns):
            pixels = images[:, :, row * p : row * p + p, column * p : column * p + p]
            tokens.append(
                torch.einsum("bcyx,dcyx->bd", pixels, kernel) + weights["patch_embed.proj.bias"]
            )
    x = torch.stack(tokens, dim=1) + weights["pos_embed"]
    bias = torch.full((len(images), 1 + rows * columns), -math.inf, dtype=torch.float64)
    bias[:, 0] = 0
    bias.scatter_(1, keep + 1, 0.0)
    width = x.shape[-1] // heads
    for i in range(encoder.depth):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        mixed = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = q[..., part] @ k[..., part].transpose(1, 2) / width**0.5 + bias.unsqueeze(1)
            mixed.append(logits.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(mixed, dim=-1), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    x = norm(x, "norm")
    picked = torch.cat([torch.zeros(len(images), 1, dtype=torch.long), keep + 1], dim=1)
    return torch.stack([row[ids] for row, ids in zip(x, picked)])


@pytest.mark.parametrize(
    "size, channels, count", [((16, 16), 3, 4), ((8, 24), 1, 5), ((12, 8), 2, 1), ((8, 8), 3, 4)]
)
def test_keep_equals_attention_masked_full_tokens(size, channels, count):
    encoder = shaken(ViT(size, channels=channels, **TINY)).eval()
    images, keep = torch.randn(3, channels, *size), some_ids(3, math.prod(encoder.grid), count)
    expected = masked_reference(encoder, images, keep)
    torch.testing.assert_close(encoder(images, keep).double(), expected, rtol=1e-5, atol=1e-5)
    exact = encoder.double()(images.double(), keep)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-10)


def test_keeping_everything_is_no_mask():
    encoder = shaken(ViT((8, 12), **TINY)).eval()
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(encoder(images, torch.arange(6).expand(2, -1)), encoder(images))


def test_permuted_keep_gives_permuted_tokens():
    encoder = shaken(ViT((16, 16), **TINY)).double().eval()
    images, keep = torch.randn(2, 3, 16, 16).double(), some_ids(2, 16, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    tokens, permuted = encoder(images, keep), encoder(images, keep[:, order])
    torch.testing.assert_close(permuted[:, 1:], tokens[:, 1:][:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(permuted[:, 0], tokens[:, 0], rtol=1e-12, atol=1e-12)


def test_hidden_pixels_have_no_influence():
    encoder = shaken(ViT((16, 16), **TINY)).eval()
    images, order = torch.randn(2, 3, 16, 16), some_ids(2, 16, 16)
    keep, hide = order[:, :5], order[:, 5:]
    tokens = encoder(images, keep)
    poison = torch.full((2, 11, 48), math.nan)
    poisoned = unpatchify(scatter_tokens(patchify(images, (4, 4)), hide, poison), (4, 4), (4, 4))
    assert torch.equal(encoder(poisoned, keep), tokens)

    images.requires_grad_()
    (encoder(images, keep) * torch.randn(2, 6, 32)).sum().backward()
    gradient = patchify(images.grad, (4, 4))
    for b in range(2):
        assert (gradient[b, hide[b]] == 0).all()
        assert (gradient[b, keep[b]].abs().amax(-1) > 0).all()


# ---------------------------------------------------------------- drop path, layers


def test_drop_path():
    x = torch.ones(20000, 2, 3)
    y = drop_path(x, torch.rand(20000), 0.25)
    assert set(y.flatten().unique().tolist()) == {
        0.0,
        x.new_tensor(1 / 0.75).item(),
    }  # the whole branch, scaled
    assert torch.equal(y, y[:, :1, :1].expand_as(y)), "an image's branch goes or stays as a whole"
    assert y.mean().item() == pytest.approx(1, abs=4 * (0.25 / 0.75 / 20000) ** 0.5)
    assert drop_path(x.bfloat16(), torch.rand(20000), 0.25).dtype == torch.bfloat16


def test_drop_path_is_in_the_encoder_while_training_only():
    encoder = shaken(ViT((8, 8), drop_path=0.5, **TINY))
    images, draws = torch.randn(8, 3, 8, 8), torch.rand(8, encoder.depth, 2)
    whole = encoder(images)
    assert torch.equal(encoder(images), whole), "the model draws nothing by itself"
    dropped = encoder(images, draws=draws)
    assert not torch.equal(dropped, whole) and torch.equal(encoder(images, draws=draws), dropped)
    part = encoder(images[3:5], draws=draws[3:5])
    torch.testing.assert_close(part, dropped[3:5])  # whatever else is in the batch
    assert torch.equal(encoder.eval()(images, draws=draws), whole)
    assert "drop_path" not in encoder.config()


def test_layers_are_the_blocks():
    encoder = ViT((8, 8), **TINY)
    layers = encoder.layers()
    assert len(layers) == 3 and all(a is b for a, b in zip(layers, encoder.blocks))
    assert encoder.num_prefix_tokens == 1


def test_layer_stops_early():
    encoder = shaken(ViT((8, 12), **TINY)).eval()
    images, keep = torch.randn(2, 3, 8, 12), some_ids(2, 6, 3)
    for layer in (1, 2):
        shorter = ViT((8, 12), **(TINY | {"depth": layer})).eval()
        shorter.load_state_dict(
            {n: w for n, w in encoder.state_dict().items() if n in shorter.state_dict()}
        )
        assert torch.equal(encoder(images, layer=layer), shorter(images))
        assert torch.equal(encoder(images, keep, layer), shorter(images, keep))
        assert not torch.equal(encoder(images, layer=layer), encoder(images))
    assert torch.equal(encoder(images, layer=3), encoder(images))


@pytest.mark.parametrize("layer", [0, -1, 4])
def test_layers_that_do_not_exist(layer):
    with pytest.raises(UserError, match=f"layer {layer} does not exist: 1 to 3"):
        ViT((8, 8), **TINY)(torch.zeros(1, 3, 8, 8), layer=layer)


# ---------------------------------------------------------------- sizes and errors


@pytest.mark.parametrize(
    "old, new", [((16, 16), (24, 24)), ((16, 16), (8, 32)), ((8, 24), (12, 8)), ((8, 8), (8, 8))]
)
def test_resize(old, new):
    encoder = shaken(ViT(old, **TINY)).eval()
    before, grid = encoder.pos_embed.detach().clone(), encoder.grid
    encoder.resize(new)
    assert encoder.image_size == new and encoder.grid == (new[0] // 4, new[1] // 4)
    expected = resample_abs_pos_embed(before, list(encoder.grid), list(grid), num_prefix_tokens=1)
    assert torch.equal(encoder.pos_embed, expected)
    assert isinstance(encoder.pos_embed, nn.Parameter) and not encoder.pos_embed.requires_grad
    tokens = encoder(torch.randn(2, 3, *new))
    assert tokens.shape == (2, 1 + math.prod(encoder.grid), 32)
    assert build_encoder(encoder.config()).pos_embed.shape == encoder.pos_embed.shape
    if old != new:
        with pytest.raises(UserError, match="takes images"):
            encoder(torch.randn(2, 3, *old))


def test_resize_refuses_what_does_not_divide():
    encoder = ViT((8, 8), **TINY)
    with pytest.raises(UserError, match="10x8 is not divisible by patch size 4"):
        encoder.resize((10, 8))
    assert encoder.image_size == (8, 8) and encoder.grid == (2, 2)


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 12, 12), (3, 16, 16), (1, 12, 8), (4, 12, 8)])
def test_wrong_images(shape):
    """(8, 12) has as many patches as (12, 8): only the sizes can tell."""
    with pytest.raises(
        UserError, match="takes images of 3 x 12 x 8 .*not " + " x ".join(map(str, shape))
    ):
        ViT((12, 8), **TINY)(torch.zeros(2, *shape))


def test_wrong_arguments():
    with pytest.raises(UserError, match="width 32 is not divisible by 5 heads"):
        ViT((8, 8), patch_size=4, embed_dim=32, depth=1, num_heads=5)
    with pytest.raises(UserError, match="9x8 is not divisible by patch size 4"):
        ViT((9, 8), **TINY)
    with pytest.raises(UserError, match="one value for each of 2 channels"):
        ViT((8, 8), channels=2, mean=(0.5, 0.5, 0.5), **TINY)
    with pytest.raises(UserError, match="one value for each of 3 channels"):
        ViT((8, 8), std=(0.5,), **TINY)
    with pytest.raises(UserError, match=r"unknown model 'vit_bass'. Did you mean vit_base\?"):
        size_of("vit_bass")


def test_normalize():
    encoder = ViT((8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), **TINY)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = torch.stack(
        [(images[:, c] / 255 - (0.1, 0.2, 0.3)[c]) / (0.5, 0.6, 0.7)[c] for c in range(3)], dim=1
    )
    torch.testing.assert_close(encoder.normalize(images), expected)
    torch.testing.assert_close(ViT((8, 8), **TINY).normalize(images), images / 127.5 - 1)


def test_config_builds_the_same_encoder():
    encoder = ViT(
        (8, 12), channels=2, mlp_ratio=2.0, mean=(0.1, 0.2), std=(0.3, 0.4), drop_path=0.1, **TINY
    )
    again = build_encoder(encoder.config())
    assert again.config() == encoder.config()
    assert {n: p.shape for n, p in again.state_dict().items()} == {
        n: p.shape for n, p in encoder.state_dict().items()
    }


# ---------------------------------------------------------------- positions and initial values


def test_positions_after_every_way_of_building():
    """transformers' ViTMAE zeroes its positions when built from scratch: ours are sin-cos however
    they come about."""
    expected = sincos_positions((2, 3), 32)
    encoder = ViT((8, 12), **TINY)
    ways = [
        encoder,
        build_encoder(encoder.config()),
        MAE(encoder).encoder,
        MAE.build(MAE(encoder).config()).encoder,
    ]
    loaded = ViT((8, 12), **TINY)
    loaded.load_state_dict(encoder.state_dict())
    for built in [*ways, loaded]:
        assert torch.equal(built.pos_embed, expected) and expected[0, 1:].abs().sum(-1).min() > 1
        assert not built.pos_embed.requires_grad
        assert "pos_embed" in built.state_dict()
    tokens = encoder(torch.zeros(1, 3, 8, 12))[0, 1:]
    assert (torch.cdist(tokens, tokens) + torch.eye(6)).min() > 1e-3, (
        "equal patches at different places must differ"
    )


def test_positions_stay_while_training():
    encoder = ViT((8, 12), **TINY)
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert len(trained) == len(list(encoder.parameters())) - 1 and "pos_embed" not in trained
    encoder(torch.randn(2, 3, 8, 12)).square().sum().backward()
    assert encoder.pos_embed.grad is None
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


def test_initial_values():
    encoder = ViT((16, 16), patch_size=8, embed_dim=192, depth=2, num_heads=3)
    linears = [m for m in encoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(linears) == 1 + 2 * 4
    for layer in linears:
        outputs, inputs = layer.weight.flatten(1).shape
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        if isinstance(layer, nn.Linear):
            assert (layer.bias == 0).all()
    bias, bound = encoder.patch_embed.proj.bias, (8 * 8 * 3) ** -0.5
    assert 0.95 * bound < bias.abs().max() <= bound
    assert bias.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    for layer in (m for m in encoder.modules() if isinstance(m, nn.LayerNorm)):  # type: ignore[assignment]
        assert (layer.weight == 1).all() and (layer.bias == 0).all() and layer.eps == 1e-6
    assert encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(encoder.pos_embed, sincos_positions((2, 2), 192))


@pytest.mark.parametrize(
    "name, patch, encoder_only, classifier",
    [
        ("vit_base", 16, 85_798_656, 86.6),
        ("vit_large", 16, 303_301_632, 304.3),
        ("vit_huge", 14, 630_764_800, 632.0),
    ],
)
def test_parameter_counts(name, patch, encoder_only, classifier):
    """The paper's 86, 304 and 632 million count a 1000-class head."""
    with torch.device("meta"):
        encoder = ViT((224, 224), patch, **size_of(name))
    count = sum(p.numel() for p in encoder.parameters())
    assert count == encoder_only
    assert (count + 1000 * (encoder.embed_dim + 1)) / 1e6 == pytest.approx(classifier, abs=0.1)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_named_sizes_build(name):
    with torch.device("meta"):
        encoder = vit.ViT((32, 32), 8, **size_of(name))
        assert encoder(torch.empty(2, 3, 32, 32)).shape == (2, 17, SIZES[name]["embed_dim"])


def test_images_of_other_channels_are_not_stretched_to_the_model_s():
    with pytest.raises(UserError, match="1 channels; the model takes 3"):
        ViT((8, 8), **TINY).normalize(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("std", [(0.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (-1.0, 1.0)])
def test_statistics_that_cannot_normalise_are_refused(std):
    with pytest.raises(UserError, match="finite numbers, and std above 0"):
        ViT((8, 8), 4, 2, embed_dim=16, depth=1, num_heads=2, mean=(0.1, 0.2), std=std)
    with pytest.raises(UserError, match="finite numbers, and std above 0"):
        ViT((8, 8), 4, 1, embed_dim=16, depth=1, num_heads=2, mean=(math.nan,), std=(1.0,))


@pytest.mark.parametrize("tokens, skip", [(17, 0), (17, 5), (40, 0), (40, 39)])
def test_the_gradient_of_plain_attention(tokens, skip):
    """In bf16 as near to float64 as autograd's, with rows below and above a vector's length; and
    exact in float64."""
    heads = torch.randn(3, 2, 4, tokens, 8).bfloat16()
    upstream = torch.randn(2, 4, tokens - skip, 8).bfloat16()

    def composed(heads, skip):
        q, k, v = heads
        return ((q[:, :, skip:] * 8**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v

    def of(function, dtype):
        x = heads.to(dtype, copy=True).requires_grad_()
        out = function(x, skip)
        out.backward(upstream.to(dtype))
        return torch.cat([out.detach().flatten(), x.grad.flatten()]).double()

    exact = of(composed, torch.float64)
    torch.testing.assert_close(of(PlainAttention.apply, torch.float64), exact)
    off = [(of(f, torch.bfloat16) - exact).norm() for f in (composed, PlainAttention.apply)]
    assert off[1] <= 1.1 * off[0] < 0.02 * exact.norm()


def test_attention_in_bf16_trains_as_in_float32():
    """Regression guard for the choice: plain products only where a gradient is wanted."""
    attention, x = shaken(Attention(32, 4)), torch.randn(3, 17, 32, requires_grad=True)
    found = []
    for enabled in (False, True):
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = attention(x, skip=2)
        assert ("PlainAttention" in named_nodes(out.grad_fn)) is enabled
        out.float().square().sum().backward()
        found.append(x.grad.clone())
    assert (found[1] - found[0]).norm() < 0.03 * found[0].norm()


def named_nodes(node):
    """Names of a graph's nodes, in one text."""
    seen, todo = set(), [node]
    while todo:
        one = todo.pop()
        if one is not None and one not in seen:
            seen.add(one)
            todo += [parent for parent, _ in one.next_functions]
    return " ".join(one.name() for one in seen)
