"""COCO's json: what is read, and what is said of what is wrong."""

import json

import numpy as np
import pytest
from helpers.objects import coco_set, draw, write_coco
from PIL import Image

from torchmae.data.dense.annotated import Annotated
from torchmae.data.dense.formats import coco
from torchmae.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return coco_set(tmp_path / "data", {"train": 6, "val": 2})


def one_image(tmp_path, annotations, **more) -> Annotated:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    image = dict(id=1, file_name="a.png", width=40, height=30, **more)
    path = write_coco(tmp_path / "train.json", [image], annotations)
    return coco.read(coco.find(path)["train"])


def box(x, y, w, h, **more):
    return {"image_id": 1, "category_id": 1, "bbox": [x, y, w, h], **more}


def test_objects_are_those_that_were_drawn(folder):
    parts = coco.find(folder)
    assert list(parts) == ["train", "val"]
    for name, first, count in (("train", 1, 6), ("val", 7, 2)):
        found = coco.read(parts[name])
        assert len(found.source) == count and found.classes == ("box", "disk")
        for i, objects in enumerate(found.objects):
            image, drawn = draw(first + i)
            assert found.source.name(i) == f"{first + i:03d}.png"
            assert objects.classes.tolist() == [number for number, _, _ in drawn]
            np.testing.assert_array_equal(
                objects.boxes, np.array([box for _, box, _ in drawn]).reshape(-1, 4)
            )
            for k, (_, _, mask) in enumerate(drawn):
                np.testing.assert_array_equal(objects.mask(k, *image.shape[:2]), mask)
        assert found.has_masks and not found.findings.lines()
    counts = [len(one) for one in coco.read(parts["train"]).objects]
    assert 0 in counts  # an image without objects stays


@pytest.mark.parametrize(
    "layout",
    ["annotations/instances_{}2017.json", "{}/_annotations.coco.json", "{}.json", "labels_{}.json"],
)
def test_layouts(tmp_path, layout):
    for part in ("train", "val"):
        path = tmp_path / layout.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{part}-0.png"
        inside = {"{}/_annotations.coco.json": part, "{}.json": f"images/{part}"}
        place = tmp_path / inside.get(layout, f"{part}2017")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place / name)
        write_coco(path, [dict(id=1, file_name=name, width=8, height=8)], [box(1, 1, 4, 4)])
    parts = coco.find(tmp_path)
    assert list(parts) == ["train", "val"]
    for found in parts.values():
        assert len(coco.read(found).objects[0]) == 1


def test_other_json_files_are_no_annotations(tmp_path):
    (tmp_path / "classes.json").write_text('{"cell": [1, 2, 3]}')
    (tmp_path / "list.json").write_text('["images", "annotations"]')
    assert coco.find(tmp_path) == {}
    assert coco.find(tmp_path / "classes.json") == {}
    assert coco.find(tmp_path / "missing.json") == {}


def test_a_validation_set_alone_is_one(folder):
    (folder / "annotations/instances_train.json").unlink()
    assert list(coco.find(folder)) == ["val"]


def test_several_sets_of_which_none_is_for_training(tmp_path):
    for name in ("a", "b"):
        write_coco(tmp_path / f"{name}.json", [], [])
    with pytest.raises(UserError, match=r"several sets \(a.json, b.json\), and none is called tr"):
        coco.find(tmp_path)


def test_crowds_polygons_and_runs(tmp_path):
    polygon = [2, 3, 12, 3, 12, 13, 2, 13]
    runs = dict(size=[30, 40], counts=[30, 10, 1160])
    found = one_image(
        tmp_path,
        [
            box(2, 3, 10, 10, segmentation=[polygon]),
            box(0, 0, 10, 10, segmentation=runs, iscrowd=1),
            dict(image_id=1, category_id=1, segmentation=runs),  # its box is that of the mask
            dict(image_id=1, category_id=1, segmentation=[polygon]),
        ],
    )
    objects = found.objects[0]
    assert objects.crowd.tolist() == [False, True, False, False]
    assert objects.boxes[2:].tolist() == [[1, 0, 2, 10], [2, 3, 12, 13]]
    assert objects.mask(0, 30, 40).sum() == 100 and objects.mask(1, 30, 40).sum() == 10
    assert not found.findings.lines()


@pytest.mark.parametrize(
    "wrong, line, left",
    [
        (box(3, 3, 0, 5), "empty boxes, left out", 1),
        (box(50, 3, 5, 5), "boxes outside of their image, left out", 1),
        (box(-5, 3, 9, 5), "boxes that reach over their image, clipped", 2),
        (box(float("nan"), 3, 9, 5), "objects without a box, left out", 1),
        (dict(image_id=1, category_id=1), "objects without a box, left out", 1),
        (box(1, 1, 5, 5) | {"category_id": 7}, "objects of a class that has no name", 1),
        (box(1, 1, 5, 5) | {"image_id": 7}, "annotations of images that are not listed", 1),
        (box(1, 1, 5, 5, segmentation=[[1, 1, 5, 5]]), "polygons with fewer than three", 2),
        (box(1, 1, 5, 5, segmentation=dict(size=[9, 9], counts=[81])), "of another size", 2),
        (box(1, 1, 5, 5, segmentation=dict(size=[30, 40], counts="\x01")), "cannot be read", 2),
        (box(1, 1, 5, 5, segmentation="abc"), "cannot be read", 2),
        (box(1, 1, 5, 5, id=3), "annotations with the id of another one, both are used", 2),
        (box(2, 2, 5, 5, id=3), "annotations that are listed twice, one is used", 1),
    ],
)
def test_what_is_wrong_is_counted_and_named(tmp_path, wrong, line, left):
    found = one_image(tmp_path, [box(2, 2, 5, 5, id=3), wrong])
    lines = found.findings.lines()
    assert len(lines) == 1 and line in lines[0] and lines[0].partition(": ")[2].startswith("1, ")
    assert len(found.objects[0]) == left
    files = found.findings.files()
    assert len(files) == 1 and ("a.png" in files[0].name or "annotation" in files[0].name)


def test_images_beside_the_folder_of_the_json_are_another_set_s(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        Image.new("RGB", (40, 30)).save(folder / "a.png")
    Image.new("RGB", (40, 30)).save(other / "b.png")
    images = [
        dict(id=i, file_name=f"{name}.png", width=40, height=30) for i, name in ((1, "a"), (2, "b"))
    ]
    found = coco.read(coco.part_of(write_coco(own / "x.json", images, [box(1, 1, 4, 4)])))
    assert [found.source.name(i) for i in range(len(found.source))] == ["a.png"]


def test_images_that_are_missing_or_listed_twice(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "c.png")
    images = [
        dict(id=1, file_name="a.png", width=40, height=30),
        dict(id=2, file_name="b.png", width=40, height=30),
        dict(id=3, file_name="a.png", width=40, height=30),
        dict(id=4, file_name="c.png", width=40, height=30),
        dict(id=4, file_name="d.png", width=40, height=30),
        dict(id=1, file_name="a.png", width=40, height=30),
    ]
    objects = [box(1, 1, 4, 4), box(1, 1, 4, 4, image_id=4)]
    found = coco.read(coco.part_of(write_coco(tmp_path / "x.json", images, objects)))
    assert [found.source.name(i) for i in range(len(found.source))] == ["a.png"]
    assert [bad.name for bad in found.source.unusable] == ["b.png"]
    assert len(found.objects[0]) == 1 and "left out: 2, such as c.png" in found.findings.lines()[0]
    assert [line.partition(":")[0] for line in found.findings.lines()] == [
        "images with the id of another one, left out",
        "annotations of images that are not listed, left out",
        "images that are listed twice, the first one is used",
    ]


@pytest.mark.parametrize("top", ["", "images/"])
def test_equal_file_names_in_train_and_val_are_not_mixed_up(tmp_path, top):
    """The sets of a split often number their images alike; the first folder was taken for both."""
    image = dict(id=1, file_name="000.png", width=8, height=8)
    (tmp_path / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        (tmp_path / top / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / top / part / "000.png")
        write_coco(tmp_path / f"annotations/instances_{part}.json", [image], [box(1, 1, 4, 4)])
    roots = {name: coco.read(part).source.root for name, part in coco.find(tmp_path).items()}
    places = {name: str(tmp_path / top / f"{name}2017") for name in ("train", "val")}
    assert roots == places
    path = write_coco(tmp_path / "annotations/mine.json", [image], [box(1, 1, 4, 4)])
    with pytest.raises(UserError, match="mine.json names .* are in several folders: .*train2017"):
        coco.read(coco.part_of(path))


def test_a_class_that_only_validation_has(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    image = dict(id=1, file_name="a.png", width=40, height=30)
    annotations = [box(1, 1, 5, 5), box(1, 1, 5, 5, id=9) | {"category_id": 11}]
    path = write_coco(tmp_path / "val.json", [image], annotations, ("disk", "ghost"))
    found = coco.read(coco.part_of(path), classes=("box", "disk"))
    assert found.classes == ("box", "disk")
    assert found.objects[0].classes.tolist() == [1]  # by name, not by its number
    assert found.findings.lines() == [
        "objects of the class ghost, not among the training set's, left out: 1, such as a.png, "
        "annotation 9"
    ]


def test_images_of_another_size_than_annotated(tmp_path):
    found = one_image(tmp_path, [box(2, 2, 5, 5)])
    assert found.of_other_size([(30, 40)]) == []
    assert found.of_other_size([(0, 0)]) == []  # bad: the scan says so
    assert found.of_other_size([(40, 30)]) == [0]
    assert "a.png, 30 x 40, not 40 x 30 (a photograph turned by EXIF?)" in found.findings.lines()[0]


def test_damaged_files(tmp_path):
    path = tmp_path / "a.json"
    for text, message in [
        ('{"images": [', "is no COCO json"),
        ('{"images": [], "annotations": []}', "names no images with a file_name"),
        ('{"images": [{"file_name": "a.png"}], "annotations": []}', "names no categories"),
        (json.dumps({"images": 3}), "is no COCO json"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            coco.read(coco.part_of(path))
    write_coco(path, [dict(id=1, file_name="nowhere.png")], [])
    with pytest.raises(UserError, match=r"nowhere.png, ...\) are not there"):
        coco.read(coco.part_of(path))
