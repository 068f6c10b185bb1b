"""Encoders of timm behind the contract: timm's own numbers, stochastic depth, layers, sizes."""

import json
from typing import Any

import pytest
import timm
import torch

from torchmae.errors import UserError
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.encoders.timm import DropPath, TimmEncoder, branches, check_name
from torchmae.models.heads import Classifier, trainable
from torchmae.models.vit import ViT
from torchmae.train.optim import param_groups_layer_decay

# A ViT with a class token, registers as DINOv2 has them, registers alone, two class tokens; BEiT's
# relative positions; EVA's rotary ones with a norm in the head; DINOv3.
MODELS = {
    "vit_tiny_patch16_224": 32,
    "test_vit3": 32,
    "test_vit2": 32,
    "deit_tiny_distilled_patch16_224": 32,
    "vit_small_patch14_reg4_dinov2": 28,
    "beit_base_patch16_224": 32,
    "eva02_tiny_patch14_224": 28,
    "vit_small_patch16_dinov3": 32,
}


def encoder_of(name: str, size: int, **options: Any) -> TimmEncoder:
    torch.manual_seed(0)
    made = TimmEncoder(name, (size, size), **options)
    with torch.no_grad():
        for parameter in made.parameters():  # zeros at the start would hide what is wrong
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return made.eval()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_timm_s_bit_for_bit(name: str) -> None:
    size = MODELS[name]
    ours = encoder_of(name, size)
    theirs = timm.create_model(name, num_classes=0, img_size=size).eval()
    theirs.load_state_dict(ours.model.state_dict(), strict=False)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    config = timm.data.resolve_data_config(model=theirs)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = (pixels.float() / 255 - mean) / std
    assert torch.equal(ours.normalize(pixels), images)
    features = theirs.forward_features(images)
    tokens = ours(images)
    assert torch.equal(tokens, features[:, ours.left_out :])
    assert isinstance(ours, Backbone)
    assert tokens.shape == (2, ours.num_prefix_tokens + 4, ours.embed_dim)
    assert ours.num_prefix_tokens == (
        theirs.num_prefix_tokens if theirs.cls_token is not None else 0
    )
    depth = len(ours.layers())
    assert torch.equal(ours(images, layer=depth), tokens)
    maps = ours.forward_intermediates(images, [-1, 0, -1])
    found = theirs.forward_intermediates(images, indices=[0, depth - 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, (found[1], found[0], found[1])))

    described = json.loads(json.dumps(ours.config()))
    again = build_encoder(described)
    again.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(again.eval()(images), tokens)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "test_vit2"])
@torch.no_grad()
def test_another_size_is_that_of_timm(name: str) -> None:
    ours = encoder_of(name, 32)
    theirs = timm.create_model(name, num_classes=0, img_size=32).eval()
    theirs.load_state_dict(ours.model.state_dict(), strict=False)
    theirs.set_input_size(img_size=(48, 64))
    ours.resize((48, 64))
    images = torch.randn(2, 3, 48, 64)
    assert ours.grid == (3, 4)
    assert torch.equal(ours(images), theirs.forward_features(images)[:, ours.left_out :])
    again = build_encoder(ours.config())
    again.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(again.eval()(images), ours(images))
    with pytest.raises(UserError, match="not divisible by patch size 16"):
        ours.resize((40, 64))


@pytest.mark.parametrize(
    "name", ["test_vit3", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224"]
)
@torch.no_grad()
def test_the_attention_of_the_class_token_is_what_timm_multiplies_values_with(name: str) -> None:
    size = MODELS[name]
    ours = encoder_of(name, size)
    images = torch.randn(2, 3, size, size)
    fused = ours.model.blocks[-1].attn.fused_attn
    if not ours.num_prefix_tokens:
        with pytest.raises(UserError, match="no class token"):
            ours.class_attention(images, 0)
        return
    found = ours.class_attention(images, len(ours.layers()) - 1)
    attn = ours.model.blocks[-1].attn
    assert found.shape == (2, attn.num_heads, 2, 2) and attn.fused_attn == fused
    assert bool((found > 0).all()) and bool((found.sum((1, 2, 3)) < attn.num_heads).all())
    weights = []
    hook = attn.attn_drop.register_forward_hook(lambda _, inputs, out: weights.append(out))
    attn.fused_attn = False
    features = ours.model.forward_features(images)
    hook.remove()
    assert torch.equal(weights[0][:, :, 0, -4:].unflatten(2, (2, 2)), found)
    attn.fused_attn = fused
    torch.testing.assert_close(ours.model.forward_features(images), features, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_and_tokens_of_a_plain_vit_are_ours() -> None:
    """The same weights in both, images of another size."""
    theirs = encoder_of("test_vit", 32)
    model = theirs.model
    ours = ViT(
        (32, 32),
        16,
        embed_dim=theirs.embed_dim,
        depth=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads,
        mlp_ratio=model.blocks[0].mlp.fc1.out_features / theirs.embed_dim,
    ).eval()
    state = {n: w for n, w in model.state_dict().items() if n in ours.state_dict()}
    ours.load_state_dict(state)
    images = torch.randn(1, 3, 48, 32)
    for block in range(len(model.blocks)):
        torch.testing.assert_close(
            ours.class_attention(images, block),
            theirs.class_attention(images, block),
            rtol=1e-3,
            atol=1e-5,
        )
    for norm in (False, True):
        for one, other in zip(
            ours.forward_intermediates(images, [0, -1], norm=norm),
            theirs.forward_intermediates(images, [0, -1], norm=norm),
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_other_channels_see_equal_channels_alike() -> None:
    ours = encoder_of("test_vit", 32)
    gray = torch.randn(2, 1, 32, 32)
    before = ours(gray.expand(-1, 3, -1, -1))
    ours.adapt(1, (0.3,), (0.2,))
    torch.testing.assert_close(ours(gray), before, rtol=1e-5, atol=1e-5)
    assert (ours.channels, ours.mean, ours.std) == (1, (0.3,), (0.2,))
    assert build_encoder(ours.config()).channels == 1


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_drop_path_is_a_function_of_the_draws(name: str) -> None:
    """By hand: with draws of 0 every branch but the first block's is dropped, with 1 none is."""
    size = MODELS.get(name, 32)
    ours = encoder_of(name, size)
    ours.set_drop_path(0.5)
    depth = len(ours.layers())
    rates = [branch.rate for block in ours.layers() for branch in branches(block)]
    assert rates == pytest.approx([0.5 * i / (depth - 1) for i in range(depth) for _ in range(2)])
    images = torch.randn(2, 3, size, size)
    draws = torch.stack([torch.zeros(depth, 2), torch.ones(depth, 2)])
    plain = ours(images, draws=draws)  # not while evaluating
    assert torch.equal(plain, ours(images))
    ours.train()
    dropped = ours(images, draws=draws)
    assert torch.equal(dropped, ours(images, draws=draws))
    first = ours.model.forward_intermediates(images, indices=[0], norm=True, output_fmt="NLC")[1][0]
    prefix = ours.num_prefix_tokens
    torch.testing.assert_close(dropped[0, prefix:], first[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(dropped[1], plain[1], atol=1e-3)  # kept branches are scaled up
    assert torch.equal(ours(images), plain)
    ours.set_grad_checkpointing(True)
    again = ours(images, draws=draws)
    assert torch.equal(again, dropped)
    again.square().mean().backward()
    # A frozen block drops nothing.
    for block in ours.layers():
        block.eval()
    assert torch.equal(ours(images, draws=draws), plain)


def test_blocks_without_two_branches_refuse_drop_path() -> None:
    ours = encoder_of("test_vit", 32)
    block = ours.layers()[2]
    block.drop_path2 = torch.nn.Identity()  # as the parallel blocks of timm, which have one
    assert len(branches(block)) == 1 and isinstance(block.drop_path1, DropPath)
    ours.set_drop_path(0.0)
    with pytest.raises(UserError, match="no two branches to drop: --drop-path 0"):
        ours.set_drop_path(0.1)


def test_layer_decay_and_parts_know_what_is_before_and_after_the_blocks() -> None:
    encoder = encoder_of("deit_tiny_distilled_patch16_224", 32)
    model = Classifier(encoder, "abc", pool="cls")
    names = {id(p): n for n, p in model.named_parameters()}
    scale = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, encoder.layers(), 0.05, 0.5)
        for p in group["params"]
    }
    for token in ("cls_token", "dist_token", "pos_embed"):
        assert scale[f"encoder.model.{token}"] == (0.5**13, 0.0)
    assert scale["encoder.model.patch_embed.proj.weight"] == (0.5**13, 0.05)
    assert scale["encoder.model.blocks.0.attn.qkv.weight"] == (0.5**12, 0.05)
    assert scale["encoder.model.norm.weight"] == scale["head.bias"] == (1.0, 0.0)
    last = set(trainable(model, "1"))
    assert {n for n in last if ".blocks." not in n} == {
        *("encoder.model.norm.weight", "encoder.model.norm.bias", "head.weight", "head.bias")
    }
    assert {n.split(".")[3] for n in last if ".blocks." in n} == {"11"}
    with pytest.raises(UserError, match="--train 0.5: for torchmae's own blocks"):
        trainable(model, "0.5")


def test_a_norm_is_removed_and_restored_and_described() -> None:
    encoder = encoder_of("test_vit", 32)
    assert encoder.config()["norm"]
    Classifier(encoder, "ab", pool="mean")
    assert not encoder.config()["norm"]
    assert "model.norm.weight" not in build_encoder(encoder.config()).state_dict()
    assert encoder.restore_norm() and encoder.config()["norm"] and not encoder.restore_norm()
    gap = encoder_of("test_vit2", 32)  # timm has the norm in the head
    assert not gap.config()["norm"]
    with pytest.raises(UserError, match="--pool cls: this encoder has no class token"):
        Classifier(gap, "ab", pool="cls")


def test_mistakes() -> None:
    for name, message in (
        (
            "vit_tiny_patch16_225",
            "no model 'vit_tiny_patch16_225'. Did you mean vit_tiny_patch",
        ),
        ("resnet50", "resnet50 is no plain transformer.*possible: vit_"),
        ("swin_tiny_patch4_window7_224", "no plain transformer"),
        ("vit_relpos_small_patch16_224", "no plain transformer"),
    ):
        with pytest.raises(UserError, match=message):
            check_name(name)
    with pytest.raises(UserError, match="not divisible|could not be made"):
        TimmEncoder("test_vit", (33, 32))
    with pytest.raises(UserError, match="takes images of 3 x 32 x 32"):
        encoder_of("test_vit", 32)(torch.zeros(1, 3, 16, 32))
    with pytest.raises(UserError, match="cannot skip patches"):
        encoder_of("test_vit", 32)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1).long())
    with pytest.raises(UserError, match="has not depth 99"):
        build_encoder({**encoder_of("test_vit", 32).config(), "depth": 99})
