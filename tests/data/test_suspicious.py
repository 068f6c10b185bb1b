"""What looks wrong with a set: each case planted, and silence where nothing is."""

import shutil

import pytest
from helpers.small import make_photos
from helpers.sources import pack, plant, png

from torchmae.data import suspicious as room
from torchmae.data.config import Listing
from torchmae.data.labels import labelled_sets
from torchmae.data.sources import open_source
from torchmae.data.suspicious import notes, suspicious


def lines_of(spec, **listing):
    return suspicious(open_source(spec, listing=Listing(**listing)))


def test_nothing_is_said_of_a_usual_set(tmp_path):
    assert lines_of(make_photos(tmp_path / "photos", 4)) == []
    assert lines_of(plant(tmp_path / "a", *(f"{'a' * i}_mask.png" for i in range(9)))) == []
    assert lines_of("digits") == []


@pytest.mark.parametrize(
    "name, pattern",
    [
        ("{}_mask.png", "*_mask*"),
        ("{} (1)_mask_1.png", "*_mask*"),
        ("{}-seg.png", "*-seg*"),
        ("{}_Segmentation.png", "*_Segmentation*"),
        ("masks/{}.png", "masks"),
        ("x/Annotations/{}.png", "Annotations"),
        ("__MACOSX/{}.png", "__MACOSX"),
        ("._{}.png", "._*"),
    ],
)
def test_what_lies_beside_images_is_named_with_the_flag_that_leaves_it_out(tmp_path, name, pattern):
    plant(tmp_path, *(f"im/{i:>04}.png" for i in range(5)), *(name.format(i) for i in range(5)))
    found = [line for line in lines_of(tmp_path) if f"--exclude '{pattern}'" in line]
    assert len(found) == 1 and found[0].startswith("5 of 10 names")
    assert len(open_source(tmp_path, listing=Listing(exclude=(pattern,)))) == 5
    assert not any("--exclude" in line for line in lines_of(tmp_path, exclude=(pattern,)))


def test_parts_for_measuring(tmp_path):
    plant(tmp_path, *(f"{part}/{i}.png" for part in ("train2017", "val2017") for i in range(3)))
    assert any(
        "3 of 6 images are in val2017: --exclude 'val2017/*'" in x for x in lines_of(tmp_path)
    )
    assert not any("val2017" in line for line in lines_of(tmp_path, exclude=("val2017/*",)))


@pytest.mark.parametrize("packed", [False, True])
def test_the_same_bytes_twice(tmp_path, packed, monkeypatch):
    files = {f"{i}.png": png(i) for i in range(6)} | {"6.png": png(2), "7.png": png(2)}
    spec = pack(tmp_path / "s.tar", files) if packed else plant(tmp_path / "s")
    for name, data in {} if packed else files.items():
        (spec / name).write_bytes(data)
    (line,) = lines_of(spec)
    assert line.startswith("2 of 8 images with the bytes of another one, such as")
    assert "2.png" in line and "6.png" in line and "--drop-duplicates" in line
    monkeypatch.setattr(room, "MOST_BYTES", 10)
    (line,) = lines_of(spec)
    assert "were not looked for" in line


def test_images_of_validation_that_are_trained_on(tmp_path):
    make_photos(tmp_path / "train", 4)
    make_photos(tmp_path / "val", 4)
    for i in range(4):
        shutil.copy(tmp_path / f"train/blob/{i}.jpg", tmp_path / f"val/blob/{i}.jpg")
    for i in range(4):
        data = (tmp_path / f"val/down/{i}.jpg").read_bytes()
        (tmp_path / f"val/down/{i}.jpg").write_bytes(data + b"\0")
        (tmp_path / f"val/across/{i}.jpg").write_bytes(data + b"\0\0" + bytes([i]))
    sets = labelled_sets(str(tmp_path), None, 0.2, None, 0)
    found = notes(sets.train, sets.val, [sets.classes[i] for i in sets.train_labels])
    assert [line for line in found if line.startswith("4 of 12 validation images")]


def test_classes_of_one_image_and_patients(tmp_path):
    plant(tmp_path, *(f"{i}.png" for i in range(12)))
    rows = [f"{i}.png,{'abcdefg'[max(0, i - 5)]},p{i % 3}" for i in range(12)]
    (tmp_path / "x.csv").write_text("\n".join(["file,label,Patient ID", *rows]))
    sets = labelled_sets(str(tmp_path / "x.csv"), str(tmp_path / "x.csv"), 0.2, None, 0)
    found = notes(sets.train, sets.val, [sets.classes[i] for i in sets.train_labels])
    assert "6 of 7 classes have a single training image" in found
    assert any("--group-column 'Patient ID' keeps" in line for line in found)
