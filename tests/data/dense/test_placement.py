"""An image on a canvas: labels, boxes and points go where its pixels go."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torchmae.data.dense.placement import (
    FitResize,
    Placement,
    ScaleJitterCrop,
    fitted,
    place_boxes,
    place_image,
    place_labels,
    place_points,
    unplace_boxes,
)

CASES = [
    Placement(48, 64, 0, 0, (48, 64)),
    Placement(96, 128, 13, 40, (32, 32), flip=True),
    Placement(24, 32, 0, 0, (40, 40)),
    Placement(24, 32, 0, 0, (40, 40), flip=True),
    Placement(60, 80, 20, 0, (40, 96), flip=True),
]


def picture() -> np.ndarray:
    """48 x 64 in blocks of 16 x 16 of different colors; interpolation keeps their insides."""
    blocks = np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("placement", CASES)
def test_labels_follow_pixels(placement):
    image = picture()
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4).repeat(16, axis=0).repeat(16, axis=1)
    canvas = place_image(image, placement, fill=(1, 2, 3))
    placed = place_labels(labels, placement)
    assert canvas.shape[1:] == placed.shape == placement.size
    rows, columns = placement.covered
    outside = torch.ones(placement.size, dtype=torch.bool)
    outside[:rows, :columns] = False
    assert (placed[outside] == 255).all() and (placed[~outside] < 12).all()
    assert (torch.tensor([1, 2, 3], dtype=torch.uint8) == canvas[:, outside].T).all()
    # Inside of a block (its neighbors have its label too) the pixel has its color.
    around = F.pad(placed[None].float(), (2, 2, 2, 2), value=-1)
    same = F.max_pool2d(around, 5, 1)[0] == -F.max_pool2d(-around, 5, 1)[0]
    inside = same & ~outside
    assert inside.any()
    colors = torch.from_numpy(image[::16, ::16].reshape(12, 3))
    assert (colors[placed[inside]] == canvas[:, inside].T).all()


def test_labels_are_nearest_exact():
    labels = np.random.default_rng(1).integers(0, 9, (31, 45))
    for h, w in [(62, 90), (17, 100), (31, 45), (5, 3)]:
        found = place_labels(labels, Placement(h, w, 0, 0, (h, w)))
        expected = F.interpolate(
            torch.from_numpy(labels)[None, None].double(), size=(h, w), mode="nearest-exact"
        )[0, 0]
        assert torch.equal(found, expected.long())


@pytest.mark.parametrize("placement", CASES)
def test_boxes_follow_pixels(placement):
    """The box of a rectangle of pixels, placed, is the box of the placed pixels to a pixel."""
    labels = np.zeros((48, 64), dtype=np.uint8)
    labels[10:30, 20:44] = 1
    boxes = np.array([[20, 10, 44, 30]], dtype=np.float32)
    (found,) = place_boxes(boxes, placement, 48, 64)
    rows, columns = np.nonzero(place_labels(labels, placement, fill=0).numpy())
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(found - expected).max() <= 1


def test_boxes_go_back():
    boxes = np.array([[20, 10, 44, 30], [0, 0, 64, 48]], dtype=np.float32)
    for placement in (CASES[0], CASES[2], CASES[3]):  # the whole image is on the canvas
        placed = place_boxes(boxes, placement, 48, 64)
        np.testing.assert_allclose(unplace_boxes(placed, placement, 48, 64), boxes, atol=1e-4)


def test_a_box_outside_has_no_area():
    placement = Placement(96, 128, 64, 96, (32, 32))
    box = place_boxes(np.array([[0, 0, 5, 5]], dtype=np.float32), placement, 48, 64)[0]
    assert box[2] <= box[0] or box[3] <= box[1]


def test_points_are_corners_of_boxes():
    boxes = np.array([[20, 10, 40, 30]], dtype=np.float32)
    placement = Placement(96, 128, 0, 0, (96, 128), flip=True)
    corners = place_points(boxes.reshape(2, 2), placement, 48, 64)
    found = place_boxes(boxes, placement, 48, 64)[0]
    assert sorted(corners[:, 0]) == [found[0], found[2]] and found[0] == 128 - 80


def test_fit():
    assert fitted(48, 64, (32, 32), "long") == (24, 32)
    assert fitted(48, 64, (32, 32), "short") == (32, 43)
    assert FitResize((32, 32)).placement(48, 64) == Placement(24, 32, 0, 0, (32, 32))
    assert FitResize((32, 32), "short").placement(48, 64) == Placement(32, 43, 0, 5, (32, 32))


def test_jitter_is_a_function_of_seed_epoch_and_sample():
    jitter = ScaleJitterCrop((32, 32), seed=3, scale=(0.5, 2.0))
    draws = [jitter.placement(48, 64, epoch, sample) for epoch in range(20) for sample in range(20)]
    assert draws == [
        jitter.placement(48, 64, epoch, sample) for epoch in range(20) for sample in range(20)
    ]
    assert len(set(draws)) > 300
    scales = np.array([draw.height / 32 for draw in draws])
    assert 0.49 <= scales.min() < 0.6 and 1.9 < scales.max() <= 2.0
    assert 0.4 < np.mean([draw.flip for draw in draws]) < 0.6
    for draw in draws:
        assert 0 <= draw.top <= max(0, draw.height - 32)
        assert 0 <= draw.left <= max(0, draw.width - 32)
    large = [draw for draw in draws if draw.height > 60]
    assert {draw.top for draw in large} & {0, 1, 2} and max(draw.top for draw in large) > 25
