"""The autoencoder: equal to transformers' ViTMAE in prediction, loss and every gradient; pure; its
head harmless."""

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from helpers.mae import DECODER, TINY, VALUE_TARGETS, gradients, noise, some, tiny
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from torchmae.benchmarks.peers import PEERS
from torchmae.errors import UserError
from torchmae.models import masking
from torchmae.models.decoders import Decoder, DecoderConfig, decoder_config
from torchmae.models.mae import LOSSES, MAE, training_flops
from torchmae.models.masking import Mask, MaskGenerator
from torchmae.models.patches import (
    gather_tokens,
    patch_statistics,
    patchify,
    scatter_tokens,
    sincos_positions,
    unpatchify,
)
from torchmae.models.sizes import SIZES
from torchmae.models.vit import ViT


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------- transformers


def sincos(side, dim):
    """The reference's fixed positions, as facebookresearch/mae computes them; shares no code with
    ours."""
    omega = [1 / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
    rows = [[0.0] * dim]
    for row in range(side):
        for column in range(side):
            angles = [[place * w for w in omega] for place in (column, row)]
            rows.append([wave(a) for axis in angles for wave in (math.sin, math.cos) for a in axis])
    return torch.tensor([rows], dtype=torch.float64).float()


def their_names(ours):
    """transformers' name for each of our tensors (parameters or gradients), the one qkv cut in
    three."""
    theirs = {}
    for name, value in ours.items():
        if name.startswith("decoder.statistics"):
            continue
        for old, new in [
            ("decoder.embed.", "decoder.decoder_embed."),
            ("decoder.pos_embed", "decoder.decoder_pos_embed"),
            ("decoder.blocks.", "decoder.decoder_layers."),
            ("decoder.norm.", "decoder.decoder_norm."),
            ("decoder.pred.", "decoder.decoder_pred."),
            ("encoder.cls_token", "vit.embeddings.cls_token"),
            ("encoder.pos_embed", "vit.embeddings.position_embeddings"),
            ("encoder.patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
            ("encoder.blocks.", "vit.layers."),
            ("encoder.norm.", "vit.layernorm."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".attn.proj.", ".attention.o_proj."),
        ]:
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, third in zip("qkv", value.chunk(3)):
                theirs[name.replace("attn.qkv", f"attention.{part}_proj")] = third
        else:
            theirs[name] = value
    return theirs


def their_model(mae, normalised, ratio):
    encoder, decoder = mae.encoder, mae.decoder
    config = ViTMAEConfig(
        image_size=encoder.image_size[0],
        patch_size=encoder.patch_size,
        num_channels=encoder.channels,
        hidden_size=encoder.embed_dim,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.num_heads,
        intermediate_size=4 * encoder.embed_dim,
        decoder_hidden_size=decoder.config.dim,
        decoder_num_hidden_layers=decoder.config.depth,
        decoder_num_attention_heads=decoder.config.heads,
        decoder_intermediate_size=4 * decoder.config.dim,
        layer_norm_eps=1e-6,
        norm_pix_loss=normalised,
        mask_ratio=ratio,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = ViTMAEForPreTraining(config).train()
    state = their_names(mae.state_dict())
    # Theirs, built from scratch, has zeros here: repaired by an independent computation, which ours
    # must equal.
    state["vit.embeddings.position_embeddings"] = sincos(encoder.grid[0], encoder.embed_dim)
    state["decoder.decoder_pos_embed"] = sincos(encoder.grid[0], config.decoder_hidden_size)
    torch.testing.assert_close(
        encoder.pos_embed.data, state["vit.embeddings.position_embeddings"], rtol=0, atol=1e-7
    )
    torch.testing.assert_close(
        decoder.pos_embed.data, state["decoder.decoder_pos_embed"], rtol=0, atol=1e-7
    )
    theirs.load_state_dict(state, strict=True)
    return theirs


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("channels, ratio, patch", [(3, 0.75, 4), (1, 0.5, 4), (4, 0.9, 2)])
def test_equals_transformers(normalised, channels, ratio, patch, dtype, tolerance):
    target = "norm-pixels" if normalised else "pixels"
    ours = tiny(channels=channels, target=target, encoder={"patch_size": patch})
    theirs = their_model(ours, normalised, ratio).to(dtype)
    ours = ours.to(dtype)
    images, mask = some(ours, ratio=ratio)
    if (
        dtype == torch.float64
    ):  # theirs repeated our float32 table to 1e-7 only; for 1e-10 they must be the same bits
        theirs.vit.embeddings.position_embeddings.data.copy_(ours.encoder.pos_embed.data)
        theirs.decoder.decoder_pos_embed.data.copy_(ours.decoder.pos_embed.data)
    scores = noise(ours, len(images)).double()
    expected = theirs(images, noise=scores)
    output = ours(images, mask)

    assert torch.equal(expected.mask, torch.zeros_like(expected.mask).scatter(1, mask.hide, 1.0))
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        output.prediction, gather_tokens(expected.logits, mask.hide), **close
    )
    torch.testing.assert_close(output.loss, expected.loss, **close)

    output.loss.backward()
    expected.loss.backward()
    mine = their_names(gradients(ours))
    reference = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert mine.keys() == reference.keys() and len(mine) == len(list(theirs.parameters())) - 2
    for name, gradient in reference.items():
        assert gradient.abs().max() > 0 or name.endswith(
            "k_proj.bias"
        )  # softmax does not see the keys' bias
        torch.testing.assert_close(
            mine[name],
            gradient,
            **close,
            msg=lambda text, name=name: f"{name}: {text}",  # type: ignore[misc]
        )


def ways_of_building(tmp_path):
    from safetensors.torch import save_file

    from torchmae.models.weights import load_mae

    mae = MAE(ViT((16, 16), **TINY), DECODER)
    yield "constructed", mae
    yield "built", MAE.build(json.loads(json.dumps(mae.config())))
    with torch.device("meta"):
        empty = MAE.build(mae.config())
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(mae.state_dict())
    yield "from meta", empty
    (tmp_path / "config.json").write_text(json.dumps({"model": mae.config()}))
    save_file(mae.state_dict(), tmp_path / "model.safetensors")
    yield "loaded", load_mae(tmp_path)
    yield "moved", MAE.build(mae.config()).double().float()


def test_predictions_vary_with_position(tmp_path):
    """transformers 5.23's ViTMAE from scratch has zero positions: all its predictions of an image
    are one and the same."""
    names = []
    for name, mae in ways_of_building(tmp_path):
        images, mask = some(mae)
        prediction = mae(images, mask).prediction.detach()
        for row in prediction:
            apart = torch.cdist(row, row) + 10 * torch.eye(len(row))
            assert apart.min() > 1e-2 * row.norm(dim=-1).mean(), name
        assert torch.equal(mae.encoder.pos_embed, sincos_positions((4, 4), 32)), name
        assert torch.equal(mae.decoder.pos_embed, sincos_positions((4, 4), 16)), name
        names.append(name)
    assert names == ["constructed", "built", "from meta", "loaded", "moved"]


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("target", VALUE_TARGETS)
@pytest.mark.parametrize("loss_on", sorted(LOSSES))
def test_loss_equals_a_loop(target, loss_on):
    mae = tiny(target=target, loss_on=loss_on).double()
    images, mask = some(mae)
    output = mae(images, mask)
    features = mae.decoder(mae.encoder(images, mask.keep), mask)
    everything = scatter_tokens(
        torch.zeros(3, 16, 48).double(), torch.cat(mask, dim=1), mae.decoder.pred(features)
    )
    patches, errors = patchify(images, (4, 4)), []
    for b in range(3):
        for n in range(16) if loss_on == "all" else mask.hide[b].tolist():
            wanted = patches[b, n]
            if target == "norm-pixels":
                wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
            if target == "pca":
                wanted = (wanted - mae.target.mean) @ mae.target.components
            errors.extend(((everything[b, n] - wanted) ** 2).tolist())
    assert output.loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-12)
    torch.testing.assert_close(output.prediction, gather_tokens(everything, mask.hide))


@pytest.mark.parametrize("target", VALUE_TARGETS)
def test_denoising_equals_a_loop(target):
    """Nothing hidden: what the encoder sees is noisy, the truth of all patches is not."""
    mae = tiny(target=target, loss_on="all").double()
    images, mask = some(mae, ratio=0.0)
    seen = images + 0.5 * torch.randn_like(images)
    output = mae(images, mask, seen)
    predicted = mae.decoder.pred(mae.decoder(mae.encoder(seen, mask.keep), mask))
    truth = mae.target(images, mask.keep)
    expected = (predicted - truth).square().mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    assert torch.equal(output.prediction, predicted)
    if output.statistics is not None:
        assert output.statistics.shape == (3, 16, 2)
        assert output.statistics_loss.isfinite()
    losses = mae.target.trivial_losses(images, mask, seen)
    noisy = (mae.target(seen, mask.keep) - truth).square().mean()
    torch.testing.assert_close(losses["noisy input"], noisy, rtol=1e-12, atol=0)
    assert set(losses) == {"patch mean", "visible mean", "noisy input"}


def test_a_loss_on_hidden_patches_needs_some():
    mae = tiny()
    with pytest.raises(UserError, match="no patch is hidden"):
        mae(*some(mae, ratio=0.0))


def test_hidden_pixels_reach_the_target_only():
    mae = tiny(target="pixels")
    images, mask = some(mae)
    before = mae(images, mask)
    other = unpatchify(
        scatter_tokens(patchify(images, (4, 4)), mask.hide, torch.randn(3, 12, 48)), (4, 4), (4, 4)
    )
    after = mae(other, mask)
    assert torch.equal(after.prediction, before.prediction) and not torch.equal(
        after.loss, before.loss
    )


@pytest.mark.parametrize("target", VALUE_TARGETS)
@pytest.mark.parametrize("loss_on", sorted(LOSSES))
def test_order_within_the_mask_does_not_matter(target, loss_on):
    mae = tiny(target=target, loss_on=loss_on).double()
    images, mask = some(mae, ratio=0.5)
    order = torch.randperm(8)
    base, moved = (
        mae(images, mask),
        mae(images, Mask(mask.keep[:, torch.randperm(8)], mask.hide[:, order])),
    )
    torch.testing.assert_close(moved.loss, base.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved.prediction, base.prediction[:, order], rtol=1e-10, atol=1e-10)
    if base.statistics is not None:
        torch.testing.assert_close(
            moved.statistics, base.statistics[:, order], rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("name", sorted(masking.MASKINGS))
@pytest.mark.parametrize(
    "size, channels, patch",
    [((8, 24), 1, 4), ((12, 8), 2, 2), ((9, 6), 5, 3), ((16, 32), 3, 8), ((14, 7), 1, 7)],
)
def test_sizes_channels_and_maskings(name, size, channels, patch):
    mae = tiny(size, channels, encoder={"patch_size": patch}, target="norm-pixels")
    images = torch.randn(2, channels, *size)
    mask = masking.MASKINGS[name](noise(mae, 2), mae.encoder.grid, 0.5)
    output = mae(images, mask)
    hidden = mask.hide.shape[1]
    assert output.prediction.shape == (2, hidden, patch * patch * channels)
    assert output.statistics.shape == (2, hidden, 2)
    assert output.loss.isfinite() and output.statistics_loss.isfinite()
    (output.loss + output.statistics_loss).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in mae.parameters() if p.requires_grad
    )
    assert mae.encoder.pos_embed.grad is None and mae.decoder.pos_embed.grad is None


def test_a_given_mask_works():
    mae = tiny()
    images, mask = some(mae)
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter(1, mask.hide, True)
    torch.testing.assert_close(
        mae(images, masking.mask_from_bool(hidden)).loss, mae(images, mask).loss
    )


# ---------------------------------------------------------------- purity


@pytest.mark.parametrize("training", [True, False])
def test_a_pure_function(training):
    mae = tiny().train(training)
    images, mask = some(mae)
    before = images.clone(), mask.keep.clone(), mask.hide.clone()
    state = {name: value.clone() for name, value in mae.state_dict().items()}
    random = torch.get_rng_state()
    first, second = mae(images, mask), mae(images, mask)
    assert torch.equal(torch.get_rng_state(), random), "the model must draw nothing"
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    assert torch.equal(mae.train(not training)(images, mask).loss, first.loss)
    assert all(torch.equal(a, b) for a, b in zip((images, *mask), before))
    assert all(torch.equal(value, state[name]) for name, value in mae.state_dict().items())


def test_images_of_a_batch_do_not_mix():
    mae = tiny().double()
    images, mask = some(mae, batch=4)
    whole = mae(images, mask)
    parts = [
        mae(images[i : i + 1], Mask(mask.keep[i : i + 1], mask.hide[i : i + 1])) for i in range(4)
    ]
    torch.testing.assert_close(
        torch.cat([part.prediction for part in parts]), whole.prediction, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(torch.stack([part.loss for part in parts]).mean(), whole.loss)


def test_autocast_keeps_loss_and_positions_in_float32():
    mae = tiny()
    images, mask = some(mae)
    seen = []
    mae.decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        output = mae(images, mask)
    assert all(value.dtype == torch.float32 for value in output)
    hidden = mae.decoder.mask_token + gather_tokens(mae.decoder.pos_embed[:, 1:], mask.hide)
    first = 1 + mask.keep.shape[1]  # after the class token and the visible patches
    assert torch.equal(seen[0][0][:, first:], hidden), "no rounding of what needs no matrix product"
    torch.testing.assert_close(output.loss, mae(images, mask).loss, rtol=0.02, atol=0)


# ---------------------------------------------------------------- gradients


def functional_gradcheck(mae, images, mask, names, value):
    """Finite differences of `value(output)` in all parameters of these names, along random
    directions (fast mode)."""
    parameters = dict(mae.named_parameters())

    def function(*chosen):
        return value(functional_call(mae, parameters | dict(zip(names, chosen)), (images, mask)))

    inputs = [parameters[name].detach().clone().requires_grad_() for name in names]
    return torch.autograd.gradcheck(function, inputs, fast_mode=True, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("target", VALUE_TARGETS)
@pytest.mark.parametrize("loss_on", sorted(LOSSES))
def test_loss_by_finite_differences(target, loss_on):
    small = dict(patch_size=2, embed_dim=8, depth=1, num_heads=2)
    mae = tiny(
        (4, 6),
        2,
        small,
        target=target,
        loss_on=loss_on,
        decoder=DecoderConfig("transformer", 8, 1, 1),
    ).double()
    images, mask = some(mae, batch=2, ratio=0.5)
    names = [
        n
        for n, p in mae.named_parameters()
        if p.requires_grad and not n.startswith("decoder.statistics")
    ]
    assert functional_gradcheck(mae, images, mask, names, lambda output: output.loss)


def test_statistics_head_by_finite_differences():
    mae = tiny(target="norm-pixels").double()
    images, mask = some(mae)
    names = [name for name, _ in mae.named_parameters() if name.startswith("decoder.statistics")]
    assert len(names) == 2
    assert functional_gradcheck(mae, images, mask, names, lambda output: output.statistics_loss)


@pytest.mark.parametrize("loss_on", sorted(LOSSES))
def test_the_statistics_head_changes_no_other_gradient(loss_on):
    mae = tiny(target="norm-pixels", loss_on=loss_on)
    images, mask = some(mae)
    output = mae(images, mask)
    (output.loss + output.statistics_loss).backward()
    with_head = gradients(mae)
    head = {name for name in with_head if name.startswith("decoder.statistics")}
    assert len(head) == 2 and all(with_head[name].abs().max() > 0 for name in head)

    mae.zero_grad()
    mae(images, mask).loss.backward()
    assert gradients(mae).keys() == with_head.keys() - head, "the loss must not reach the head"

    mae.zero_grad()
    mae.decoder.statistics = None
    plain = mae(images, mask)
    assert (
        torch.equal(plain.loss, output.loss)
        and plain.statistics is None
        and plain.statistics_loss is None
    )
    plain.loss.backward()
    without = gradients(mae)
    assert without.keys() == with_head.keys() - head
    for name, gradient in without.items():
        assert torch.equal(gradient, with_head[name]), name


def test_statistics_start_at_the_visible_patches_mean():
    mae = MAE(ViT((16, 16), **TINY), DECODER)
    images, mask = some(mae)
    output = mae(images, mask)
    truth = patch_statistics(patchify(images, (4, 4)))
    for b in range(3):
        expected = truth[b, mask.keep[b]].mean(dim=0).expand(12, 2)
        torch.testing.assert_close(output.statistics[b], expected)
    expected = (output.statistics - gather_tokens(truth, mask.hide)).square().mean()
    torch.testing.assert_close(output.statistics_loss, expected)


def test_statistics_do_not_see_hidden_patches():
    mae = tiny()
    images, mask = some(mae)
    other = unpatchify(
        scatter_tokens(patchify(images, (4, 4)), mask.hide, torch.randn(3, 12, 48) * 9),
        (4, 4),
        (4, 4),
    )
    assert torch.equal(mae(images, mask).statistics, mae(other, mask).statistics)


# ---------------------------------------------------------------- building


def test_unknown_names():
    encoder = ViT((8, 8), **TINY)
    with pytest.raises(UserError, match=r"unknown target 'norm-pixel'. Did you mean norm-pixels\?"):
        MAE(encoder, target="norm-pixel")
    with pytest.raises(UserError, match=r"unknown loss 'hiden'. Did you mean hidden\?"):
        MAE(encoder, loss_on="hiden")
    with pytest.raises(UserError, match="width 16 is not divisible by 3 heads"):
        MAE(encoder, DecoderConfig("transformer", 16, 2, 3))
    with pytest.raises(UserError, match="divisible by 4, not 18"):
        MAE(encoder, DecoderConfig("transformer", 18, 2, 2))


@pytest.mark.parametrize(
    "depth, message", [(0, "decoder depth 0: at least 1 block"), (-1, "depth -1 of a model")]
)
def test_a_decoder_needs_a_block(depth, message):
    with pytest.raises(UserError, match=message):
        MAE(ViT((8, 8), **TINY), decoder_config(32, depth=depth))


@pytest.mark.parametrize(
    "dim, expected",
    [(1280, (512, 8, 16)), (768, (512, 8, 16)), (384, (256, 4, 8)), (192, (128, 2, 4))],
)
def test_default_decoders(dim, expected):
    expected = DecoderConfig("transformer", *expected)
    assert decoder_config(dim) == expected
    with torch.device("meta"):
        mae = MAE(ViT((32, 32), 16, embed_dim=dim, depth=1, num_heads=4))
    assert mae.decoder.config == expected and mae.config()["decoder"] == asdict(expected)


def test_config_builds_the_same_model():
    mae = tiny(
        (8, 12), 2, target="pixels", loss_on="all", encoder={"mlp_ratio": 2.0, "mean": (0.1, 0.2)}
    )
    config = json.loads(json.dumps(mae.config()))
    again = MAE.build(config)
    assert json.loads(json.dumps(again.config())) == config
    again.load_state_dict(mae.state_dict(), strict=True)
    images, mask = some(mae)
    assert torch.equal(again(images, mask).loss, mae(images, mask).loss)
    assert (
        again.encoder.mean == (0.1, 0.2)
        and again.loss_on == "all"
        and again.target_name == "pixels"
    )


def test_initial_values():
    mae = MAE(ViT((32, 32), patch_size=8, embed_dim=192, depth=2, num_heads=3))
    linears = {n: m for n, m in mae.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    statistics = linears.pop("decoder.statistics")
    assert len(linears) == 1 + 4 * 2 + 2 + 4 * 2
    for name, layer in linears.items():
        outputs, inputs = layer.weight.flatten(
            1
        ).shape  # the patch embedding as one linear map of p * p * C values
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound, name
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02), name
        assert (layer.bias == 0).all() == (name != "encoder.patch_embed.proj"), name
    assert (statistics.weight == 0).all() and (statistics.bias == 0).all()
    for layer in (m for m in mae.modules() if isinstance(m, nn.LayerNorm)):  # type: ignore[assignment]
        assert (layer.weight == 1).all() and (layer.bias == 0).all() and layer.eps == 1e-6
    for token in (mae.encoder.cls_token, mae.decoder.mask_token):
        assert (
            token.std().item() == pytest.approx(0.02, rel=0.25) and abs(token.mean().item()) < 0.01
        )
    assert torch.equal(mae.encoder.pos_embed, sincos_positions((4, 4), 192))
    assert torch.equal(mae.decoder.pos_embed, sincos_positions((4, 4), 128))


def test_the_target_changes_no_initial_weight():
    """The head comes last: runs that compare targets start from the same weights."""
    states = []
    for target in ("pixels", "norm-pixels"):
        torch.manual_seed(5)
        states.append(MAE(ViT((16, 16), **TINY), DECODER, target).state_dict())
    assert states[1].keys() - states[0].keys() == {
        "decoder.statistics.weight",
        "decoder.statistics.bias",
    }
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_it_learns():
    """Three images by heart: the loss falls well below that of predicting zeros (1.0)."""
    mae = tiny(decoder=DecoderConfig("transformer", 64, 2, 4))
    mask = some(mae)[1]
    images = nn.functional.interpolate(torch.randn(3, 3, 4, 4), size=(16, 16), mode="bicubic")
    optimizer = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], 5e-3)
    for _ in range(80):
        output = mae(images, mask)
        optimizer.zero_grad()
        (output.loss + output.statistics_loss).backward()
        optimizer.step()
    assert mae(images, mask).loss < 0.5


# --- operations


def on_meta(
    name: str = "vit_base", patch_size: int = 16, depth: int | None = None, **options: Any
) -> MAE:
    with torch.device("meta"):
        encoder = ViT(patch_size=patch_size, **SIZES[name])
        return MAE(encoder, decoder_config(encoder.embed_dim, depth=depth), **options)


def counted(function: Any) -> int:
    """What torch counts in `function()` and its backward pass; on meta nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        function().backward()
    return counter.get_total_flops()


def test_the_count_of_the_paper_s_model() -> None:
    count = training_flops(on_meta())
    assert count is not None and count / 1e9 == pytest.approx(58.46, abs=0.01)
    assert training_flops(on_meta(), MaskGenerator(ratio=0.5)) > 1.3 * count


@pytest.mark.parametrize("name, patch", [("vit_base", 16), ("vit_huge", 14)])
def test_the_count_is_torch_s_own_for_transformers(name: str, patch: int) -> None:
    """It embeds and predicts every patch, as the reference does.

    With plain attention: the fused one computes some products twice.
    """
    model = on_meta(name, patch)
    with torch.device("meta"):
        theirs = PEERS["transformers"].build(model.config(), 0.75)
        theirs.model.set_attn_implementation("eager")
        found = counted(lambda: theirs(torch.randn(2, 3, 224, 224)))
    assert found / 2 == pytest.approx(training_flops(model), rel=1e-3)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("encode_all", [False, True])
@pytest.mark.parametrize("decoder", ["transformer", "linear"])
def test_the_count_is_exactly_torch_s_own_for_the_plain_model(
    decoder: str, encode_all: bool, registers: int
) -> None:
    """`Decoder.forward` and the loss on all patches; in bf16, where attention is plain.

    It embeds visible patches only and predicts nothing for the class token, which is added here.
    """
    encoder = ViT((32, 40), 8, 2, 24, 3, 2, registers=registers)
    config = DecoderConfig("linear", 16, 0, 0)
    config = DecoderConfig("transformer", 16, 2, 4) if decoder == "transformer" else config
    model = MAE(encoder, config, "pixels", "all", encode_all)
    ids = torch.arange(3)
    mask = masking.random(masking.noise(0, ids * 0, ids, 20), (4, 5), 0.6)
    with torch.autocast("cpu", torch.bfloat16):
        found = counted(lambda: model(torch.randn(3, 2, 32, 40), mask).loss)
    values = 8 * 8 * 2
    spared = 2 * 2 * 12 * values * 24  # 12 hidden patches, forward and once backward
    spared += 3 * 2 * 1 * 16 * values if decoder == "transformer" else 0
    assert found == 3 * (training_flops(model, MaskGenerator(ratio=0.6)) - spared)


def test_other_kinds_are_not_counted() -> None:
    class Mine(Decoder):
        """Whatever it computes."""

    model = MAE(ViT((16, 16), 8, 1, 16, 1, 2), DecoderConfig("linear", 16, 0, 0))
    assert training_flops(model) is not None
    model.decoder = Mine(model.decoder.config, model.encoder, 64, True)
    assert training_flops(model) is None


@pytest.mark.parametrize(
    "name, patch, with_8, with_1", [("vit_large", 16, 3.23, 4.16), ("vit_huge", 14, 3.60, 4.12)]
)
def test_the_operations_of_table_2(name: str, patch: int, with_8: float, with_1: float) -> None:
    base, eight, one = (
        training_flops(on_meta(name, patch, depth, encode_all=all_))
        for all_, depth in ((True, 8), (False, 8), (False, 1))
    )
    assert base / eight == pytest.approx(with_8, abs=0.01) and base / one == pytest.approx(
        with_1, abs=0.01
    )
    if name == "vit_large":
        assert base / eight == pytest.approx(3.3, rel=0.03)  # the paper's Table 1c


@pytest.mark.parametrize("target", VALUE_TARGETS)
@pytest.mark.parametrize("loss_on", ["hidden", "all"])
def test_patches_without_values_are_never_predicted(target, loss_on):
    """Neither loss nor any gradient depends on what is predicted for them, or on their truth."""
    mae = tiny(target=target, loss_on=loss_on)
    mask = masking.MASKINGS["random"](noise(mae, 2), mae.encoder.grid, 0.5)
    counted = torch.ones(2, 16, dtype=torch.bool)
    counted[0, mask.hide[0, :3]] = False
    counted[1, mask.keep[1, 0]] = False
    images = torch.randn(2, 3, 16, 16)
    other = images.clone()
    patches = patchify(other, mae.encoder.patch)
    hidden = torch.zeros(2, 16, dtype=torch.bool).scatter(1, mask.hide, True)
    patches[~counted & hidden] = 1e3
    other = unpatchify(patches, mae.encoder.patch, mae.encoder.grid)
    losses, found = [], []
    for truth in (images, other):
        mae.zero_grad()
        output = mae(truth, mask, images, counted)
        (output.loss + (0 if output.statistics_loss is None else output.statistics_loss)).backward()
        losses.append(output.loss.detach())
        found.append(gradients(mae))
    assert torch.equal(*losses) and all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    if loss_on == "hidden":
        output = mae(images, mask, images, counted)
        output.prediction.retain_grad()
        output.loss.backward()
        touched = output.prediction.grad.abs().sum(2) > 0
        assert torch.equal(touched, counted.gather(1, mask.hide))
    everything = mae(images, mask, images, torch.ones_like(counted)).loss
    assert torch.allclose(everything, mae(images, mask).loss)
    nothing = mae(images, mask, images, torch.zeros_like(counted)).loss
    nothing.backward()
    assert nothing == 0
