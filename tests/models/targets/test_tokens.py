"""Tokens as a target: those of the tokenizer, whatever the images are normalised by; cross-entropy;
weights that nothing trains."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.mae import some, tiny
from helpers.tokenizers import small_tokenizer, tokens_of
from torch.utils.flop_counter import FlopCounterMode

from torchmae.errors import UserError
from torchmae.models.mae import LOSSES, MAE, training_flops
from torchmae.models.masking import Mask
from torchmae.models.targets import build_target, split_target
from torchmae.models.targets.tokenizer import Tokenizer
from torchmae.models.vit import ViT
from torchmae.train.optim import param_groups_weight_decay

MEAN, STD = (0.1, 0.45, 0.8), (0.3, 0.2, 0.4)


def target_of(tokenizer: Tokenizer):
    target = build_target(tokens_of(tokenizer), (4, 4), 3, MEAN, STD)
    target.network.load_state_dict(tokenizer.state_dict())
    return target


def test_the_tokens_are_the_tokenizer_s_of_the_same_pixels():
    tokenizer = small_tokenizer(vocabulary=64, image_size=(16, 16))
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
    images = (pixels.float() / 255 - mean) / std
    expected = tokenizer.tokens(tokenizer.normalize(pixels))
    ids = torch.stack([torch.randperm(16)[:7] for _ in range(5)])
    found = target_of(tokenizer)(images, ids)
    assert found.dtype == torch.int64 and found.shape == (5, 7)
    assert torch.equal(found, expected.gather(1, ids))
    assert len(found.unique()) > 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target_of(tokenizer)(images, ids), found)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_the_tokenizer_s_forward_pass_is_counted_as_torch_counts_it(patch):
    tokenizer = small_tokenizer(patch, vocabulary=24, image_size=(16, 24))
    target = build_target(tokens_of(tokenizer), (patch, patch), 3, MEAN, STD)
    grid = (16 // patch, 24 // patch)
    with FlopCounterMode(display=False) as counter:
        target(torch.randn(3, 3, 16, 24), torch.zeros(3, 1, dtype=torch.int64))
    assert 3 * target.flops(grid) == counter.get_total_flops() > 0


def test_a_training_step_counts_it_once_and_not_backward():
    with torch.device("meta"):
        encoder = ViT((16, 16), 4, 3, 24, 2, 2)
        tokens = MAE(encoder, target=tokens_of(small_tokenizer(vocabulary=48)))
        pixels = MAE(encoder, target="pixels")  # 48 values a patch too
    forward = tokens.target.flops((4, 4))
    assert training_flops(tokens) - training_flops(pixels) == forward > 0


def test_the_loss_is_the_cross_entropy():
    target = target_of(small_tokenizer())
    prediction = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    truth = torch.randint(0, 16, (3, 5))
    loss = target.loss(prediction, truth)
    expected = F.cross_entropy(prediction.transpose(1, 2), truth)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    values = prediction.detach().numpy()
    shares = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    picked = np.take_along_axis(shares, truth.numpy()[..., None], 2)
    assert loss.item() == pytest.approx(-np.log(picked).mean(), rel=1e-12)


@pytest.mark.parametrize("loss_on", sorted(LOSSES))
def test_the_loss_of_a_model(loss_on):
    tokenizer = small_tokenizer(image_size=(16, 16))
    mae = tiny(target=tokens_of(tokenizer), loss_on=loss_on)
    mae.target.network.load_state_dict(tokenizer.state_dict())
    images, mask = some(mae)
    output = mae(images, mask)
    features = mae.decoder.pred(mae.decoder(mae.encoder(images, mask.keep), mask))
    ids = torch.cat(mask, dim=1)
    if loss_on == "hidden":
        features, ids = features[:, mask.keep.shape[1] :], mask.hide
    expected = F.cross_entropy(features.transpose(1, 2), mae.target(images, ids))
    torch.testing.assert_close(output.loss, expected)
    assert output.prediction.shape == (3, 12, 16) and output.statistics is None
    output.loss.backward()
    assert all(p.grad is not None for p in mae.parameters() if p.requires_grad)


def test_the_tokenizer_is_state_of_the_model_and_no_parameter():
    tokenizer = small_tokenizer()
    mae = tiny(target=tokens_of(tokenizer))
    assert not list(mae.target.parameters())
    names = [n for group in param_groups_weight_decay(mae, 0.1) for n in group["names"]]
    assert not [name for name in names if name.startswith("target.")]
    kept = {n.removeprefix("target.network.") for n in mae.state_dict() if n.startswith("target.")}
    assert kept == set(tokenizer.state_dict())
    mae.target.network.load_state_dict(tokenizer.state_dict())
    again = MAE.build(json.loads(json.dumps(mae.config())))
    again.load_state_dict(mae.state_dict())
    images, mask = some(mae)
    assert torch.equal(again(images, mask).loss, mae(images, mask).loss)


def test_a_target_without_its_weights_cannot_train():
    mae = tiny(target=tokens_of(small_tokenizer()))
    assert mae(*some(mae)).loss.isnan()


def test_trivial_losses():
    """The entropy of the batch's tokens with Miller's correction; both bound what is learned."""
    target = target_of(small_tokenizer(vocabulary=64, image_size=(16, 16)))
    images = torch.randn(6, 3, 16, 16)
    ids = torch.arange(16).expand(6, -1)
    losses = target.trivial_losses(images, Mask(ids[:, :4], ids[:, 4:]), images)
    counts = np.bincount(target(images, ids).flatten().numpy(), minlength=64)
    shares = counts[counts > 0] / 96
    entropy = -(shares * np.log(shares)).sum() + (len(shares) - 1) / (2 * 96)
    assert losses["token frequencies"].item() == pytest.approx(min(entropy, math.log(64)), rel=1e-5)
    assert losses["uniform tokens"].item() == pytest.approx(math.log(64))
    assert 0 < losses["token frequencies"] < losses["uniform tokens"]


def test_the_corrected_entropy_of_a_sample_is_nearly_that_of_all():
    """Of 100 draws from 40 tokens alike: without the correction it is 0.2 nats too small."""
    target = target_of(small_tokenizer(vocabulary=64))
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(50):
        drawn = torch.randint(0, 40, (1, 100), generator=generator)
        target.forward = lambda images, ids, drawn=drawn: drawn
        images, nothing = torch.zeros(1, 3, 8, 8), torch.zeros(1, 0, dtype=torch.long)
        mask = Mask(nothing, torch.arange(100).view(1, -1))
        found.append(target.trivial_losses(images, mask, images)["token frequencies"])
    assert torch.stack(found).mean().item() == pytest.approx(math.log(40), abs=0.05)


def test_what_does_not_fit_is_said_in_one_line():
    about = tokens_of(small_tokenizer())
    with pytest.raises(UserError, match="the tokenizer has patches of 4 px, the model 16: make"):
        build_target(about, (16, 16), 3, MEAN, STD)
    with pytest.raises(UserError, match="the tokenizer takes 3 channels, the model 1: use"):
        build_target(about, (4, 4), 1, MEAN[:1], STD[:1])


def test_names_with_and_without_a_run():
    assert split_target("pixels") == ("pixels", None)
    assert split_target("tokens:runs/a:b") == ("tokens", "runs/a:b")
    for text, words in {
        "tokens": "needs a run of mae tokenizer .*: --target tokens:RUN",
        "tokens:": "needs a run",
        "pca:runs/x": "pca is made of no run: leave :runs/x out",
        "tokns:runs/x": "unknown target 'tokns'.*Did you mean tokens",
    }.items():
        with pytest.raises(UserError, match=words):
            split_target(text)
