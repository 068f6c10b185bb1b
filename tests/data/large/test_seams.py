"""Boxes of tiles become those of one image: each object once, whatever the seams."""

import numpy as np
import pytest

pytest.importorskip("torchvision")

from torchmae.data.large.seams import at_seams, without_doubles
from torchmae.windows import starts

SIZE = (500, 700)


def tiles_of(side: int, overlap: int) -> np.ndarray:
    rows, columns = (starts(length, side, side - overlap) for length in SIZE)
    return np.array([(x, y, x + side, y + side) for y in rows for x in columns])


def iou(one: np.ndarray, other: np.ndarray) -> float:
    shared = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    inside = np.prod(shared.clip(0))
    return inside / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - inside)


@pytest.mark.parametrize("seed", range(4))
def test_each_object_is_found_once(seed):
    """By a detector that sees of each tile what is in it, to a pixel, and is as sure of parts."""
    draw = np.random.default_rng(seed)
    tiles, objects, grown = tiles_of(128, 48), [], np.array([-2, -2, 2, 2])
    while len(objects) < 60:  # apart from each other, up to the image's edge
        w, h = draw.integers(8, 44, 2)
        x, y = draw.integers(0, SIZE[1] - w + 1), draw.integers(0, SIZE[0] - h + 1)
        new = np.array([x, y, x + w, y + h], dtype=float)
        if not any(iou(new + grown, old) for old in objects):
            objects.append(new)
    seen, scores, numbers = [], [], []
    for number, tile in enumerate(tiles):
        for one in objects:
            part = np.clip(one, [*tile[:2]] * 2, [*tile[2:]] * 2)
            if (part[2:] - part[:2] < 3).any():
                continue
            shifted = part + draw.uniform(-0.5, 0.5, 4) * (part == one)
            seen.append(np.clip(shifted, [*tile[:2]] * 2, [*tile[2:]] * 2))
            scores.append(draw.uniform(0.3, 1))
            numbers.append(number)
    boxes, found_in = np.array(seen), np.array(numbers)
    assert len(boxes) > 80
    cut, held = at_seams(boxes, found_in, tiles, SIZE)
    own = np.flatnonzero(~held)
    left = own[without_doubles(boxes[own], np.array(scores)[own], np.zeros(len(own), int))]
    assert len(left) == len(objects) and not cut[left].any()
    for one in objects:
        assert max(iou(one, box) for box in boxes[left]) > 0.7


def test_parts_stay_where_no_tile_holds_the_whole():
    tiles = np.array([[0, 0, 100, 100], [80, 0, 180, 100]])
    boxes = np.array([[60, 20, 100, 40], [80, 20, 120, 40], [82, 60, 99.5, 70], [0, 90, 9, 100.0]])
    cut, held = at_seams(boxes, np.array([0, 1, 0, 0]), tiles, (100, 180))
    assert cut.tolist() == [True, True, True, False]
    assert held.tolist() == [False, False, True, False]
    # The tile that holds the third was empty, or could not be read.
    alone = at_seams(boxes[[0, 2]], np.array([0, 0]), tiles[:1], (100, 180))
    assert [one.tolist() for one in alone] == [[True, True], [False, False]]


def test_doubles_of_one_class_are_left_out():
    draw = np.random.default_rng(0)
    far = 100_000  # where single precision is too coarse for areas
    corners = draw.uniform(far, far + 60, (80, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(5, 30, (80, 2))], axis=1)
    scores, classes = draw.permutation(80) / 80, draw.integers(0, 2, 80)
    kept: list[int] = []
    for k in np.argsort(-scores):
        if not any(classes[k] == classes[j] and iou(boxes[k], boxes[j]) > 0.5 for j in kept):
            kept.append(int(k))
    found = without_doubles(boxes, scores, classes)
    assert found.tolist() == kept and len(kept) < 80
    assert len(without_doubles(boxes[:0], scores[:0], classes[:0])) == 0
