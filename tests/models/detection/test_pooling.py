"""RoIAlign with half-pixel coordinates, and the masks of boxes."""

import pytest
import torch

pytest.importorskip("torchvision")

from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from torchmae.models.detection.pooling import AlignedPool, crop_masks

STRIDES = (4, 8, 16, 32)
SIDE = 256


def maps(batch=2, channels=3):
    torch.manual_seed(0)
    return [torch.randn(batch, channels, SIDE // stride, SIDE // stride) for stride in STRIDES]


def random_boxes(count, seed=0, largest=200):
    torch.manual_seed(seed)
    low = torch.rand(count, 2) * 100
    sides = 4 + torch.rand(count, 2) ** 2 * largest
    return torch.cat([low, (low + sides).clamp(max=SIDE)], dim=1)


def test_levels_are_those_of_feature_pyramids():
    pool = AlignedPool(7, STRIDES)
    boxes = random_boxes(500, largest=900) * torch.tensor([1.0, 1, 4, 4])
    expected = LevelMapper(2, 5)([boxes])
    assert torch.equal(pool.levels(boxes), expected) and len(expected.unique()) == 4
    # With patches of 8 pixels, everything is half as large.
    assert torch.equal(AlignedPool(7, [s // 2 for s in STRIDES]).levels(boxes / 2), expected)


def test_pooled_features_are_aligned():
    """A map whose values are the coordinates of its pixels: a bin holds its own middle."""
    rows = (torch.arange(64.0) + 0.5) * 4
    grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"))[None]
    box = torch.tensor([[40.0, 60, 96, 88]])
    centre = torch.stack([torch.arange(7) * 4 + 62.0, torch.arange(7) * 8 + 44.0])
    levels = [grid, *maps(1, 2)[1:]]
    ours = AlignedPool(7, STRIDES)(levels, [box])
    torch.testing.assert_close(ours[0, 0, :, 0], centre[0])
    torch.testing.assert_close(ours[0, 1, 0, :], centre[1])
    # torchvision's own pooler is half a cell (2 pixels) beside it.
    theirs = MultiScaleRoIAlign(["0"], 7, 0)({"0": grid}, [box], [(SIDE, SIDE)])
    torch.testing.assert_close(theirs[0, 0, :, 0], centre[0] + 2)


def test_pooled_features_are_those_of_roi_align_on_each_level():
    levels, boxes = maps(), [random_boxes(30, 1), random_boxes(20, 2)]
    pool = AlignedPool(7, STRIDES)
    ours = pool(levels, boxes)
    at = 0
    for i, some in enumerate(boxes):
        for box, level in zip(some, pool.levels(some).tolist()):
            roi = torch.cat([torch.tensor([float(i)]), box])[None]
            one = roi_align(levels[level], roi, 7, 1 / STRIDES[level], 0, aligned=True)
            torch.testing.assert_close(ours[at], one[0])
            at += 1
    assert at == len(ours)


def test_without_boxes_there_are_gradients_still():
    """DDP waits for the gradient of every parameter."""
    levels = [one.requires_grad_() for one in maps()]
    found = AlignedPool(7, STRIDES)(levels, [torch.zeros(0, 4)] * 2)
    assert found.shape == (0, 3, 7, 7)
    found.sum().backward()
    assert all(one.grad is not None and not one.grad.any() for one in levels)


def test_masks_of_boxes_are_those_of_whole_masks():
    """What torchvision makes of whole masks by RoIAlign, from squares over the objects' boxes."""
    yy, xx = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    own = random_boxes(12, 3)
    whole, squares = [], []
    for x1, y1, x2, y2 in own.tolist():
        u, v = (xx - x1) / (x2 - x1) * 2 - 1, (yy - y1) / (y2 - y1) * 2 - 1
        whole.append(((u**2 + v**2 < 1) & (u + v < 0.5)).float())
        at = (torch.arange(112) + 0.5) / 112 * 2 - 1
        v, u = torch.meshgrid(at, at, indexing="ij")
        squares.append(((u**2 + v**2 < 1) & (u + v < 0.5)).to(torch.uint8))
    torch.manual_seed(0)
    sides = own[:, 2:] - own[:, :2]
    boxes = own + torch.cat([sides, sides], 1) * (torch.rand(12, 4) - 0.5) * 0.4
    rois = torch.cat([torch.arange(12.0)[:, None], boxes], dim=1)
    expected = roi_align(torch.stack(whole)[:, None], rois, 28, aligned=True)[:, 0] >= 0.5
    ours = crop_masks(torch.stack(squares), own, boxes, 28)
    wrong = (ours != expected.float()).float().mean((1, 2))
    assert wrong.max() < 0.08 and wrong.mean() < 0.035  # edges of small objects
    assert 0.2 < ours.mean() < 0.8
    # Half a cell beside: what an unaligned pooler would teach.
    beside = crop_masks(torch.stack(squares), own, boxes + torch.cat([sides, sides], 1) / 28, 28)
    assert (beside != expected.float()).float().mean() > 2 * wrong.mean()
