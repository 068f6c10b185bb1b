"""The encoder's own average as a target: its features against a written-out loop, how it follows,
what a collapse looks like."""

import pytest
import torch
import torch.nn.functional as F
from helpers.mae import DECODER, some, tiny

from torchmae.data.loader import Batch
from torchmae.models.mae import MAE, training_flops
from torchmae.models.masking import MaskGenerator
from torchmae.models.patches import gather_tokens
from torchmae.tasks.pretrain.task import TARGET_STD, PretrainTask
from torchmae.train.optim import ema_decay_at

DEEP = dict(depth=6)  # of which the last five count


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny(encoder=DEEP, decoder=DECODER, target="ema")


def test_the_mean_of_the_top_blocks_each_normalised_over_an_image_s_tokens(model):
    encoder = model.encoder
    model.target.follow(encoder, decay=0.0)
    images, mask = some(model)
    wanted = []
    with torch.no_grad():
        for image, ids in zip(images, mask.hide):
            tokens, total = encoder.tokens(image[None]), 0
            for number, block in enumerate(encoder.blocks):
                tokens = block(tokens)
                if number >= 1:
                    patches = tokens[0, 1:]
                    off = patches - patches.mean(dim=0)
                    total = total + off / (off.square().mean(dim=0) + 1e-5).sqrt()
            wanted.append(F.layer_norm(total[ids] / 5, (32,)))
    torch.testing.assert_close(model.target(images, mask.hide), torch.stack(wanted))
    wide = F.pad(images, (0, 16))  # any size of the same patches
    assert model.target(wide, mask.hide + 16).shape == (3, 12, 32)


def test_it_starts_as_the_encoder_and_nothing_trains_it():
    torch.manual_seed(0)
    encoder = tiny(encoder=DEEP).encoder
    model = MAE(encoder, DECODER, "ema").train()
    mine = model.target.network.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in encoder.state_dict().items())
    before = {name: value.clone() for name, value in mine.items()}
    images, mask = some(model)
    loss = model(images, mask).loss
    loss.backward()
    assert loss.isfinite() and not list(model.target.parameters())
    assert all(torch.equal(value, before[n]) for n, value in mine.items())
    assert not model.target.network.training and not model.target.has_pictures()
    again = MAE.build(model.config())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.target(images, mask.hide), model.target(images, mask.hide))
    plain = MAE(encoder, DECODER, "pixels")
    assert training_flops(model) > training_flops(plain)


def test_after_each_step_it_follows_the_weights(model):
    task = PretrainTask(model, MaskGenerator(), 0)
    model.target.follow(model.encoder, decay=0.0)
    wanted = {n: v.double() for n, v in model.encoder.state_dict().items()}
    for step in (0, 1, 500, 10_000_000):
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        task.after_step(step)
        decay = ema_decay_at(step, 0.9998)
        for name, value in model.encoder.state_dict().items():
            wanted[name] = decay * wanted[name] + (1 - decay) * value.double()
    for name, value in model.target.network.state_dict().items():
        torch.testing.assert_close(value.double(), wanted[name], atol=1e-5, rtol=1e-5)


def test_a_collapse_is_a_deviation_of_zero(model):
    model.target.follow(model.encoder, decay=0.0)
    task = PretrainTask(model, MaskGenerator(), 0)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    batch = Batch(images, None, torch.zeros(6, dtype=torch.long), torch.arange(6))
    with torch.no_grad():
        found = task.diagnose(batch)
        images_, every = model.encoder.normalize(images), torch.arange(16).expand(6, -1)
        truth = model.target(images_, every)
        assert torch.equal(gather_tokens(truth, every), truth)
        wanted = (truth - truth.mean(dim=0)).square().mean(dim=0).sqrt().mean()
        torch.testing.assert_close(found[TARGET_STD], wanted)
        assert 1 < found["target rank"] <= 32 and wanted > 0.1
        for block in model.target.network.blocks:  # what is left is the place
            for branch in (block.attn.proj, block.mlp.fc2):
                branch.weight.zero_()
        model.target.network.patch_embed.proj.weight.zero_()
        assert task.diagnose(batch)[TARGET_STD] < 1e-5
