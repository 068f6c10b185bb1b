"""Crops of images with objects: boxes and masks follow them, and never fill memory."""

import json
import time
import tracemalloc

import numpy as np
import pytest
import torch
from helpers.objects import coco_set, draw, write_coco, yolo_set
from PIL import Image

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.dense.detection import (
    SIDE,
    DetectionCrop,
    notes_of,
    object_sides,
    open_annotated,
    open_sets,
    other_sizes,
    place_objects,
    rle_columns,
)
from torchmae.data.dense.find import Split
from torchmae.data.dense.objects import Objects, decode_rle, encode_rle
from torchmae.data.dense.placement import Placement, ScaleJitterCrop, place_image, place_labels
from torchmae.data.dense.segmentation import repr_of
from torchmae.errors import UserError


def objects_of(found, masks="rle", crowd=None) -> Objects:
    boxes = np.array([box for _, box, _ in found], dtype=np.float32).reshape(-1, 4)
    classes = np.array([number for number, _, _ in found], dtype=np.int64)
    crowd = np.zeros(len(found), dtype=bool) if crowd is None else np.array(crowd)
    return Objects(boxes, classes, crowd, tuple(encode_rle(mask) for _, _, mask in found))


def canvas_masks(found, placement):
    """Each mask on the canvas, the long way: the whole image, nearest pixels."""
    return [place_labels(mask.astype(np.uint8), placement, 0).numpy() > 0 for _, _, mask in found]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
def test_masks_and_boxes_are_where_the_pixels_are(flip, scale):
    image, found = draw(3, most=4, least=4)
    height, width = image.shape[:2]
    placement = Placement(round(height * scale), round(width * scale), 2, 5, (48, 64), flip)
    placed = place_objects(objects_of(found), placement, height, width, masks=True)
    whole = canvas_masks(found, placement)
    visible = [mask for mask in whole if mask.any()]
    assert len(placed["boxes"]) == len(visible)
    for box, square, mask in zip(placed["boxes"].numpy(), placed["masks"].numpy(), visible):
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, tight, atol=1.1)
        # Each pixel of the canvas in the box, looked up in the square.
        x = np.clip(np.floor((np.arange(64) + 0.5 - box[0]) / (box[2] - box[0]) * SIDE), -1, SIDE)
        y = np.clip(np.floor((np.arange(48) + 0.5 - box[1]) / (box[3] - box[1]) * SIDE), -1, SIDE)
        padded = np.pad(square, 1).astype(bool)
        again = padded[y.astype(int)[:, None] + 1, x.astype(int) + 1]
        assert (again != mask).mean() < 0.02


def test_polygons_and_runs_give_the_same_squares():
    _, found = draw(3, most=4, least=4)
    boxes = [(0, box, None) for _, box, _ in found]
    corners = [
        np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float32)
        for _, (x1, y1, x2, y2), _ in boxes
    ]
    rectangles = []
    for _, (x1, y1, x2, y2), _ in boxes:
        mask = np.zeros((48, 64), dtype=bool)
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
        rectangles.append((0, (x1, y1, x2, y2), mask))
    runs = objects_of(rectangles)
    polygons = Objects(runs.boxes, runs.classes, runs.crowd, tuple((one,) for one in corners))
    for placement in (
        Placement(48, 64, 0, 0, (48, 64)),
        Placement(96, 128, 20, 30, (48, 64), True),
        Placement(33, 44, 0, 0, (48, 64), True),
    ):
        a, b = (place_objects(some, placement, 48, 64, True) for some in (runs, polygons))
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=0.35, rtol=0)
        assert (a["masks"] != b["masks"]).float().mean() < 0.02


def test_crowds_are_regions_and_no_objects():
    _, found = draw(3, most=4, least=4)
    objects = objects_of(found, crowd=[False, True, False, False])
    placed = place_objects(objects, Placement(48, 64, 0, 0, (48, 64)), 48, 64, True)
    assert len(placed["boxes"]) == len(placed["masks"]) == 3 and len(placed["crowds"]) == 1
    np.testing.assert_array_equal(placed["crowds"][0], objects.boxes[1])
    assert placed["labels"].tolist() == [found[i][0] + 1 for i in (0, 2, 3)]
    away = place_objects(objects, Placement(48, 64, 47, 63, (48, 64)), 48, 64, True)
    assert len(away["crowds"]) == 0


def test_what_an_edge_leaves_of_an_object_has_the_box_of_its_mask():
    """An L of which the crop shows the upright only: the clipped box would be three times as
    wide."""
    mask = np.zeros((40, 40), dtype=bool)
    mask[0:36, 0:5] = True
    mask[30:36, 0:30] = True
    objects = objects_of([(0, (0, 0, 30, 36), mask)])
    placed = place_objects(objects, Placement(40, 40, 0, 0, (28, 40)), 40, 40, True)
    np.testing.assert_allclose(placed["boxes"][0], [0, 0, 5, 28], atol=0.4)
    assert placed["masks"][0].float().mean() > 0.95
    hidden = place_objects(objects, Placement(40, 40, 0, 8, (28, 40)), 40, 40, True)
    assert len(hidden["boxes"]) == 0  # its box is on the canvas, none of its pixels is


def test_objects_without_masks_keep_their_boxes():
    objects = Objects(
        np.array([[1, 2, 11, 12], [20, 20, 20.2, 30]], dtype=np.float32),
        np.zeros(2, dtype=np.int64),
        np.zeros(2, dtype=bool),
        (None, None),
    )
    placed = place_objects(objects, Placement(40, 40, 0, 0, (40, 40)), 40, 40, True)
    assert placed["boxes"].tolist() == [[1, 2, 11, 12]]  # the other is less than a pixel wide
    assert placed["has_mask"].tolist() == [False] and placed["masks"].shape == (1, SIDE, SIDE)
    assert set(place_objects(objects, Placement(40, 40, 0, 0, (40, 40)), 40, 40, False)) == {
        "boxes",
        "labels",
        "crowds",
    }


def test_columns_of_runs():
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random((7, 9)) < random.random()
        rle = encode_rle(mask)
        first, last = sorted(random.choice(10, 2, replace=False).tolist())
        np.testing.assert_array_equal(rle_columns(rle, first, last), mask[:, first:last])
        np.testing.assert_array_equal(decode_rle(rle), mask)


def test_many_nuclei_at_1024_pixels_take_little_memory():
    """375 objects: as whole masks 393 MB a crop as bytes, 1.6 GB as floats."""
    found = []
    for k in range(375):
        y, x = 50 * (k // 20) + 5, 50 * (k % 20) + 5
        mask = np.zeros((1024, 1024), dtype=bool)
        mask[y : y + 30, x : x + 40] = True
        rle = encode_rle(mask)
        found.append(((x, y, x + 40, y + 30), rle))
    objects = Objects(
        np.array([box for box, _ in found], dtype=np.float32),
        np.zeros(375, dtype=np.int64),
        np.zeros(375, dtype=bool),
        tuple(rle for _, rle in found),
    )
    image = np.zeros((1024, 1024, 3), dtype=np.uint8)
    crop = DetectionCrop(ScaleJitterCrop((1024, 1024), 0, (1.0, 1.0), "own"), (0, 0, 0))
    tracemalloc.start()
    start = time.process_time()
    _, placed = crop(image, objects, 0, 0)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert placed["masks"].shape == (375, SIDE, SIDE) and placed["masks"].all()
    assert placed["masks"].numel() < 5e6 and peak < 40e6
    assert seconds < 5


def test_a_crop_is_a_function_of_seed_epoch_and_sample():
    image, found = draw(3, most=4, least=4)
    objects = objects_of(found)
    crop = DetectionCrop(ScaleJitterCrop((64, 64), 7, (0.5, 1.5), "long"), (1, 2, 3))
    pixels, target = crop(image, objects, 2, 5)
    again, same = crop(image, objects, 2, 5)
    assert torch.equal(pixels, again)
    assert all(torch.equal(target[name], same[name]) for name in target)
    other, _ = crop(image, objects, 3, 5)
    assert not torch.equal(pixels, other)
    placement = crop.place.placement(48, 64, 2, 5)
    assert torch.equal(pixels, place_image(image, placement, (1, 2, 3)))


def test_sets_with_and_without_a_split(tmp_path):
    coco_set(tmp_path / "a", {"train": 6, "val": 2}, least=1)
    decode = DecodeOptions()
    sets = open_sets(str(tmp_path / "a"), None, decode)
    assert (len(sets.train.objects), len(sets.val.objects)) == (6, 2) and sets.train.has_masks
    part = str(tmp_path / "a/annotations/instances_train.json")
    held = open_sets(part, None, decode, Split(0.34, seed=3))
    names = [one.name(i) for one in (held.train_source, held.val_source) for i in range(len(one))]
    assert len(held.val.objects) == 2 and sorted(names) == [f"{i:03d}.png" for i in range(1, 7)]
    few = open_sets(part, str(tmp_path / "a/annotations/instances_val.json"), decode, Split(0.2, 3))
    assert (len(few.train.objects), len(few.val.objects)) == (3, 2)
    measured, note = open_annotated(str(tmp_path / "a"), decode, ("disk", "box"))
    assert len(measured.objects) == 2 and "measured on its validation part" in note
    assert measured.classes == ("disk", "box")
    yolo = open_sets(str(yolo_set(tmp_path / "b", {"train": 3, "val": 2})), None, decode)
    assert not yolo.train.has_masks and yolo.layout == "YOLO's data.yaml"
    assert sets.fingerprint() != held.fingerprint() and len(object_sides(sets.train.objects)) > 3


def test_patterns_choose_images_with_their_objects_and_findings(tmp_path):
    coco_set(tmp_path / "a", {"train": 6, "val": 2}, least=1)
    path = tmp_path / "a/annotations/instances_train.json"
    known = json.loads(path.read_text())
    image = known["images"][1]
    bad = known["annotations"][0] | {"image_id": image["id"], "bbox": [500, 500, 9, 9], "id": 99}
    unknown = bad | {"id": 98, "image_id": 12345}
    known["annotations"] += [bad | {"segmentation": []}, unknown]
    path.write_text(json.dumps(known))
    every = open_sets(str(tmp_path / "a"), None, DecodeOptions())
    listing = Listing(exclude=(image["file_name"],))
    some = open_sets(str(tmp_path / "a"), None, DecodeOptions(), listing=listing)
    assert [one.name(0) for one in (every.train_source, some.train_source)] == ["001.png"] * 2
    assert (len(every.train.objects), len(some.train.objects)) == (6, 5)
    assert repr_of(every.train.objects[2]) == repr_of(some.train.objects[1])
    assert any("boxes outside" in line for line in every.lines())
    assert not any("boxes outside" in line for line in some.lines())
    only = Listing(include=("00[1-3].png", "00[78].png"))
    few = open_sets(str(tmp_path / "a"), None, DecodeOptions(), listing=only)
    assert len(few.train.objects) == 3 and any("12345" in str(file) for file in few.findings)
    one = Listing(exclude=("007.png",))
    measured, _ = open_annotated(str(tmp_path / "a"), DecodeOptions(), ("disk", "box"), one)
    assert len(measured.objects) == 1
    with pytest.raises(UserError, match="leaves nothing of the 2 images"):
        open_sets(
            str(tmp_path / "a"), None, DecodeOptions(), listing=Listing(exclude=("007*", "008*"))
        )


def test_what_is_odd_about_a_set_is_said(tmp_path):
    coco_set(tmp_path / "a", {"train": 4, "val": 2}, least=1)
    folder = tmp_path / "a" / "annotations"
    image = dict(id=1, file_name="001.png", width=64, height=48)
    one = dict(image_id=1, category_id=1, bbox=[1, 1, 9, 9], iscrowd=0)
    names = ("x", "y", "z")
    write_coco(folder / "instances_train.json", [image], [one], names)
    other = one | {"category_id": 11}
    write_coco(
        folder / "instances_val.json",
        [image, image | {"id": 2, "file_name": "002.png"}],
        [other],
        names,
    )
    sets = open_sets(str(tmp_path / "a"), None, DecodeOptions())
    assert notes_of(sets) == [
        "1 class only in the validation images, and so never learned: y",
        "1 class only in the training images, and so never measured: x",
        "1 class in no image: z",
        "0 training and 1 validation images have no objects",
    ]
    write_coco(folder / "instances_train.json", [image], [one | {"iscrowd": 1}], names)
    with pytest.raises(UserError, match="none of the 1 images to train on has an object"):
        notes_of(open_sets(str(tmp_path / "a"), None, DecodeOptions()))


def test_images_of_another_size_are_found(tmp_path):
    coco_set(tmp_path / "a", {"train": 4, "val": 2}, least=1)
    Image.new("RGB", (48, 64)).save(tmp_path / "a/images/002.png")
    sets = open_sets(str(tmp_path / "a"), None, DecodeOptions())
    assert [other_sizes(part) for part in sets.parts] == [[1], []]
    left = sets.without([1], [])
    assert [left.train_source.name(i) for i in range(3)] == ["001.png", "003.png", "004.png"]
    assert len(left.train.objects) == 3 and len(left.val.objects) == 2
    assert "1, such as 002.png, 48 x 64, not 64 x 48" in left.lines()[0]
