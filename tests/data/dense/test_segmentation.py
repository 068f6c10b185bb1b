"""Sets of images with label maps, the crops of them, and what is said of them before training."""

import json

import numpy as np
import pytest
import torch
from helpers.label_maps import make_shapes
from helpers.objects import coco_set, yolo_set
from PIL import Image

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.decode import BadImage
from torchmae.data.dense.classes import Classes
from torchmae.data.dense.find import Split
from torchmae.data.dense.masks import Coding
from torchmae.data.dense.placement import ScaleJitterCrop, place_labels
from torchmae.data.dense.segmentation import (
    Examples,
    SegmentationCrop,
    look,
    open_labelled,
    open_sets,
)
from torchmae.data.loader import Batches
from torchmae.data.sources.source import BadFile
from torchmae.errors import UserError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes")


def sets_of(data, **options):
    return open_sets(str(data), None, DecodeOptions(), Split(**options))


def looked(data, names=(), ignore=("255",)):
    sets = sets_of(data)
    found = look(sets, None, names, ignore, str(data))
    return sets.with_classes(found.classes), found


def test_what_is_found(shapes):
    sets, found = looked(shapes)
    assert sets.layout == "images and mask files" and found.bad == [] and found.notes == []
    assert sets.names == ("0", "1", "2") and len(sets.train) == 12 and len(sets.val) == 6
    counts = np.zeros(3)
    for i in range(12):
        values = np.array(Image.open(shapes / "train/masks" / f"{i}.png"))
        counts += [(values == k).sum() for k in range(3)]
    assert list(found.pixels) == counts.tolist()


def test_a_share_is_held_out_by_the_seed(shapes):
    one, same, other = (sets_of(shapes / "train", seed=seed) for seed in (0, 0, 1))
    parts = [{part.source.name(i) for i in range(len(part))} for part in (one.train, one.val)]
    assert len(parts[1]) == 2 and not parts[0] & parts[1]
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    few = sets_of(shapes / "train", train_images=3)
    assert {few.val.source.name(i) for i in range(2)} == parts[1], "validated on the same"
    assert {few.train.source.name(i) for i in range(3)} < parts[0]
    with pytest.raises(UserError, match="--train-images 99"):
        sets_of(shapes, train_images=99)


def test_patterns_choose_among_the_images_and_what_is_wrong_with_others_is_not_said(tmp_path):
    data = make_shapes(tmp_path / "shapes")  # 12 to train on, 6 to validate on
    for name in ("2", "3"):
        (data / "train/masks" / f"{name}.png").unlink()

    def opened(**patterns):
        return open_sets(str(data), None, DecodeOptions(), listing=Listing(**patterns))

    sets = opened(exclude=("3.jpg", "train/images/1*"))
    assert {sets.train.source.name(i) for i in range(len(sets.train))} == {
        f"train/images/{i}.jpg" for i in (0, 4, 5, 6, 7, 8, 9)
    }
    for k, i in enumerate((0, 4, 5, 6, 7, 8, 9)):
        (mask,) = sets.train.labels[k].read(40 + 2 * i, 56)
        stored = np.array(Image.open(data / f"train/masks/{i}.png"))
        assert np.array_equal(mask.values, stored)
    assert len(sets.val) == 5, "3.jpg is in both parts"
    assert [file.name for file in sets.left_out] == ["train/images/2.jpg"]
    assert sets.train_source.left_out.startswith("3 of 10 images left out by --exclude '3.jpg'")
    held = open_sets(
        str(data / "train"), None, DecodeOptions(), listing=Listing(include=("[4-9].jpg",))
    )
    assert (len(held.train), len(held.val)) == (5, 1)
    with pytest.raises(UserError, match="--exclude '\\*_mask\\*' matches none of the 10 images"):
        opened(exclude=("*_mask*",))
    assert len(opened(exclude=("*_mask*",), inherited=True).train) == 10


def test_classes_only_in_one_part_and_images_without_labels_are_named(tmp_path):
    data = make_shapes(tmp_path / "shapes", 4, 3)
    only = np.array(Image.open(data / "val/masks/0.png"))
    only[20, 20] = 9
    Image.fromarray(only).save(data / "val/masks/0.png")
    for i in range(4):
        values = np.array(Image.open(data / "train/masks" / f"{i}.png"))
        Image.fromarray(np.where(values == 2, 255, values)).save(data / "train/masks" / f"{i}.png")
    Image.fromarray(np.full_like(values, 255)).save(data / "train/masks/3.png")
    _, found = looked(data)
    assert found.notes == [
        "2 classes only in the validation images, and so never learned: 2, 9",
        "1 training and 0 validation images have no labelled pixel",
    ]
    with pytest.raises(UserError, match="no pixel of the training images"):
        looked(data, names=("a", "b"), ignore=("0", "1", "255"))


def test_masks_that_cannot_be_used_are_no_images_without_labels(tmp_path):
    data = make_shapes(tmp_path / "shapes")
    (data / "train/masks/0.png").write_bytes(b"no image")
    _, found = looked(data)
    assert len(found.bad) == 1 and found.notes == []


def test_sets_without_objects_say_what_is_wrong(tmp_path):
    coco_set(tmp_path / "a", {"train": 3}, least=1)
    path = tmp_path / "a/annotations/instances_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(UserError, match="has no objects that can be used$"):
        sets_of(tmp_path / "a")
    path.write_text(json.dumps(content))
    classes = Classes(("background", "zebra"), ((0, 0, 0), (9, 9, 9)), Coding("values"))
    with pytest.raises(UserError, match=r"\(objects of the class .*, not among the training set's"):
        open_labelled(str(tmp_path / "a"), DecodeOptions(), classes)


def test_lists_of_voc_are_found_below_the_folder(tmp_path):
    voc = make_shapes(tmp_path / "VOCdevkit/VOC2012", 5, 0) / "train"
    (voc / "images").rename(voc.parent / "JPEGImages")
    (voc / "masks").rename(voc.parent / "SegmentationClass")
    lists = voc.parent / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n3\n")
    (lists / "val.txt").write_text("1\n2\n4\n")
    for place in (tmp_path, voc.parent):
        sets = sets_of(place)
        assert (len(sets.train), len(sets.val)) == (2, 3)
        assert sets.train.source.name(1).endswith("JPEGImages/3.jpg")


def test_unknown_values_are_bad_files(shapes):
    _, found = looked(shapes, names=("a", "b"))
    assert len(found.bad) == 18 and "value 2, which is no class" in found.bad[0].reason


def test_an_image_and_its_labels_are_cropped_alike(shapes):
    """Where the picture has the color of a class, the label map has the class."""
    sets, _ = looked(shapes)
    crop = SegmentationCrop(ScaleJitterCrop((48, 48), 3), (0, 0, 0), 0.0)
    colors = torch.tensor([[90, 100, 90], [200, 60, 50], [60, 80, 210]]).float()
    right = count = 0
    for epoch in range(4):
        for i in range(6):
            image = np.array(Image.open(shapes / sets.train.source.name(i)))
            pixels, labels = crop(image, sets.train.labels[i], epoch, i)
            assert pixels.shape == (3, 48, 48) and labels.shape == (48, 48)
            distance = (pixels.float()[None] - colors[:, :, None, None]).square().sum(1)
            known = labels != 255
            right += int((distance.argmin(0) == labels)[known].sum())
            count += int(known.sum())
    assert right / count > 0.97, "but for edges"


def test_a_crop_is_not_of_one_class_where_it_can_be_helped(shapes):
    sets, _ = looked(shapes)
    image, target = np.zeros((40, 56, 3), np.uint8), sets.train.labels[0]
    place = ScaleJitterCrop((24, 24), 0, (2.0, 4.0))
    labels = target.label_map(40, 56)

    def most(placed):
        counts = torch.bincount(placed[placed != 255], minlength=3)
        return float(counts.max() / counts.sum().clamp(min=1))

    drawn = [most(SegmentationCrop(place, (0,))(image, target, e, 0)[1]) for e in range(40)]
    first = [most(place_labels(labels, place.placement(40, 56, e, 0))) for e in range(40)]
    assert np.mean(np.array(drawn) > 0.75) < 0.7 * np.mean(np.array(first) > 0.75)


def test_colors_change_in_half_of_the_images_by_the_hash():
    crop = SegmentationCrop(ScaleJitterCrop((8, 8), 5), (0,))
    drawn = [dict(crop.changes(e, s)) for e in range(20) for s in range(20)]
    for name, low, high in (("brightness", 0.5, 1.5), ("hue", -0.05, 0.05)):
        values = [one[name] for one in drawn if name in one]
        assert 0.4 < len(values) / len(drawn) < 0.6
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    assert crop.changes(3, 4) == crop.changes(3, 4)


def test_a_mask_that_breaks_later_is_replaced_and_named(tmp_path):
    data = make_shapes(tmp_path / "shapes", 5, 2)
    sets, _ = looked(data)
    (data / "train/masks/2.png").write_bytes(b"broken")
    crop = SegmentationCrop(ScaleJitterCrop((16, 16), 0), (0, 0, 0))
    batches = Batches(sets.train.source, crop, 5, targets=sets.train.labels)
    batch = batches[0]
    assert len(batch.targets) == 5 and all(one.shape == (16, 16) for one in batch.targets)
    assert {bad.name for bad in batch.bad} == {"train/images/2.jpg"}
    assert "its mask" in batch.bad[0].reason
    assert 2 not in batch.sample


def test_examples_are_whole_images_or_bad_files(shapes, tmp_path):
    sets, _ = looked(shapes)
    example = Examples(sets.val.source, sets.val.labels)[1]
    assert example.image.shape == (3, 42, 56) and example.labels.shape == (42, 56)
    broken = make_shapes(tmp_path / "shapes", 2, 2)
    (broken / "val/masks/0.png").write_bytes(b"")
    sets = sets_of(broken).with_classes(looked(shapes)[1].classes)
    found = Examples(sets.val.source, sets.val.labels)[0]
    assert isinstance(found, BadFile) and "empty file" in found.reason


def test_objects_of_coco_are_classes(tmp_path):
    make_shapes(tmp_path / "shapes", 3, 2)
    folder = tmp_path / "coco"
    folder.mkdir()
    for part in ("train", "val"):
        images, annotations = [], []
        (folder / part).mkdir()
        for i in range(2):
            Image.new("RGB", (30, 20)).save(folder / part / f"{i}.jpg")
            images.append({"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30})
            annotations.append(
                {
                    "id": i + 1,
                    "image_id": i,
                    "category_id": 5,
                    "bbox": [2, 3, 10, 8],
                    "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
                    "iscrowd": 0,
                }
            )
        content = {"images": images, "annotations": annotations}
        content["categories"] = [{"id": 5, "name": "cell"}]
        (folder / part / "_annotations.coco.json").write_text(json.dumps(content))
    sets = sets_of(folder)
    found = look(sets, None, (), (), str(folder))
    assert sets.layout == "COCO json" and found.classes.names == ("background", "cell")
    assert found.pixels == (2 * (600 - 80), 2 * 80)
    labels = sets.val.labels[0].label_map(20, 30)
    assert labels.sum() == 80 and labels[3, 2] == 1 and labels[11, 12] == 0


def test_images_of_another_size_than_their_json_says_are_bad_files(tmp_path):
    """Polygons would be drawn beside the objects, and run lengths not at all."""
    for masks in ("rle", "polygons"):
        data = coco_set(tmp_path / masks, {"train": 4, "val": 2}, masks, least=1)
        Image.new("RGB", (48, 64)).save(data / "images/002.png")
        sets, found = looked(data)
        said = "of another size than its annotations say: 48 x 64, not 64 x 48 (a photograph"
        assert [bad.name for bad in found.bad] == ["002.png"] and said in found.bad[0].reason
        with pytest.raises(BadImage, match="48 x 64, not 64 x 48"):
            sets.train.labels[1].label_map(64, 48)
        assert sets.train.labels[0].label_map(48, 64).any()
    with pytest.raises(UserError, match="have boxes but no masks: a segmenter needs masks"):
        sets_of(coco_set(tmp_path / "boxes", {"train": 2}, "", least=1))


def test_polygons_of_yolo_are_classes(tmp_path):
    data = yolo_set(tmp_path, {"train": 3, "val": 2}, least=1)
    for path in (tmp_path / "labels").rglob("*.txt"):
        path.write_text("1 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n")
    sets, found = looked(data)
    assert sets.names == ("background", "box", "disk") and not found.bad
    labels = sets.val.labels[0].label_map(48, 64)
    assert labels[12:24, 16:48].min() == 2 and labels.sum() == 2 * 12 * 32
    assert "1 class in no image: box" in found.notes[0]


def test_what_is_no_set(tmp_path, shapes):
    with pytest.raises(UserError, match="no such folder or file"):
        sets_of(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no annotations that this verb reads"):
        sets_of(shapes / "train/images")
    with pytest.raises(UserError, match="has 1 annotated image:"):
        sets_of(make_shapes(tmp_path / "one", 1, 0) / "train")
