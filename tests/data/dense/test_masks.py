"""Which mask belongs to which image, and what is wrong with masks: real files."""

import numpy as np
import pytest
from PIL import Image

from torchmae.data.decode import BadImage
from torchmae.data.dense.masks import Coding, find, read_mask, survey

SHAPE = (6, 8)


def save(path, values=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(SHAPE, np.uint8) if values is None else values
    Image.fromarray(pixels).save(path, **options)


def names(pairs):
    """Image: its masks."""
    return {pairs.source.name(i): pairs.masks.names[i] for i in range(len(pairs.source))}


def test_images_and_masks_below_train_and_val(tmp_path):
    for part in ("train", "val"):
        save(tmp_path / part / "images/a/1.jpg")
        save(tmp_path / part / "masks/a/1.png")
    save(tmp_path / "train/images/a/2.jpg")
    save(tmp_path / "train/masks/a/3.png")
    found = find(tmp_path)
    assert set(found) == {"train", "val"}
    assert names(found["train"]) == {"train/images/a/1.jpg": ("train/masks/a/1.png",)}
    assert names(found["val"]) == {"val/images/a/1.jpg": ("val/masks/a/1.png",)}
    said = {bad.name: bad.reason for bad in found["train"].unpaired}
    assert said["train/images/a/2.jpg"] == "an image without a mask"
    assert said["train/masks/a/3.png"] == "a mask without an image"


def test_parts_inside_images_and_masks(tmp_path):
    """As ADE20K: images/training, annotations/training."""
    for part in ("training", "validation"):
        save(tmp_path / "images" / part / "x.jpg")
        save(tmp_path / "annotations" / part / "x.png")
    found = find(tmp_path)
    assert names(found["train"]) == {"images/training/x.jpg": ("annotations/training/x.png",)}
    assert set(found) == {"train", "val"}


def test_masks_beside_images_are_united(tmp_path):
    one, two = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    one[0, 0], two[5, 7] = 255, 255
    save(tmp_path / "cat.jpg")
    save(tmp_path / "cat_mask.png", one)
    save(tmp_path / "dog.jpg")
    save(tmp_path / "dog_mask_0.png", one)
    save(tmp_path / "dog_mask_1.png", two)
    (pairs,) = find(tmp_path).values()
    assert names(pairs) == {
        "cat.jpg": ("cat_mask.png",),
        "dog.jpg": ("dog_mask_0.png", "dog_mask_1.png"),
    }
    found = survey(pairs.source, pairs.masks)
    assert found.several and found.pixels[1] == {0: 46, 1: 2}
    labels = Coding("objects").label_map(
        [read_mask(str(tmp_path / name)) for name in pairs.masks.names[1]]
    )
    assert labels.sum() == 2 and labels[0, 0] == labels[5, 7] == 1


def test_a_folder_for_each_image(tmp_path):
    """As the Data Science Bowl 2018: ID/images/ID.png, ID/masks/*.png."""
    for name in ("aa", "bb"):
        save(tmp_path / name / "images" / f"{name}.png")
        for k in range(3):
            save(tmp_path / name / "masks" / f"{k}.png")
    (pairs,) = find(tmp_path).values()
    assert {image: len(masks) for image, masks in names(pairs).items()} == {
        "aa/images/aa.png": 3,
        "bb/images/bb.png": 3,
    }


def test_pascal_voc_takes_its_lists_and_leaves_instances_out(tmp_path):
    for i in range(3):
        save(tmp_path / f"JPEGImages/{i}.jpg")
        save(tmp_path / f"SegmentationClass/{i}.png")
        save(tmp_path / f"SegmentationObject/{i}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n")
    (lists / "val.txt").write_text("2\n")
    found = find(tmp_path)
    assert names(found["train"]) == {"JPEGImages/0.jpg": ("SegmentationClass/0.png",)}
    assert names(found["val"]) == {"JPEGImages/2.jpg": ("SegmentationClass/2.png",)}


def test_images_alone_are_no_set(tmp_path):
    save(tmp_path / "images/1.png")
    assert find(tmp_path) == {} and find(tmp_path / "nothing") == {}


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_values_are_those_of_the_file(tmp_path, mode):
    values = np.arange(48).reshape(SHAPE) % (2 if mode == "1" else 7)
    image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    if mode == "1":
        image = Image.fromarray(values.astype(bool))
    image.save(tmp_path / "m.png")
    stored = read_mask(str(tmp_path / "m.png"))
    assert np.array_equal(stored.values, values) and not stored.colored
    assert bool(stored.palette) == (mode == "P")


def test_colors_are_numbers_and_gray_colors_are_gray(tmp_path):
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0], pixels[1, 1] = (1, 2, 3), (255, 0, 0)
    save(tmp_path / "c.png", pixels)
    stored = read_mask(str(tmp_path / "c.png"))
    assert stored.colored and stored.values.tolist() == [[0x010203, 0], [0, 0xFF0000]]
    save(tmp_path / "g.png", np.full((2, 2, 3), 7, np.uint8))
    stored = read_mask(str(tmp_path / "g.png"))
    assert not stored.colored and stored.values.tolist() == [[7, 7], [7, 7]]


def test_lossy_masks_are_refused_with_the_reason(tmp_path):
    save(tmp_path / "m.jpg", quality=100)
    save(tmp_path / "m.webp", np.zeros((*SHAPE, 3), np.uint8), quality=90)
    save(tmp_path / "lossless.webp", np.zeros((*SHAPE, 3), np.uint8), lossless=True)
    for name in ("m.jpg", "m.webp"):
        with pytest.raises(BadImage, match="compression changes the values at every edge"):
            read_mask(str(tmp_path / name))
    assert read_mask(str(tmp_path / "lossless.webp")).values.max() == 0


def test_classes_ignored_and_unknown_values(tmp_path):
    values = np.array([[10, 20], [20, 0]], np.uint8)
    save(tmp_path / "images/1.png", np.zeros((2, 2), np.uint8))
    save(tmp_path / "masks/1.png", values)
    stored = read_mask(str(tmp_path / "masks/1.png"))
    coding = Coding("values", (20, 10), (0, 255))
    assert coding.label_map([stored]).tolist() == [[1, 0], [0, 255]]
    with pytest.raises(BadImage, match="value 0, which is no class"):
        Coding("values", (20, 10), (255,)).label_map([stored])
    (pairs,) = find(tmp_path).values()
    with pytest.raises(BadImage, match="its mask has 2 x 2 pixels, the image 3 x 2"):
        pairs.masks[0].label_map(2, 3)
