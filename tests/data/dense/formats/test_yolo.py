"""YOLO's folders: boxes and polygons in shares of an image's sides."""

import numpy as np
import pytest
from helpers.objects import draw, yolo_set
from PIL import Image

from torchmae.data.dense.formats import yolo
from torchmae.errors import UserError


def small(tmp_path, labels, yaml="train: images\nnames: [cell, 'it''s']\n"):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text(labels)
    (tmp_path / "data.yaml").write_text(yaml)
    return yolo.read(yolo.find(tmp_path)["train"])


def test_boxes_are_those_that_were_drawn(tmp_path):
    parts = yolo.find(yolo_set(tmp_path, {"train": 5, "val": 2}))
    assert parts.keys() == yolo.find(tmp_path / "data.yaml").keys() == {"train", "val"}
    for name, first in (("train", 1), ("val", 6)):
        found = yolo.read(parts[name])
        assert found.classes == ("box", "disk") and not found.has_masks
        for i, objects in enumerate(found.objects):
            _, drawn = draw(first + i)
            boxes = np.array([box for _, box, _ in drawn]).reshape(-1, 4)
            np.testing.assert_allclose(objects.boxes, boxes, atol=1e-4)
            assert objects.classes.tolist() == [number for number, _, _ in drawn]
        assert found.sizes[0] == (48, 64)


def test_polygons(tmp_path):
    found = small(tmp_path, "1 0.25 0.5 0.5 0.5 0.5 1 0.25 1\n0 0.5 0.5 0.1 0.2\n")
    objects = found.objects[0]
    assert found.classes == ("cell", "it's")
    assert objects.boxes[0].tolist() == [10, 10, 20, 20]
    assert objects.mask(0, 20, 40).sum() == 100
    np.testing.assert_allclose(objects.boxes[1], [18, 8, 22, 12], atol=1e-5)
    assert objects.masks[1] is None and not found.findings.lines()


@pytest.mark.parametrize(
    "line, said, left",
    [
        ("0 0.5 0.5", "lines that are no labels", 0),
        ("0 a b c d", "lines that are no labels", 0),
        ("0 0.5 0.5 nan 0.5", "lines that are no labels", 0),
        ("0 0.5 0.5 0 0", "empty boxes", 0),
        ("0 1.5 0.5 0.1 0.1", "boxes outside of their image", 0),
        ("0 0.9 0.5 0.4 0.4", "boxes that reach over their image, clipped", 1),
        ("2 0.5 0.5 0.1 0.1", "objects of a class that has no name", 0),
        ("-1 0.5 0.5 0.1 0.1", "objects of a class that has no name", 0),
    ],
)
def test_what_is_wrong_is_counted_and_named(tmp_path, line, said, left):
    found = small(tmp_path, line)
    assert len(found.findings.lines()) == 1 and said in found.findings.lines()[0]
    assert "1, such as a.png, line 1 of its labels" in found.findings.lines()[0]
    assert len(found.objects[0]) == left


def test_an_image_without_labels_has_no_objects(tmp_path):
    yolo_set(tmp_path, {"train": 3})
    (tmp_path / "labels/train/002.txt").unlink()
    (tmp_path / "images/train/003.png").write_bytes(b"no image")
    found = yolo.read(yolo.find(tmp_path)["train"])
    assert len(found.source) == 3 and len(found.objects[1]) == 0 == len(found.objects[2])
    assert found.findings.lines() == [
        "images without a file of labels, used as images without objects: 1, such as 002.png"
    ]


def test_layouts_of_data_yaml(tmp_path):
    """Exports of Roboflow, which name a folder beside the file as ../train; lists of images."""
    for part in ("train", "valid"):
        (tmp_path / part / "images").mkdir(parents=True)
        (tmp_path / part / "labels").mkdir()
        Image.new("RGB", (40, 20)).save(tmp_path / part / "images" / "a.png")
        (tmp_path / part / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    names = "names: ['cell']"
    (tmp_path / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\n{names}")
    (tmp_path / "all.txt").write_text("./train/images/a.png\n\nvalid/images/a.png\n")
    parts = yolo.find(tmp_path)
    assert list(parts) == ["train", "val"]
    assert [len(yolo.read(part).objects[0]) for part in parts.values()] == [1, 1]
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: all.txt\n{names}")
    found = yolo.read(yolo.find(tmp_path)["train"])
    assert [found.source.name(i) for i in range(2)] == ["train/images/a.png", "valid/images/a.png"]
    assert [len(one) for one in found.objects] == [1, 1]


@pytest.mark.parametrize(
    "yaml, message",
    [
        ("train: nowhere\nnames: [a]", "train is nowhere, which is not there"),
        ("train: images\nnames: {1: a}", "names has to number its classes 0, 1"),
        ("train: images\nnames: 3", "names no classes"),
        ("train: labels\nnames: [a]", "there are no images in train, labels"),
        ("train: [", "data.yaml cannot be read"),
    ],
)
def test_damaged_files(tmp_path, yaml, message):
    with pytest.raises(UserError, match=message):
        small(tmp_path, "", yaml)


def test_no_labels_at_all(tmp_path):
    yolo_set(tmp_path, {"train": 2})
    for path in (tmp_path / "labels/train").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="none of the 2 images that .*data.yaml names has labels"):
        yolo.read(yolo.find(tmp_path)["train"])
    assert yolo.find(tmp_path / "images") == {}
