"""The region proposal network: anchors, samples and losses."""

import pytest
import torch

pytest.importorskip("torchvision")

from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from torchmae.models.detection.proposals import Proposals, overlaps

WIDTH = 8
STRIDES = (4, 8, 16)
SIZES = (16, 32, 64)
BOXES = torch.tensor([[10.0, 12, 30, 40], [50, 50, 80, 70]])


def network() -> Proposals:
    torch.manual_seed(0)
    made = Proposals(WIDTH, SIZES, STRIDES)
    made.fg_bg_sampler.keys = torch.tensor([1])
    return made


def maps(height=96, width=96, batch=1):
    torch.manual_seed(1)
    return {
        i: torch.randn(batch, WIDTH, -(-height // stride), -(-width // stride))
        for i, stride in enumerate(STRIDES)
    }


def images(height=96, width=96, batch=1):
    return ImageList(torch.zeros(batch, 3, height, width), [(height, width)] * batch)


def target(boxes=BOXES, crowds=BOXES[:0]):
    return {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "crowds": crowds}


def test_anchors_lie_on_the_cells_also_where_sides_were_rounded_up():
    """90 pixels have 6 cells of 16; torchvision's class would put them 15 pixels apart."""
    made = network()
    levels = list(maps(90, 90).values())
    anchors = made.anchor_generator(images(90, 90), levels)[0]
    counts = [3 * one.shape[2] * one.shape[3] for one in levels]
    assert len(anchors) == sum(counts)
    last = anchors[-counts[-1] :].view(6, 6, 3, 4)
    centres = (last[..., :2] + last[..., 2:]) / 2
    torch.testing.assert_close(centres[2, 3, 0], torch.tensor([48.0, 32.0]))
    areas = (last[0, 0, :, 2:] - last[0, 0, :, :2]).prod(1).sqrt()
    torch.testing.assert_close(areas, torch.full((3,), 64.0), atol=0.7, rtol=0)


def test_anchors_are_exact_in_mixed_precision():
    made = network()
    levels = [one.bfloat16() for one in maps().values()]
    half = made.anchor_generator(images(), levels)[0]
    assert half.dtype == torch.float32
    assert torch.equal(half, made.anchor_generator(images(), list(maps().values()))[0])


def test_losses_are_those_of_detectron2_written_out():
    made = network().train()
    boxes, losses = made(images(), maps(), [target()])
    assert len(boxes) == 1 and losses["loss_objectness"].shape == (1,)
    logits, deltas = made.head(list(maps().values()))
    anchors = made.anchor_generator(images(), list(maps().values()))
    labels, matched = made.assign_targets_to_anchors(anchors, [target()])
    positive, negative = (one[0] for one in made.fg_bg_sampler(labels))
    flat = torch.cat([one.permute(0, 2, 3, 1).reshape(-1) for one in logits])
    moved = torch.cat(
        [one.view(3, 4, *one.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4) for one in deltas]
    )
    entropy = torch.zeros(())
    distance = torch.zeros(())
    for i in (positive | negative).nonzero()[:, 0].tolist():
        share = flat[i].sigmoid()
        entropy = entropy - (share if positive[i] else 1 - share).log()
    for i in positive.nonzero()[:, 0].tolist():
        anchor, box = anchors[0][i], matched[0][i]
        sides, own = anchor[2:] - anchor[:2], box[2:] - box[:2]
        centre, there = anchor[:2] + sides / 2, box[:2] + own / 2
        wanted = torch.cat([(there - centre) / sides, (own / sides).log()])
        distance = distance + (moved[i] - wanted).abs().sum()
    assert int(positive.sum()) >= 2
    torch.testing.assert_close(losses["loss_objectness"][0], entropy / 256)
    torch.testing.assert_close(losses["loss_rpn_box_reg"][0], distance / 256)


def test_an_image_without_objects_teaches_the_background():
    made = network().train()
    empty = target(BOXES[:0])
    _, losses = made(images(), maps(), [empty])
    assert losses["loss_rpn_box_reg"].item() == 0 and losses["loss_objectness"].item() > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(one.grad).all() for one in made.parameters())


def test_anchors_in_crowds_are_no_background():
    made = network()
    anchors = made.anchor_generator(images(), list(maps().values()))
    crowd = torch.tensor([[0.0, 0, 96, 48]])
    plain, _ = made.assign_targets_to_anchors(anchors, [target()])
    labels, _ = made.assign_targets_to_anchors(anchors, [target(crowds=crowd)])
    changed = (plain[0] != labels[0]).nonzero()[:, 0]
    assert (
        len(changed) > 100 and (plain[0][changed] == 0).all() and (labels[0][changed] == -1).all()
    )
    centres = (anchors[0][changed, 1] + anchors[0][changed, 3]) / 2
    assert centres.max() <= 48
    assert torch.equal(plain[0] == 1, labels[0] == 1)  # objects inside a crowd stay objects


def test_overlaps_are_those_of_torchvision():
    torch.manual_seed(0)
    boxes = torch.rand(50, 4) * 40 + torch.tensor([0.0, 0, 40, 40])
    anchors = torch.rand(300, 4) * 40 + torch.tensor([0.0, 0, 40, 40])
    torch.testing.assert_close(overlaps(boxes, anchors), box_iou(boxes, anchors))
