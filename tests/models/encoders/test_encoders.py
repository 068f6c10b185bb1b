"""Encoders by name; feature maps and register tokens equal to timm's; one of a user's own through
the whole MAE."""

import json
import math

import pytest
import torch
from helpers.mae import DECODER, TINY, some, tiny
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from torchmae.errors import UserError
from torchmae.models import masking
from torchmae.models.encoders import ENCODERS, Backbone, build_encoder
from torchmae.models.heads import Classifier, trainable
from torchmae.models.mae import MAE
from torchmae.models.masking import MASKINGS, Mask
from torchmae.models.patches import normalize, patchify
from torchmae.models.targets import TARGETS
from torchmae.models.targets.pixels import Pixels
from torchmae.models.vit import ViT


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def vit(size=(8, 24), **options):
    encoder = ViT(size, **(TINY | {"depth": 3} | options)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def timm_model(encoder, **options):
    return VisionTransformer(
        img_size=encoder.image_size,
        patch_size=encoder.patch,
        embed_dim=encoder.embed_dim,
        depth=encoder.depth,
        num_heads=encoder.num_heads,
        num_classes=0,
        global_pool="",
        reg_tokens=encoder.registers,
        **options,
    ).eval()


# ---------------------------------------------------------------- timm


@pytest.mark.parametrize("taps", [[0], [2], [0, 1, 2], [-1], [0, -2]])
@pytest.mark.parametrize("registers", [0, 4])
def test_feature_maps_equal_timm_s(taps, registers):
    ours = vit(registers=registers)
    theirs = timm_model(ours)
    state = ours.state_dict()
    if registers:  # timm's table has a row for each register
        table = state["pos_embed"]
        rows = torch.zeros(1, registers, ours.embed_dim)
        state["pos_embed"] = torch.cat([table[:, :1], rows, table[:, 1:]], dim=1)
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 8, 24)
    found = ours.forward_intermediates(images, taps)
    depths = [tap % 3 for tap in taps]
    expected = theirs.forward_intermediates(images, indices=depths, intermediates_only=True)
    assert len(found) == len(expected) == len(taps)
    for mine, other in zip(found, expected):
        assert mine.shape == (2, 32, 2, 6)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_feature_maps_with_the_final_norm_are_the_tokens_of_forward():
    ours = vit(registers=2)
    images = torch.randn(2, 3, 8, 24)
    for tap, found in zip((0, 2), ours.forward_intermediates(images, (0, 2), norm=True)):
        expected = ours(images, layer=tap + 1)[:, 3:].transpose(1, 2).unflatten(2, (2, 6))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 2])
def test_all_layers_in_one_pass_are_those_of_single_layers(registers):
    model = vit(registers=registers).eval()
    images = torch.randn(2, 3, 8, 24)
    found = list(model.forward_layers(images))
    assert len(found) == 3 and torch.equal(found[-1], model(images))
    for i, tokens in enumerate(found):
        assert torch.equal(tokens, model(images, layer=i + 1))
    model.remove_norm()
    assert torch.equal(list(model.forward_layers(images))[-1], model(images))


@pytest.mark.parametrize("taps", [[3], [-4], [0, 5]])
def test_taps_that_do_not_exist(taps):
    with pytest.raises(UserError, match="blocks are numbered 0 to 2"):
        vit().forward_intermediates(torch.zeros(1, 3, 8, 24), taps)


@pytest.mark.parametrize("registers", [1, 4])
def test_registers_equal_timm_s(registers):
    ours = vit(registers=registers)
    assert ours.num_prefix_tokens == 1 + registers and ours.config()["registers"] == registers
    theirs = timm_model(ours, no_embed_class=True)
    state = ours.state_dict()
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 8, 24)
    tokens = ours(images)
    assert tokens.shape == (2, 1 + registers + 12, 32)
    torch.testing.assert_close(tokens, theirs.forward_features(images), rtol=1e-5, atol=1e-5)
    keep = torch.stack([torch.randperm(12)[:5] for _ in range(2)])
    assert ours(images, keep).shape == (2, 1 + registers + 5, 32)
    everything = torch.arange(12).expand(2, -1)
    assert torch.equal(ours(images, everything), tokens)


@pytest.mark.parametrize("patch", [(4, 8), (2, 4)])
def test_rectangular_patches_equal_timm_s(patch):
    ours = vit((8, 24), patch_size=patch)
    assert ours.patch == patch and ours.grid == (8 // patch[0], 24 // patch[1])
    theirs = timm_model(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 8, 24)
    torch.testing.assert_close(ours(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5)
    again = build_encoder(json.loads(json.dumps(ours.config())))
    assert again.config() == ours.config() and again.patch == patch
    mae = MAE(ours, DECODER)
    output = mae(
        images, masking.random(torch.randn(2, math.prod(ours.grid)).argsort(1), ours.grid, 0.5)
    )
    assert output.prediction.shape[2] == patch[0] * patch[1] * 3 and output.loss.isfinite()


# ---------------------------------------------------------------- registers in our own parts


def test_registers_are_not_seen_by_the_decoder_and_train():
    mae = tiny(encoder={"registers": 3})
    images, mask = some(mae)
    latent = mae.encode(images, mask)
    tokens = mae.encoder(images, mask.keep)
    assert torch.equal(latent, torch.cat([tokens[:, :1], tokens[:, 4:]], dim=1))
    mae(images, mask).loss.backward()
    assert mae.encoder.reg_token.grad.abs().amax(-1).min() > 0
    everywhere = tiny(encoder={"registers": 3}, encode_all=True)
    assert everywhere.encode(images, mask).shape[1] == 1 + 16
    plain = tiny()
    assert mae.state_dict().keys() - plain.state_dict().keys() == {"encoder.reg_token"}


def test_registers_are_no_patches_for_a_classifier():
    encoder = vit(registers=4)
    model = Classifier(encoder, "abc").eval()
    images = torch.randn(2, 3, 8, 24)
    pooled = model.fc_norm(encoder(images)[:, 5:].mean(1))
    assert torch.equal(model.features(images), pooled)


def test_few_registers_start_as_the_class_token_does():
    token = ViT((8, 8), **(TINY | {"embed_dim": 512, "registers": 8})).reg_token
    assert token.shape == (1, 8, 512) and token.std().item() == pytest.approx(0.02, rel=0.1)


# ---------------------------------------------------------------- names


def test_kinds():
    assert isinstance(vit(), Backbone) and vit().config()["kind"] == "vit"
    with pytest.raises(UserError, match=r"encoder 'vitt'. Did you mean vit\? One of: vit, timm"):
        build_encoder({**vit().config(), "kind": "vitt"})
    older = {name: value for name, value in vit().config().items() if name != "kind"}
    assert isinstance(build_encoder(older), ViT)


class Mixer(nn.Module):
    """The smallest encoder: no class token, one layer that adds the mean of the visible tokens to
    each."""

    num_prefix_tokens = 0
    mean = std = (0.5,)
    scaling = None

    def __init__(self, image_size, patch_size, channels, embed_dim):
        super().__init__()
        self.image_size, self.patch = image_size, (patch_size, patch_size)
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.channels, self.embed_dim, self.patch_size = channels, embed_dim, patch_size
        self.embed = nn.Linear(patch_size**2 * channels, embed_dim)
        self.block = nn.Linear(embed_dim, embed_dim)

    def config(self):
        names = ("image_size", "patch_size", "channels", "embed_dim")
        return {"kind": "mixer", **{name: getattr(self, name) for name in names}}

    def layers(self):
        return [self.block]

    def forward(self, images, keep=None, layer=None, draws=None):
        x = self.embed(patchify(images, self.patch, keep))
        return x + self.block(x.mean(1, keepdim=True))

    def forward_layers(self, images):
        yield self(images)

    def forward_intermediates(self, images, taps):
        return [self(images).transpose(1, 2).unflatten(2, self.grid) for _ in taps]

    def normalize(self, images):
        return normalize(images, torch.full((2, self.channels, 1, 1), 0.5))

    def denormalize(self, images):
        raise NotImplementedError

    def set_grad_checkpointing(self, on): ...
    def set_drop_path(self, rate): ...
    def resize(self, image_size): ...
    def adapt(self, channels, mean, std): ...
    def remove_norm(self): ...
    def restore_norm(self): ...


class Brightness(Pixels):
    """The mean of a patch."""

    def __init__(self, patch, channels):
        super().__init__(patch, channels)
        self.width = 1

    def forward(self, images, ids):
        return super().forward(images, ids).mean(-1, keepdim=True)


def left(noise, grid, ratio):
    column = torch.arange(noise.shape[1]) % grid[1]
    return masking.mask_from_bool((column >= grid[1] // 2).expand(len(noise), -1))


def test_parts_of_a_user_s_own(monkeypatch):
    """Names are looked up when a model is built: what is added later works."""
    monkeypatch.setitem(ENCODERS, "mixer", Mixer)
    monkeypatch.setitem(TARGETS, "brightness", Brightness)
    monkeypatch.setitem(MASKINGS, "left", left)
    mae = MAE(Mixer((8, 16), 4, 1, 32), DECODER, target="brightness")
    assert isinstance(mae.encoder, Backbone)
    images = mae.encoder.normalize(torch.randint(0, 256, (3, 1, 8, 16), dtype=torch.uint8))
    mask = masking.masking("left")(torch.arange(8).expand(3, -1), mae.encoder.grid, 0.5)
    assert isinstance(mask, Mask)
    output = mae(images, mask)
    output.loss.backward()
    assert all(p.grad is not None for p in mae.parameters() if p.requires_grad)
    again = MAE.build(json.loads(json.dumps(mae.config())))
    again.load_state_dict(mae.state_dict(), strict=True)
    assert isinstance(again.encoder, Mixer) and torch.equal(again(images, mask).loss, output.loss)
    with pytest.raises(UserError, match="mask tokens in the encoder: for ViT, not Mixer"):
        MAE(Mixer((8, 16), 4, 1, 32), encode_all=True)
    model = Classifier(again.encoder, "ab")
    assert model(images).shape == (3, 2)
    names = trainable(model, "1")
    assert {"encoder.block.weight", "head.bias"} <= set(names) and "encoder.embed.bias" not in names
    with pytest.raises(UserError, match="--train 0.5: for torchmae's own blocks.*Linear"):
        trainable(model, "0.5")
