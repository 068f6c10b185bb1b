"""PASCAL VOC's XML files."""

import pytest
from PIL import Image

from torchmae.data.dense.formats import voc


def xml(name, objects, width=40, height=30):
    inner = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, difficult, x1, y1, x2, y2 in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{inner}</annotation>"


def voc_set(root):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for stem, objects in {
        "a": [("dog", 0, 1, 1, 40, 30), ("cat", 1, 5, 6, 10, 12)],
        "b": [],
        "c": [("cat", 0, 5, 6, 10, 12), ("cow", 0, 5, 6, 10, 12)],
    }.items():
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(xml(f"{stem}.jpg", objects))
    (root / "ImageSets/Main/train.txt").write_text("a\nb 1\n")
    (root / "ImageSets/Main/val.txt").write_text("c\n")
    return root


@pytest.mark.parametrize("inner", ["", "VOCdevkit/VOC2007"])
def test_sets_of_voc(tmp_path, inner):
    voc_set(tmp_path / inner)
    parts = voc.find(tmp_path)
    train = voc.read(parts["train"])
    assert train.classes == ("cat", "dog")
    assert [len(one) for one in train.objects] == [2, 0]
    # Pixels are counted from 1, both ends included: this box is the whole image.
    assert train.objects[0].boxes.tolist() == [[0, 0, 40, 30], [4, 5, 10, 12]]
    assert train.objects[0].difficult.tolist() == [False, True]
    assert train.objects[0].classes.tolist() == [1, 0] and train.sizes == ((30, 40),) * 2
    val = voc.read(parts["val"], train.classes)
    assert val.objects[0].classes.tolist() == [0]
    assert "class cow, not among the training set's" in val.findings.lines()[0]


def test_folders_of_labelimg(tmp_path):
    """Each .xml beside its image, whose name may lie."""
    for part in ("train", "valid"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / part / "a.png")
        (tmp_path / part / "a.xml").write_text(xml("other.jpg", [("dog", 0, 1, 2, 3, 4)]))
    parts = voc.find(tmp_path)
    assert list(parts) == ["train", "val"]
    assert voc.read(parts["val"]).source.name(0) == "a.png"
    assert list(voc.find(tmp_path / "train")) == ["train"]
    assert voc.find(tmp_path / "train" / "a.png") == {}


def test_what_cannot_be_read_is_named(tmp_path):
    voc_set(tmp_path)
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation>")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\nd\n")
    found = voc.read(voc.find(tmp_path)["train"])
    assert len(found.source) == 1
    lines = found.findings.lines()
    assert len(lines) == 2 and "(no XML), with their image left out: 1, such as b.xml" in lines[0]
    assert "(No such file or directory), with their image left out: 1, such as d.xml" in lines[1]


def test_entities_are_refused(tmp_path):
    voc_set(tmp_path)
    bomb = '<!DOCTYPE a [<!ENTITY x "ha">]>' + xml("a.jpg", [("&x;", 0, 1, 1, 4, 4)])
    (tmp_path / "Annotations" / "a.xml").write_text(bomb)
    found = voc.read(voc.find(tmp_path)["train"])
    assert "entities" in found.findings.lines()[0] and len(found.source) == 1
