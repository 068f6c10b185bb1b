"""Decoders: what the step does not compute changes nothing, and the linear one is the formula of
its docstring.

The plain computation is `Decoder.forward`, of which `Decoder.hidden` returns a part for less; and
`gather_tokens(patchify(images), ids)`.
"""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.mae import DECODER, TINY, VALUE_TARGETS, gradients, noise, some, tiny
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.flop_counter import FlopCounterMode

from torchmae.errors import UserError
from torchmae.models.decoders import DECODERS, Decoder, DecoderConfig, decoder_config
from torchmae.models.mae import LOSSES, MAE
from torchmae.models.masking import MaskGenerator, PartMask
from torchmae.models.patches import gather_tokens, patchify, scatter_tokens, unpatchify
from torchmae.models.vit import ViT


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def deep(depth):
    return replace(DECODER, depth=depth)


def plain(mae):
    """A copy with the same weights that computes everything for every token."""
    mae = copy.deepcopy(mae)
    mae.decoder.hidden = lambda latent, mask: mae.decoder(latent, mask)[:, mask.keep.shape[1] :]
    return mae


def total(output):
    """The loss with the statistics head's."""
    return output.loss if output.statistics_loss is None else output.loss + output.statistics_loss


def trained(mae, images, mask):
    """Output and gradients of one step."""
    mae.zero_grad()
    output = mae(images, mask)
    total(output).backward()
    return output, {name: gradient.clone() for name, gradient in gradients(mae).items()}


def assert_same(one, other, tolerance):
    """Outputs and gradients, each up to `tolerance` of its own largest value."""
    (output, mine), (expected, theirs) = one, other
    assert mine.keys() == theirs.keys()
    pairs = list(zip(output._fields, output, expected)) + [
        (name, mine[name], theirs[name]) for name in theirs
    ]
    for name, a, b in pairs:
        if b is None:
            assert a is None
        elif name.endswith(
            "qkv.bias"
        ):  # softmax does not see the keys' bias: its gradient is rounding
            for i in (0, 2):
                assert (a.chunk(3)[i] - b.chunk(3)[i]).abs().max() <= tolerance * b.abs().max(), (
                    name
                )
        else:
            assert (a - b).abs().max() <= tolerance * b.abs().max(), name


# ---------------------------------------------------------------- decoder


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("encode_all", [False, True])
@pytest.mark.parametrize("target", VALUE_TARGETS)
def test_hidden_features_only(dtype, tolerance, depth, encode_all, target):
    mae = tiny((8, 24), decoder=deep(depth), target=target, encode_all=encode_all).to(dtype)
    images, mask = some(mae, batch=5, ratio=0.6)
    mine = trained(mae, images, mask)
    assert all(name in mine[1] for name, p in mae.named_parameters() if p.requires_grad)
    assert_same(mine, trained(plain(mae), images, mask), tolerance)


def test_hidden_features_only_in_bf16():
    mae = tiny(decoder=deep(3))
    images, mask = some(mae)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = trained(mae, images, mask), trained(plain(mae), images, mask)
    assert_same(mine, theirs, 0.05)
    torch.testing.assert_close(mine[0].loss, theirs[0].loss, rtol=5e-3, atol=0)


@pytest.mark.parametrize("depth", [1, 3])
def test_how_much_is_left_out(depth):
    """In multiplications of the linear maps of the decoder: exactly what is not wanted."""
    mae = tiny((16, 16), decoder=deep(depth))
    images, mask = some(mae, batch=7)
    latent = mae.encode(images, mask)

    def count(function):
        with FlopCounterMode(display=False) as counter:
            function(latent, mask)
        return counter.get_flop_counts()["Global"][torch.ops.aten.addmm] // 2

    last = 7 * (1 + mask.keep.shape[1]) * (1 + 4 + 4) * 16 * 16
    assert count(mae.decoder) - count(mae.decoder.hidden) == last


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("size, channels, patch", [((8, 24), 3, 4), ((6, 4), 1, 2), ((9, 6), 5, 3)])
def test_only_the_patches_asked_for_are_cut(size, channels, patch):
    images = torch.randn(3, channels, *size, requires_grad=True)
    count = size[0] * size[1] // patch**2
    ids = torch.stack([torch.randperm(count)[: count // 2 + 1] for _ in range(3)])
    cut, expected = (
        patchify(images, (patch, patch), ids),
        gather_tokens(patchify(images, (patch, patch)), ids),
    )
    assert torch.equal(cut, expected)
    weight = torch.randn_like(cut)
    pair = [torch.autograd.grad((patches * weight).sum(), images)[0] for patches in (cut, expected)]
    assert torch.equal(*pair)


# ---------------------------------------------------------------- checkpointing


def saved_bytes(function):
    """Bytes that autograd keeps for the backward pass of `function()`."""
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = function()
    return sum(sizes.values()), value


@pytest.mark.parametrize("encode_all", [False, True])
@pytest.mark.parametrize("loss_on", sorted(LOSSES))
def test_checkpointing_gives_the_same_bits(loss_on, encode_all):
    mae = tiny(loss_on=loss_on, encode_all=encode_all)
    images, mask = some(mae)
    config, names = mae.config(), mae.state_dict().keys()
    assert_same(trained(mae, images, mask), trained(mae, images, mask), 0)
    expected = trained(mae, images, mask)
    before, _ = saved_bytes(lambda: mae(images, mask))
    mae.set_grad_checkpointing(True)
    assert_same(trained(mae, images, mask), expected, 0)
    after, _ = saved_bytes(lambda: mae(images, mask))
    assert after < before / 2
    assert mae.config() == config and mae.state_dict().keys() == names, (
        "a matter of the run, not of the model"
    )
    with torch.autocast("cpu", torch.bfloat16):
        coarse = trained(mae, images, mask)
        mae.set_grad_checkpointing(False)
        assert_same(coarse, trained(mae, images, mask), 0)


def test_checkpointing_with_drop_path():
    encoder = ViT((8, 8), drop_path=0.5, **TINY)
    images, weight, found = torch.randn(8, 3, 8, 8), torch.randn(8, 5, 32), []
    draws = torch.rand(8, encoder.depth, 2)
    for on in (False, True):
        encoder.set_grad_checkpointing(on)
        encoder.zero_grad()
        (encoder(images, draws=draws) * weight).sum().backward()
        found.append({name: gradient.clone() for name, gradient in gradients(encoder).items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---------------------------------------------------------------- compiling and sharding


COMPILED = """
import torch
from torchmae.models.decoders import decoder_config
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask
from torchmae.models.vit import ViT

for kind, target, encode_all, checkpointed in [
    ("transformer", "norm-pixels", False, False),
    ("transformer", "norm-pixels", False, True),
    ("transformer", "norm-pixels", True, False),
    ("linear", "pca", False, False),
]:
    torch.manual_seed(0)
    encoder = ViT((16, 16), 4, embed_dim=32, depth=1, num_heads=4, registers=2)
    mae = MAE(encoder, decoder_config(32, kind, 16), target, encode_all=encode_all)
    if mae.target.needs_fit:
        mae.target.fit(torch.randn(200, 48))
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    images, mask, found = torch.randn(3, 3, 16, 16), Mask(order[:, :4], order[:, 4:]), []
    for compiled in (False, True):
        if compiled:
            mae.set_grad_checkpointing(checkpointed)
            mae.compile(fullgraph=True, backend="aot_eager")
        mae.zero_grad()
        output = mae(images, mask)
        loss = output.loss
        if output.statistics_loss is not None:
            loss = loss + output.statistics_loss
        loss.backward()
        grads = {name: p.grad for name, p in mae.named_parameters() if p.grad is not None}
        found.append({name: grad.clone() for name, grad in grads.items()})
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-4, atol=1e-6)
    torch.compiler.reset()
print("same")
"""


def test_compiles_as_one_graph():
    """In a process of its own: the checks of shapes that are on in the tests cannot be compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_shards(depth, checkpointed):
    """FSDP2 brings a block's weights together in the block's own call: every use of them must go
    through it."""
    mae = tiny(decoder=deep(depth))
    images, mask = some(mae)
    expected = trained(plain(mae), images, mask)
    mae.set_grad_checkpointing(checkpointed)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        for block in [*mae.encoder.layers(), *mae.decoder.blocks]:
            fully_shard(block)
        fully_shard(mae)
        output, found = trained(mae, images, mask)
        assert_same(
            (output, {name: value.full_tensor() for name, value in found.items()}), expected, 2e-5
        )
    finally:
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- mask tokens in the encoder


def test_encode_all_equals_replacing_what_is_hidden():
    """All patches in their own order, the hidden ones replaced after the embedding; nothing sorted,
    nothing left out."""
    mae = tiny(encode_all=True).double()
    images, mask = some(mae)
    encoder, decoder = mae.encoder, mae.decoder
    tokens = encoder.patch_embed(patchify(images, (4, 4)))
    tokens = (
        scatter_tokens(tokens, mask.hide, mae.mask_token.expand(3, 12, -1))
        + encoder.pos_embed[:, 1:]
    )
    x = torch.cat([(encoder.cls_token + encoder.pos_embed[:, :1]).expand(3, -1, -1), tokens], dim=1)
    x = decoder.embed(encoder.norm(nn.Sequential(*encoder.blocks)(x))) + decoder.pos_embed
    x = decoder.pred(decoder.norm(nn.Sequential(*decoder.blocks)(x)))[:, 1:]
    torch.testing.assert_close(
        mae(images, mask).prediction, gather_tokens(x, mask.hide), rtol=1e-11, atol=1e-11
    )


def test_encode_all_does_not_see_hidden_pixels():
    mae = tiny(encode_all=True)
    images, mask = some(mae)
    poisoned = unpatchify(
        scatter_tokens(patchify(images, (4, 4)), mask.hide, torch.full((3, 12, 48), torch.nan)),
        (4, 4),
        (4, 4),
    )
    output = mae(poisoned, mask)
    assert torch.equal(output.prediction, mae(images, mask).prediction) and output.loss.isnan()


def test_encode_all_trains():
    decoder = DecoderConfig("transformer", 64, 2, 4)
    mae = MAE(ViT((16, 16), **TINY), decoder, encode_all=True)
    mask = some(mae)[1]
    images = nn.functional.interpolate(torch.randn(3, 3, 4, 4), size=(16, 16), mode="bicubic")
    optimizer = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], 2e-3)
    before, start = mae.mask_token.detach().clone(), mae(images, mask).loss.item()
    for _ in range(90):
        optimizer.zero_grad()
        total(mae(images, mask)).backward()
        assert mae.mask_token.grad.abs().max() > 0
        optimizer.step()
    assert mae(images, mask).loss < 0.5 < start and not torch.equal(mae.mask_token, before)


def test_encode_all_is_built_again():
    mae = tiny(encode_all=True)
    config = json.loads(json.dumps(mae.config()))
    again = MAE.build(config)
    assert again.mask_token.std().item() == pytest.approx(0.02, rel=0.5)
    again.load_state_dict(mae.state_dict(), strict=True)
    images, mask = some(mae)
    assert config["encode_all"] is True and torch.equal(
        again(images, mask).loss, mae(images, mask).loss
    )
    usual = MAE(ViT((16, 16), **TINY), DECODER)
    assert mae.state_dict().keys() ^ usual.state_dict().keys() == {
        "mask_token",
        "decoder.mask_token",
    }
    assert mae.encoder.state_dict().keys() == usual.encoder.state_dict().keys(), (
        "the encoder is a plain ViT"
    )
    older = usual.config()
    assert older.pop("encode_all") is False
    MAE.build(older).load_state_dict(usual.state_dict(), strict=True)


# ---------------------------------------------------------------- the linear decoder, and one of a
# user's own


def linear(**arguments):
    return tiny(decoder=DecoderConfig("linear", 16, 0, 0), **arguments).double()


def test_the_linear_decoder_by_hand():
    mae = linear(loss_on="all", target="pixels")
    images, mask = some(mae)
    latent, decoder = mae.encoder(images, mask.keep), mae.decoder
    for b in range(len(images)):
        mean = latent[b, 1:].mean(0)
        for m, place in enumerate(mask.hide[b].tolist()):
            feature = decoder.embed.weight @ mean + decoder.embed.bias
            feature = feature + decoder.pos_embed[0, 1 + place]
            expected = decoder.pred.weight @ feature + decoder.pred.bias
            torch.testing.assert_close(mae(images, mask).prediction[b, m], expected)
    seen = decoder(latent, mask)[:, : mask.keep.shape[1]]
    own = decoder.embed(latent[:, 1:]) + gather_tokens(decoder.pos_embed[:, 1:], mask.keep)
    torch.testing.assert_close(seen, own)


def test_the_linear_decoder_with_mask_tokens_in_the_encoder():
    mae = linear(encode_all=True)
    images, mask = some(mae)
    hidden = mae.encode(images, mask)[:, 1 + mask.keep.shape[1] :]
    places = gather_tokens(mae.decoder.pos_embed[:, 1:], mask.hide)
    expected = mae.decoder.pred(mae.decoder.embed(hidden) + places)
    torch.testing.assert_close(mae(images, mask).prediction, expected)


@pytest.mark.parametrize("target", VALUE_TARGETS)
@pytest.mark.parametrize("loss_on", sorted(LOSSES))
def test_the_linear_decoder_trains_and_is_built_again(loss_on, target):
    mae = linear(loss_on=loss_on, target=target)
    images, mask = some(mae)
    total(mae(images, mask)).backward()
    assert all(p.grad is not None for p in mae.parameters() if p.requires_grad)
    config = json.loads(json.dumps(mae.config()))
    assert config["decoder"] == {"kind": "linear", "dim": 16, "depth": 0, "heads": 0}
    again = MAE.build(config).double()
    again.load_state_dict(mae.state_dict(), strict=True)
    assert torch.equal(again(images, mask).loss, mae(images, mask).loss)


def test_default_decoders_of_each_kind():
    assert decoder_config(768, "linear") == DecoderConfig("linear", 512, 0, 0)
    assert decoder_config(768, dim=96) == DecoderConfig("transformer", 96, 8, 3)
    for sizes in (dict(depth=2), dict(heads=4)):
        with pytest.raises(UserError, match="the linear decoder has no blocks: leave its depth"):
            decoder_config(768, "linear", **sizes)
    with pytest.raises(UserError, match=r"unknown decoder 'liner'.*Did you mean linear\?"):
        decoder_config(768, "liner")
    with pytest.raises(UserError, match=r"unknown decoder 'mine'"):
        MAE(ViT((16, 16), **TINY), DecoderConfig("mine", 8, 1, 1))


class ClassTokenOnly(Decoder):
    """Predicts every patch from the class token."""

    def __init__(self, config, encoder, width, mask_token):
        super().__init__(config, encoder, width, mask_token)
        self.blocks = nn.ModuleList()
        self.pred = nn.Linear(encoder.embed_dim, width)

    def forward(self, latent, mask):  # type: ignore[override]  # of one shape only
        return latent[:, :1].expand(-1, mask.keep.shape[1] + mask.hide.shape[1], -1)


def test_a_decoder_of_a_user_s_own(monkeypatch):
    monkeypatch.setitem(DECODERS, "mine", ClassTokenOnly)
    mae = tiny(decoder=DecoderConfig("mine", 32, 1, 1))
    images, mask = some(mae)
    total(mae(images, mask)).backward()
    again = MAE.build(json.loads(json.dumps(mae.config())))
    again.load_state_dict(mae.state_dict(), strict=True)
    prediction = again(images, mask).prediction
    assert torch.equal(prediction, mae(images, mask).prediction)
    assert torch.equal(prediction[:, 0], prediction[:, 1])


# ---------------------------------------------------------------- cross attention


CROSS = DecoderConfig("cross", 16, 2, 2)


def attended(block, x, seen):
    """A block of the cross decoder by torch's own attention, with its weights."""
    dim = x.shape[2]
    attention = nn.MultiheadAttention(dim, block.num_heads, batch_first=True).to(x)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([block.query.weight, block.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([block.query.bias, block.key_value.bias]))
        attention.out_proj.load_state_dict(block.proj.state_dict())
    context = block.norm_seen(seen)
    x = x + attention(block.norm1(x), context, context, need_weights=False)[0]
    return x + block.mlp(block.norm2(x))


def test_the_cross_decoder_is_its_formula():
    mae = tiny((8, 24), decoder=CROSS).double()
    images, mask = some(mae, batch=5, ratio=0.6)
    latent, decoder = mae.encode(images, mask), mae.decoder
    places = decoder.pos_embed[0]
    seen = decoder.embed(latent)
    seen[:, 0] += places[0]
    for i, keep in enumerate(mask.keep.tolist()):
        for j, place in enumerate(keep):
            seen[i, 1 + j] += places[1 + place]
    x = torch.stack([decoder.mask_token[0, 0] + places[1 + ids] for ids in mask.hide])
    for block in decoder.blocks:
        x = attended(block, x, seen)
    torch.testing.assert_close(decoder.hidden(latent, mask), decoder.norm(x))
    whole = decoder(latent, mask)
    torch.testing.assert_close(whole[:, mask.keep.shape[1] :], decoder.norm(x))
    assert whole.shape[1] == 12


def test_gradients_of_the_cross_decoder():
    mae = tiny((8, 8), decoder=CROSS).double()
    images, mask = some(mae, batch=2, ratio=0.5)
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mae(x, mask).prediction, (images,))
    assert_same(
        trained(mae, images.detach(), mask), trained(plain(mae), images.detach(), mask), 1e-12
    )
    mae.set_grad_checkpointing(True)
    kept = trained(mae.train(), images.detach(), mask)
    mae.set_grad_checkpointing(False)
    assert_same(trained(mae, images.detach(), mask), kept, 1e-12)


def test_a_cross_prediction_does_not_depend_on_what_else_is_predicted():
    """And that of the transformer does."""
    for decoder, same in ((CROSS, True), (DECODER, False)):
        mae = tiny((16, 16), decoder=decoder)
        images, mask = some(mae)
        some_of = PartMask(mask.keep, mask.hide[:, 2:7])
        part, whole = mae(images, some_of).prediction, mae(images, mask).prediction[:, 2:7]
        assert torch.allclose(part, whole, atol=1e-5) == same


def test_the_loss_on_a_part_is_that_of_its_patches():
    mae = tiny((16, 16), decoder=CROSS)
    images, mask = some(mae)
    parts = [PartMask(mask.keep, mask.hide[:, i : i + 3]) for i in range(0, 12, 3)]
    losses = torch.stack([mae(images, part).loss for part in parts])
    torch.testing.assert_close(losses.mean(), mae(images, mask).loss)
    on_all = tiny((16, 16), decoder=CROSS, loss_on="all")
    with pytest.raises(UserError, match="encoder, decoder and mask disagree"):
        on_all(images, parts[0])
    with pytest.raises(UserError, match="encoder, decoder and mask disagree"):
        mae(images, mask._replace(hide=mask.hide[:, 1:]))  # no partition, and not said to be none


@pytest.mark.parametrize("predicted", [1.0, 0.25])
@pytest.mark.parametrize("kind", ["transformer", "cross", "cross-weighted", "linear"])
def test_operations_of_a_decoder(kind, predicted):
    """As torch counts them; the reference predicts the class token too."""
    config = DecoderConfig("linear", 16, 0, 0) if kind == "linear" else replace(CROSS, kind=kind)
    mae = tiny((16, 24), decoder=config)
    masks = MaskGenerator(ratio=0.5, predicted=predicted)
    mask = masks(noise(mae, 2), mae.encoder.grid)
    images, _ = some(mae, batch=2)
    latent = mae.encode(images, mask).detach().requires_grad_()
    features = mae.decoder.hidden if kind.startswith("cross") else mae.decoder
    with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        mae.decoder.pred(features(latent, mask)).sum().backward()
    ours = mae.decoder.flops(*masks.counts(mae.encoder.grid))
    spared = 2 * 16 * 48 if kind == "transformer" else 0
    if (
        kind == "linear"
    ):  # it maps the mean of the visible for each hidden patch, and no class token
        assert counter.get_total_flops() == 2 * 3 * ours
    else:
        assert counter.get_total_flops() == 2 * 3 * (ours - spared)


def test_the_cross_decoder_needs_mask_tokens_of_its_own():
    with pytest.raises(UserError, match="with --encode-all use the transformer"):
        tiny(decoder=CROSS, encode_all=True)
    with pytest.raises(UserError, match="decoder depth 0"):
        tiny(decoder=replace(CROSS, depth=0))


WEIGHTED = replace(CROSS, kind="cross-weighted")


def test_weights_of_encoder_blocks_are_a_loop():
    torch.manual_seed(0)
    mae = tiny((8, 24), decoder=WEIGHTED, encoder=dict(depth=3, registers=2)).double()
    images, mask = some(mae, batch=5, ratio=0.6)
    encoder, decoder, tokens = mae.encoder, mae.decoder, []
    x = encoder.tokens(images, mask.keep)
    for block in encoder.blocks:
        x = block(x)
        tokens.append(torch.cat([encoder.norm(x)[:, :1], encoder.norm(x)[:, 3:]], dim=1))
    places = decoder.pos_embed[0]
    x = torch.stack([decoder.mask_token[0, 0] + places[1 + ids] for ids in mask.hide])
    at = torch.stack([torch.cat([places[:1], places[1 + ids]]) for ids in mask.keep])
    assert decoder.weights.shape == (2, 3)
    for weights, block in zip(decoder.weights, decoder.blocks):
        mixed = sum(weight * found for weight, found in zip(weights, tokens))
        x = attended(block, x, decoder.embed(mixed) + at)
    output = mae(images, mask)
    torch.testing.assert_close(output.prediction, decoder.pred(decoder.norm(x)))
    output.loss.backward()
    assert (decoder.weights.grad != 0).all()
    wide = torch.randn(2, 3, 8, 32, dtype=torch.float64)  # another shape of as many patches a side
    assert mae(wide, some(tiny((8, 32)), batch=2)[1]).loss.isfinite()


def test_a_weighted_decoder_starts_as_one_of_the_last_block():
    mae = tiny(decoder=CROSS)
    other = MAE(mae.encoder, WEIGHTED)
    missing, extra = other.load_state_dict(mae.state_dict(), strict=False)
    assert missing == ["decoder.weights"] and not extra
    images, mask = some(mae)
    torch.testing.assert_close(other(images, mask).loss, mae(images, mask).loss)
