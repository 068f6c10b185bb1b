"""Objects drawn on images."""

import numpy as np
import torch

from torchmae.data.dense.detection import Detections
from torchmae.data.dense.objects import encode_rle
from torchmae.report.detection import CROWDED, draw_found, draw_objects


def test_boxes_and_masks_are_drawn_where_they_are():
    image = torch.zeros(1, 400, 600, dtype=torch.uint8)  # grey, large enough to stay as it is
    mask = np.zeros((400, 600), dtype=bool)
    mask[100:200, 150:250] = True
    box = np.array([[150, 100, 250, 200]], dtype=np.float32)
    number = np.zeros(1, dtype=np.int64)
    plain = draw_objects(image, box, number, [""])
    assert plain.shape == (3, 400, 600) and plain.dtype == torch.uint8
    drawn = plain.sum(0) > 0
    rows, columns = drawn.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (100, 199, 150, 249)
    assert not drawn[105:195, 155:245].any() and not image.any()  # the original stays
    tinted = draw_objects(image, box, number, [""], [encode_rle(mask)]).sum(0) > 0
    assert torch.equal(tinted, torch.from_numpy(mask))
    corners = np.array([[150, 100], [250, 100], [250, 200], [150, 200]], dtype=np.float32)
    polygons = draw_objects(image, box, number, [""], [(corners,)]).sum(0) > 0
    assert torch.equal(polygons, tinted)
    named = draw_objects(image, box, number, ["cell"])
    assert not torch.equal(named, plain)
    many = np.repeat(box, CROWDED + 1, axis=0)
    crowded = draw_objects(image, many, np.zeros(len(many), dtype=np.int64), ["cell"] * len(many))
    assert not (crowded.sum(0) > 0)[:100].any()  # names would hide the image


def test_small_images_are_enlarged_and_unsure_objects_left_out():
    image = torch.full((3, 30, 40), 90, dtype=torch.uint8)
    found = Detections(
        np.array([[5, 5, 20, 20], [10, 10, 30, 25]], dtype=np.float32),
        np.array([0.9, 0.2], dtype=np.float32),
        np.array([0, 1]),
        None,
    )
    shown = draw_found(image, found, ["a", "b"], 0.5)
    assert shown.shape == (3, 384, 512)
    one = draw_found(image, found._replace(scores=np.array([0.9, 0.1])), ["a", "b"], 0.5)
    assert torch.equal(shown, one)
    nothing = draw_found(image, found, ["a", "b"], 0.95)
    assert (nothing == 90).all()
