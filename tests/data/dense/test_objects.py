"""Masks of objects: polygons, run lengths, label maps."""

import numpy as np
import pytest
from matplotlib.path import Path

from torchmae.data.dense.objects import (
    Objects,
    Rle,
    counts_of_text,
    decode_rle,
    encode_rle,
    rasterize,
    text_of_counts,
    to_bitmap,
)
from torchmae.errors import UserError


def square(x1, y1, x2, y2):
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float32)


def objects(boxes, classes, crowd=None, masks=()):
    count = len(boxes)
    return Objects(
        np.array(boxes, dtype=np.float32).reshape(count, 4),
        np.array(classes, dtype=np.int64),
        np.array(crowd or [False] * count, dtype=bool),
        masks,
    )


def test_polygons_equal_matplotlib():
    generator = np.random.default_rng(0)
    centers = np.stack(np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5), -1).reshape(-1, 2)
    for corners in (3, 4, 5, 9):
        # Around a point, by angle: a polygon without crossings, partly outside of the image.
        angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
        radii = generator.uniform(3, 14, corners)
        polygon = np.stack([15 + radii * np.cos(angles), 10 + radii * np.sin(angles)], 1)
        polygon = polygon.astype(np.float32)
        expected = Path(polygon).contains_points(centers).reshape(20, 30)
        assert np.array_equal(rasterize([polygon], 20, 30), expected)


def test_squares_cover_their_pixels_and_are_united():
    found = rasterize([square(1, 2, 5, 4), square(4, 3, 9, 6)], 6, 8)
    expected = np.zeros((6, 8), dtype=bool)
    expected[2:4, 1:5] = True
    expected[3:6, 4:8] = True
    assert np.array_equal(found, expected)


def test_run_lengths_go_there_and_back():
    generator = np.random.default_rng(0)
    masks = [generator.random((13, 17)) < share for share in (0.0, 0.1, 0.5, 1.0)]
    big = np.zeros((200, 300), dtype=bool)
    big[20:180, 30:299] = True
    for mask in [*masks, big]:
        rle = encode_rle(mask)
        assert np.array_equal(decode_rle(rle), mask)
        assert counts_of_text(text_of_counts(rle.counts)) == rle.counts


def test_compressed_run_lengths_of_coco():
    """Of the documented format: 5 bits a character from "0" on, bit 6 for more, a sign bit."""
    assert counts_of_text("5") == (5,)
    assert counts_of_text("`1") == (48,)  # 48 = 16 + 32 * 1: 16 + 32 (more) + 48, 1 + 48
    assert text_of_counts((6, 1, 40, 4, 5, 4, 5, 4, 21)) == "61X13mN000`0"  # COCO's own example


@pytest.mark.parametrize("text", ["`", "5\x7f"])
def test_damaged_run_lengths(text):
    with pytest.raises(UserError):
        counts_of_text(text)


def test_run_lengths_of_another_image():
    with pytest.raises(UserError, match="4x3 pixels in an image of 3x4"):
        to_bitmap(Rle(3, 4, (12,)), 4, 3)
    with pytest.raises(UserError, match="11 pixels for a mask of 4x3"):
        decode_rle(Rle(3, 4, (5, 6)))


def test_label_map_has_small_objects_in_front_and_ignores_crowds():
    masks = ((square(1, 1, 3, 3),), (square(0, 0, 6, 6),), (square(6, 0, 8, 2),))
    found = objects(
        [[1, 1, 3, 3], [0, 0, 6, 6], [6, 0, 8, 2]], [4, 0, 1], [False, False, True], masks
    ).label_map(7, 9)
    expected = np.zeros((7, 9), dtype=np.uint8)
    expected[:6, :6] = 1
    expected[1:3, 1:3] = 5
    expected[:2, 6:8] = 255
    assert np.array_equal(found, expected)


def test_an_object_without_a_mask_is_its_box():
    found = objects([[1, 1, 4, 3]], [0])
    assert not found.has_masks and found.mask(0, 5, 5).sum() == 6


def test_an_image_without_objects():
    found = objects([], [])
    assert found.has_masks and not found.label_map(4, 4).any()
