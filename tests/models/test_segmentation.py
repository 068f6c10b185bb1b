"""Heads against transformers' UperNet, losses against written-out ones, sizes, windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchmae.errors import UserError
from torchmae.models.pyramid import ChannelNorm
from torchmae.models.segmentation.heads import HEADS, AuxiliaryHead, UperNetHead, pool_to
from torchmae.models.segmentation.losses import dice_loss, pixel_cross_entropy
from torchmae.models.segmentation.segmenter import Segmenter, starts
from torchmae.models.vit import ViT

transformers = pytest.importorskip("transformers")


def tiny(head="upernet", size=(32, 32), **options):
    torch.manual_seed(0)
    encoder = ViT(size, 8, 3, 24, 4, 3)
    return Segmenter(encoder, ("a", "b", "c"), head, width=16, **options).eval()


def theirs(widths, width, classes):
    """transformers' UperNet head with our norm in place of BatchNorm, and its FCN head."""
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    backbone = transformers.ConvNextConfig(hidden_sizes=list(widths), depths=[1] * 4)
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=width,
        num_labels=classes,
        auxiliary_in_channels=widths[2],
        auxiliary_channels=width,
    )
    heads = UperNetHead(config, in_channels=list(widths)), UperNetFCNHead(config, list(widths))
    for head in heads:
        for module in head.modules():
            if hasattr(module, "batch_norm"):
                module.batch_norm = ChannelNorm(module.batch_norm.num_features)
    return heads


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_upernet_and_its_auxiliary_head_are_transformers_with_layer_norms():
    dim, width, classes = 24, 16, 5
    ours, auxiliary = UperNetHead(dim, classes, width, "taps"), AuxiliaryHead(dim, classes, width)
    main, second = theirs(ours.pyramid.widths, width, classes)
    assert count(ours) - count(ours.pyramid) == count(main)
    assert count(auxiliary) == count(second)
    pairs = list(zip((one.layers[1] for one in main.psp_modules.blocks), ours.pooled))
    pairs += [(main.bottleneck, ours.bottleneck), (main.fpn_bottleneck, ours.fuse)]
    pairs += list(zip(main.lateral_convs, ours.top_down.lateral))
    pairs += list(zip(main.fpn_convs, ours.top_down.smooth))
    pairs += [(second.convs[0], auxiliary.conv)]
    for their, own in pairs:
        own[0].load_state_dict(their.conv.state_dict())
        own[1].load_state_dict(their.batch_norm.state_dict())
    ours.classify.map.load_state_dict(main.classifier.state_dict())
    auxiliary.classify.map.load_state_dict(second.classifier.state_dict())
    maps = [torch.randn(2, dim, 6, 8) for _ in range(4)]
    levels = ours.pyramid(maps)
    torch.testing.assert_close(ours.eval()(maps), main(tuple(levels)), rtol=1e-4, atol=1e-5)
    assert ours(maps).shape == (2, classes, 24, 32)
    found = auxiliary.eval()(maps)
    torch.testing.assert_close(found, second(tuple(maps)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 16), (33, 24)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_pooling_is_torch_s(size, side):
    maps = torch.randn(2, 3, *size)
    torch.testing.assert_close(pool_to(maps, side), F.adaptive_avg_pool2d(maps, side))


def test_the_paper_sized_head_has_the_counts_of_transformers():
    with torch.device("meta"):
        ours = UperNetHead(768, 150, 512, "taps")
        main, _ = theirs((768,) * 4, 512, 150)
    assert count(ours) - count(ours.pyramid) == count(main)


def test_fpn_is_a_feature_pyramid_written_out():
    torch.manual_seed(0)
    head = HEADS["fpn"](24, 5, 16, "taps").eval()
    maps = [torch.randn(1, 24, 4, 6) for _ in range(4)]
    levels = head.pyramid(maps)
    lateral = [conv(level) for conv, level in zip(head.top_down.lateral, levels)]
    for i in (2, 1, 0):
        lateral[i] = lateral[i] + F.interpolate(lateral[i + 1], scale_factor=2, mode="nearest")
    smooth = [conv(level) for conv, level in zip(head.top_down.smooth, lateral)]
    total = head.enlarge[0][0](smooth[0])
    for i in (1, 2, 3):
        level = smooth[i]
        for step in head.enlarge[i]:
            level = F.interpolate(step(level), scale_factor=2, mode="bilinear")
        total = total + level
    torch.testing.assert_close(head(maps), head.classify.map(total), rtol=1e-4, atol=1e-5)
    assert [len(steps) for steps in head.enlarge] == [1, 1, 2, 3]


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("pyramid", ["taps", "simple"])
def test_any_size_one_image_and_building_again(head, pyramid):
    model = tiny(head, pyramid=pyramid, auxiliary=head == "upernet", colors=[(0, 0, 0)] * 3)
    images = torch.randint(0, 256, (1, 3, 27, 45), dtype=torch.uint8)
    assert model.predict(images).shape == (1, 27, 45)
    normal = model.encoder.normalize(images)
    assert model(normal).shape == (1, 3, 27, 45)
    again = Segmenter.build(model.config())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(normal), model(normal))
    assert again.config() == model.config()
    assert not any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())


def test_a_prediction_does_not_depend_on_the_other_images_of_a_batch():
    model = tiny()
    images = torch.randint(0, 256, (3, 3, 40, 33), dtype=torch.uint8)
    together = model.probabilities(images)
    alone = torch.cat([model.probabilities(one[None]) for one in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.sum(1), torch.ones(3, 40, 33))


def test_windows_average_their_logits_and_flips_their_probabilities():
    model = tiny("linear")
    images = torch.randint(0, 256, (1, 3, 48, 72), dtype=torch.uint8)
    seen = model.encoder.normalize(model.as_seen(images))  # the shorter side is 32
    assert seen.shape[2:] == (32, 48)
    total, often = torch.zeros(1, 3, 32, 48), torch.zeros(32, 48)
    for left in (0, 10, 16):
        total[..., left : left + 32] += model(seen[..., left : left + 32])
        often[:, left : left + 32] += 1
    expected = F.interpolate(total / often, size=(48, 72), mode="bilinear").softmax(1)
    found = model.probabilities(images, slide=32, stride=10)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    whole = model.probabilities(images, slide=64)
    torch.testing.assert_close(whole, model.probabilities(images))
    mirrored = model.probabilities(images.flip(-1)).flip(-1)
    flipped = model.probabilities(images, flip=True)
    torch.testing.assert_close(flipped, (whole + mirrored) / 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [1, 5, 32, 33, 100])
def test_windows_cover_everything(length):
    found = starts(length, 32, 20)
    assert set().union(*(range(a, a + 32) for a in found)) >= set(range(length))
    assert all(a + 32 <= max(length, 32) for a in found) and len(found) == len(set(found))


def test_short_side_is_that_of_the_image_as_it_is_predicted():
    images = torch.zeros(1, 3, 100, 150, dtype=torch.uint8)
    assert tiny(short_side=64).as_seen(images).shape[2:] == (64, 96)
    assert tiny(size=(32, 64)).as_seen(images).shape[2:] == (43, 64)


def test_losses_are_those_written_out():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 3, 4, 5))
    labels = generator.integers(0, 3, (2, 4, 5))
    labels[0, :2] = 255
    labels[1] = 1
    weights = np.array([1.0, 2.0, 0.5])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy, dice = 0.0, []
    for i in range(2):
        known = labels[i] != 255
        for y, x in np.argwhere(known):
            entropy -= weights[labels[i, y, x]] * np.log(p[i, labels[i, y, x], y, x])
        own = []
        for k in np.unique(labels[i][known]):
            said, true = p[i, k][known], (labels[i] == k)[known]
            own.append(1 - (2 * (said * true).sum() + 1) / (said.sum() + true.sum() + 1))
        dice.append(np.mean(own))
    given = torch.from_numpy(logits).float(), torch.from_numpy(labels)
    found = pixel_cross_entropy(*given, torch.from_numpy(weights).float())
    assert float(found) == pytest.approx(entropy / labels.size, rel=1e-5)
    assert float(dice_loss(*given)) == pytest.approx(np.mean(dice), rel=1e-5)


@pytest.mark.parametrize("loss", [pixel_cross_entropy, dice_loss])
def test_micro_batches_have_the_loss_of_the_batch(loss):
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 6, 6), torch.randint(0, 3, (4, 6, 6))
    labels[0, :5] = 255
    parts = [loss(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(loss(logits, labels), torch.stack(parts).mean())


def test_dropped_channels_are_those_of_the_draws():
    model = tiny("linear").train()
    images = torch.randn(2, 3, 32, 32)
    kept = model.outputs(images, drops=torch.ones(2, model.dropped))[0]
    dropped = model.outputs(images, drops=torch.zeros(2, model.dropped))[0]
    bias = model.head.classify.map.bias
    assert torch.equal(dropped, bias.view(1, 3, 1, 1).expand_as(dropped))
    none = model.outputs(images)[0] - bias.view(1, 3, 1, 1)
    torch.testing.assert_close(kept - bias.view(1, 3, 1, 1), none / 0.9)


def test_mistakes():
    encoder = ViT((32, 32), 8, 3, 24, 4, 3)
    with pytest.raises(UserError, match="unknown head 'unet'"):
        Segmenter(encoder, ("a", "b"), "unet")
    with pytest.raises(UserError, match="at least two classes"):
        Segmenter(encoder, ("a",))
