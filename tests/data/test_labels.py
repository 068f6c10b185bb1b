"""Labelled sets of every kind of source: images, classes, numbers; and errors of bad ones."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import pack, picture, plant, png
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchmae.data.config import Listing
from torchmae.data.decode import decode
from torchmae.data.labels import (
    LabelledSets,
    groups_of,
    hold_out,
    labelled,
    labelled_sets,
    open_pair,
    tuning_sets,
)
from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source
from torchmae.errors import UserError

CLASSES = ("ant", "bee", "cat")
LIST = [
    (kind, i) for i in range(5) for kind in CLASSES
]  # 15 images, as far from sorted by class as can be


def painted(kind: str, i: int = 0) -> bytes:
    """A picture that shows its class: the red of its pixels."""
    return picture((RED[kind], i, 0), 20)


RED = {"ant": 50, "bee": 120, "cat": 190, "dog": 250}


def folder(at: Path, images: list[tuple[str, int]] = LIST) -> Path:
    for kind, i in images:
        (at / kind).mkdir(parents=True, exist_ok=True)
        (at / kind / f"{i}.png").write_bytes(painted(kind, i))
    return at


def table(at: Path, images: list[tuple[str, int]] = LIST) -> Path:
    (at / "pictures").mkdir(parents=True)
    rows = [("path", "label")]
    for number, (kind, i) in enumerate(images):
        (at / f"pictures/{number}.png").write_bytes(painted(kind, i))
        rows.append((f"pictures/{number}.png", kind))
    with (at / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return at / "labels.csv"


def class_folders_in_a_tar(at: Path) -> Path:
    return pack(at / "s.tar", {f"photos/{kind}/{i}.png": painted(kind, i) for kind, i in LIST})


def shards_of_class_folders(at: Path) -> str:
    for shard in range(3):
        pack(
            at / f"s-{shard}.tar",
            {f"{kind}/{i}.png": painted(kind, i) for kind, i in LIST[shard::3]},
        )
    return f"{at}/s-{{0..2}}.tar"


def shards_with_cls(at: Path) -> str:
    """The same keys in both shards, the text before the picture in one, after it in the other."""
    for shard in range(2):
        members = {}
        for number, (kind, i) in enumerate(LIST[shard::2]):
            pair = [
                (f"{number:03d}.png", painted(kind, i)),
                (f"{number:03d}.cls", f"{kind}\n".encode()),
            ]
            members.update(pair if shard else pair[::-1])
        pack(at / f"s-{shard}.tar", members)
    return f"{at}/s-*.tar"


def arrays(at: Path) -> Path:
    at.mkdir()
    images = np.stack([decode(painted(kind, i)) for kind, i in LIST])
    np.savez(at / "x.npz", images=images, labels=np.array([kind for kind, _ in LIST]))
    return at / "x.npz"


def hugging_face(at: Path, images: list[tuple[str, int]] = LIST) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=[*CLASSES])}
    )
    rows = {
        "image": [{"bytes": painted(*one), "path": None} for one in images],
        "kind": [kind for kind, _ in images],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(at))
    return f"hf:{at}"


WHOLE = {
    "folder": folder,
    "csv": table,
    "tar": class_folders_in_a_tar,
    "shards": shards_of_class_folders,
    "cls": shards_with_cls,
    "npz": arrays,
    "hf": hugging_face,
    "torchvision": lambda at: f"torchvision:ImageFolder?root={folder(at)}",
}


def counts(sets: LabelledSets) -> tuple[dict[str, int], dict[str, int]]:
    """How many images each class has; every label is checked against the red of its image."""
    found = []
    for source, labels in ((sets.train, sets.train_labels), (sets.val, sets.val_labels)):
        assert len(source) == len(labels)
        names = [sets.classes[number] for number in labels.tolist()]
        for i, name in enumerate(names):
            assert read_pixels(source, i)[0, 0, 0] == RED[name], source.name(i)
            assert source.label(i) == name
        found.append(dict(Counter(names)))
    train, val = (
        {sets.train.name(i) for i in range(len(sets.train))},
        {sets.val.name(i) for i in range(len(sets.val))},
    )
    assert len(train) == len(sets.train) and len(val) == len(sets.val)
    return found[0], found[1]


@pytest.mark.parametrize("kind", WHOLE)
def test_every_kind_is_divided_by_class_and_seed(kind, tmp_path):
    spec = str(WHOLE[kind](tmp_path / "data"))
    sets = labelled_sets(spec, None, 0.4, None, 0)
    assert sets.classes == CLASSES
    assert counts(sets) == (dict.fromkeys(CLASSES, 3), dict.fromkeys(CLASSES, 2))

    def names(source):
        return {source.name(i) for i in range(len(source))}

    assert not names(sets.train) & names(sets.val)
    fewer = labelled_sets(spec, None, 0.4, 2, 0)
    assert counts(fewer) == (dict.fromkeys(CLASSES, 2), dict.fromkeys(CLASSES, 2))
    assert names(fewer.val) == names(sets.val) and names(fewer.train) < names(sets.train)
    again, other = labelled_sets(spec, None, 0.4, 2, 0), labelled_sets(spec, None, 0.4, 2, 1)
    assert names(again.train) == names(fewer.train) and names(other.val) != names(sets.val)
    assert again.train.fingerprint() == fewer.train.fingerprint() != other.train.fingerprint()


TRAIN, VAL = LIST[:9], LIST[9:]


def two_folders(at: Path, val: str = "val") -> Path:
    folder(at / "train", TRAIN)
    folder(at / val, VAL)
    return at


def one_tar(at: Path) -> Path:
    members = {f"set/train/{kind}/{i}.png": painted(kind, i) for kind, i in TRAIN}
    return pack(
        at / "s.tar", members | {f"set/val/{kind}/{i}.png": painted(kind, i) for kind, i in VAL}
    )


def mixed_shards(at: Path) -> str:
    """Each shard has images of both parts, labelled by .cls; there is a test part beside val."""
    for shard in range(2):
        members = {}
        for part, some in (("train", TRAIN[shard::2]), ("val", VAL[shard::2]), ("test", TRAIN[:1])):
            for number, (kind, i) in enumerate(some):
                members |= {
                    f"{part}/{number}.png": painted(kind, i),
                    f"{part}/{number}.cls": kind.encode(),
                }
        pack(at / f"{shard}.tar", members)
    return str(at)


def two_hf_splits(at: Path) -> str:
    datasets = pytest.importorskip("datasets")
    parts = {"train": TRAIN, "validation": VAL}
    saved = {
        name: hugging_face(at / name, some).removeprefix("hf:") for name, some in parts.items()
    }
    splits = datasets.DatasetDict(
        {name: datasets.load_from_disk(path) for name, path in saved.items()}
    )
    splits.save_to_disk(str(at / "both"))
    return f"hf:{at}/both?column=image"


DIVIDED = {
    "folder": two_folders,
    "folder with test": lambda at: two_folders(at, "test"),
    "tar": one_tar,
    "shards": mixed_shards,
    "hf": two_hf_splits,
}


@pytest.mark.parametrize("kind", DIVIDED)
def test_data_that_is_divided_brings_its_own_split(kind, tmp_path):
    spec = str(DIVIDED[kind](tmp_path / "data"))
    sets = labelled_sets(spec, None, 0.5, None, 0)
    assert sets.classes == CLASSES
    assert counts(sets) == (dict.fromkeys(CLASSES, 3), dict.fromkeys(CLASSES, 2))
    other = labelled_sets(
        spec, str(folder(tmp_path / "other")), 0.5, None, 0
    )  # --val wins over its val part
    assert counts(other) == (dict.fromkeys(CLASSES, 3), dict.fromkeys(CLASSES, 5))


def test_parts_that_are_named_one_by_one(tmp_path):
    for part, some in (("train", TRAIN), ("val", VAL)):
        hugging_face(tmp_path / part, some)
    sets = labelled_sets(f"hf:{tmp_path}/train", f"hf:{tmp_path}/val", 0.5, None, 0)
    assert counts(sets) == (dict.fromkeys(CLASSES, 3), dict.fromkeys(CLASSES, 2))
    train, val = open_pair(two_hf_splits(tmp_path / "two") + "&split=train", None)
    assert len(train) == 9 and val is None


def test_a_tar_in_which_train_is_a_class(tmp_path):
    """Trains beside cats are no part: not every image lies below train/, val/ or test/."""
    members = {f"{kind}/{i}.png": painted("ant") for kind in ("train", "cat") for i in range(3)}
    train, val = open_pair(str(pack(tmp_path / "s.tar", members)), None)
    assert val is None and set(labelled(train, "")[1]) == {"train", "cat"}
    train, val = open_pair(
        str(pack(tmp_path / "t.tar", {f"train/{i}.png": png(i) for i in range(3)})), None
    )
    assert val is None and len(train) == 3


def test_digits_and_their_two_parts():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    truth = load_digits().target.tolist()
    whole, train, test = (
        open_source(spec) for spec in ("digits", "digits?part=train", "digits?part=test")
    )
    assert (len(whole), len(train), len(test)) == (1797, 1438, 359)
    for source, first in ((train, 0), (test, 1438)):
        assert [source.label(i) for i in range(len(source))] == [
            str(x) for x in truth[first : first + len(source)]
        ]
        for i in (0, 100, len(source) - 1):
            np.testing.assert_array_equal(source.read(i), whole.read(first + i))
    assert len({source.fingerprint() for source in (whole, train, test)}) == 3
    assert not {train.name(i) for i in range(1438)} & {test.name(i) for i in range(359)}

    sets = labelled_sets("digits?part=train", "digits?part=test", 0.2, None, 0)
    assert sets.classes == tuple("0123456789")
    assert sets.train_labels.tolist() == truth[:1438] and sets.val_labels.tolist() == truth[1438:]
    drawn = labelled_sets("digits", None, 0.2, 4, 0)
    assert len(drawn.val) == 359 and drawn.train_labels.bincount().tolist() == [4] * 10
    for spec in ("digits?part=tests", "digits:?part=tests"):
        with pytest.raises(
            UserError, match=r"unknown part of the digits 'tests'. Did you mean test\?"
        ):
            open_source(spec)
    with pytest.raises(UserError, match=r"unknown option in .* 'prt'"):
        open_source("digits?prt=test")
    with pytest.raises(
        UserError, match=r"digits:test: there is one set of digits.*digits\?part=test"
    ):
        open_source("digits:test")


def test_fake_data():
    sets = labelled_sets(
        "torchvision:FakeData?size=60&image_size=3,20,24&num_classes=3", None, 0.2, None, 0
    )
    assert sets.classes == ("0", "1", "2") and len(sets.train) + len(sets.val) == 60
    for source, labels in ((sets.train, sets.train_labels), (sets.val, sets.val_labels)):
        assert [int(source.label(i)) for i in range(len(source))] == labels.tolist()


# Bad data: one line that says what is wrong with it and what to do


def no_labels(at):
    return plant(at, "1.png", "2.png"), "has no labels: put the images of each class in a folder"


def one_class(at):
    return folder(at, [("ant", 0), ("ant", 1)]), r"needs at least two classes, .* has 1: 'ant'"


def one_image_each(at):
    return folder(at, LIST[:3]), "every class has only one image"


def one_image_of_one_class(at):
    wanted = "class 'cat' has only one image, so that nothing of it is left to validate on: .*--val"
    return folder(at, [*LIST[:5], ("ant", 9)]), wanted


def an_empty_class_folder(at):
    (folder(at) / "dog").mkdir()
    (at / "dog/readme.txt").write_text("soon")
    (at / ".cache").mkdir()  # hidden ones are no classes
    return at, "class folder 'dog' of .* has no image of its own: fill it, or remove it"


def a_class_folder_that_is_a_broken_link(at):
    (folder(at) / "dog").symlink_to(at / "nowhere")
    return at, "class folder 'dog' of .* has no image"


def an_empty_folder_of_validation(at):
    (two_folders(at) / "val/dog").mkdir()
    return at, "class folder 'dog' of the validation part of .* has no image"


def a_class_missing_in_train(at):
    folder(two_folders(at) / "val", [("dog", 0)])
    return at, "class 'dog' is in the validation images, but not in the training images"


def classes_missing_in_val(at):
    folder(at / "train", LIST)
    folder(at / "val", [("ant", 0)])
    return (
        at,
        r"class 'bee' \(and 1 more\) is in the training images, but not in the validation images",
    )


def labels_of_files_that_are_not_there(at):
    table(at)
    (at / "pictures/3.png").unlink()
    (at / "pictures/7.png").unlink()
    return (
        at / "labels.csv",
        r"2 of the images that .*labels\.csv labels cannot be read, .*: 'pictures/3\.png' \(list",
    )


def a_list_without_labels(at):
    table(at)
    (at / "x.txt").write_text("pictures/1.png\npictures/2.png\n")
    return at / "x.txt", r"has no labels: .* or list them in a CSV of path,label"


def parts_of_a_tar_without_classes(at):
    members = {f"{part}/{i}.png": png(i) for part in ("train", "val") for i in range(3)}
    return pack(
        at / "s.tar", members
    ), "has no labels in train/: give each image a folder of its class, or a .cls"


def a_run_folder(at):
    folder(at)
    (at / "state").mkdir()
    (at / "config.json").write_text('{"torchmae": "0.1.0"}')
    return at, r"data is a run folder, not images: RUN comes first, then DATA$"


def a_run_folder_without_pictures(at):
    (at / "state/step-00000012").mkdir(parents=True)
    return at, r"data is a run folder, not images: RUN comes first, then DATA$"


BAD = [
    *(a_run_folder, a_run_folder_without_pictures),
    *(no_labels, one_class, one_image_each, one_image_of_one_class, an_empty_class_folder),
    *(
        a_class_folder_that_is_a_broken_link,
        an_empty_folder_of_validation,
        a_class_missing_in_train,
    ),
    *(
        classes_missing_in_val,
        labels_of_files_that_are_not_there,
        a_list_without_labels,
        parts_of_a_tar_without_classes,
    ),
]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_data_is_one_clear_line(make, tmp_path):
    spec, words = make(tmp_path / "data")
    with pytest.raises(UserError) as caught:
        labelled_sets(str(spec), None, 0.2, None, 0)
    assert re.search(words, str(caught.value)) and "\n" not in str(caught.value)


def test_what_only_labelled_use_refuses(tmp_path):
    """Pre-training takes what is there: an empty folder or a missing file does not stop it."""
    assert len(open_source(an_empty_class_folder(tmp_path / "one")[0])) == 15
    assert len(open_source(labels_of_files_that_are_not_there(tmp_path / "two")[0])) == 13


def test_more_labels_of_a_class_than_there_are(tmp_path):
    uneven = folder(tmp_path / "data", [*LIST, *(("ant", i) for i in range(5, 20))])
    with pytest.raises(
        UserError, match="--labels-per-class 5: class 'bee' has only 4 images to train on"
    ):
        labelled_sets(str(uneven), None, 0.2, 5, 0)


def test_unlabelled_images_beside_labelled_ones_are_left_out(tmp_path):
    plant(folder(tmp_path / "data"), "loose.png")
    assert (
        sum(
            sum(part.values())
            for part in counts(labelled_sets(str(tmp_path / "data"), None, 0.2, None, 0))
        )
        == 15
    )


# Groups, such as patients: no split divides one


def patients(at: Path, count: int = 30, each: int = 4) -> Path:
    """A table of `count` patients with `each` images, and two classes."""
    (at / "im").mkdir(parents=True)
    rows = ["path;label;patient"]
    for i in range(count * each):
        (at / f"im/{i}.png").write_bytes(painted(CLASSES[i % count % 2], i % 200))
        rows.append(f"im\\{i}.png;{CLASSES[i % count % 2]};p{i % count}")
    (at / "x.csv").write_text("\n".join(rows))
    return at / "x.csv"


GROUPED = Listing(group_column="patient")


def groups_in(source):
    return {source.group(i) for i in range(len(source))}


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_on_one_side_of_every_split(tmp_path, seed):
    sets = labelled_sets(str(patients(tmp_path)), None, 0.2, None, seed, listing=GROUPED)
    train, val = groups_in(sets.train), groups_in(sets.val)
    assert not train & val and len(train | val) == 30
    assert 0.15 <= len(val) / 30 <= 0.25
    assert min(sets.val_labels.bincount().tolist()) >= 8  # of both classes a share
    again = labelled_sets(str(tmp_path / "x.csv"), None, 0.2, None, seed, listing=GROUPED)
    assert groups_in(again.val) == val
    without = labelled_sets(str(tmp_path / "x.csv"), None, 0.2, None, seed)
    assert [without.val.name(i) for i in range(len(without.val))] != [
        sets.val.name(i) for i in range(len(sets.val))
    ]


@pytest.mark.parametrize("few", [2, None])
@pytest.mark.parametrize("listing", [GROUPED, Listing()])
def test_settings_are_chosen_on_images_that_no_seed_validates_on(tmp_path, few, listing):
    which = (str(patients(tmp_path)), None, 0.2)
    sets = tuning_sets(*which, few, 100, (0, 1, 2), listing)
    counts = sets.train_labels.bincount().tolist()
    assert counts == [2, 2] if few else min(counts) > 2
    assert set(sets.val_labels.tolist()) == {0, 1}
    names = [{s.name(i) for i in range(len(s))} for s in (sets.train, sets.val)]
    assert not names[0] & names[1]
    for seed in (0, 1, 2):
        val = labelled_sets(*which, None, seed, listing=listing).val
        assert not {val.name(i) for i in range(len(val))} & (names[0] | names[1])
    if listing == GROUPED:
        assert not groups_in(sets.train) & groups_in(sets.val)
    again = tuning_sets(*which, few, 100, (0, 1, 2), listing)
    assert [again.train.name(i) for i in range(len(again.train))] == [
        sets.train.name(i) for i in range(len(sets.train))
    ]
    with pytest.raises(UserError, match="left to choose settings on: give images to validate"):
        tuning_sets(*which, few, 100, range(100), listing)
    given = tuning_sets(which[0], which[0], 0.2, few, 100, range(100))  # a validation set is given
    assert len(given.val) > 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=2), st.integers(0, 9))
def test_holding_out_groups(rows, seed):
    names = [f"c{label}" for label, _ in rows]
    groups = [f"g{group}" for _, group in rows]
    out = hold_out(names, 0.3, seed, groups)
    inside, outside = ({g for g, o in zip(groups, out) if o == side} for side in (True, False))
    assert not inside & outside
    assert {name for name, o in zip(names, out) if not o} == set(names), "a class is left to train"


def test_each_image_by_itself_is_no_group(tmp_path):
    assert groups_of(open_source(table(tmp_path))) is None


def test_a_class_of_one_patient(tmp_path):
    path = patients(tmp_path)
    rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([rows[0], *(r for r in rows[1:] if "bee" not in r or r[-2:] == "p1")])
    )
    with pytest.raises(UserError, match=r"'bee' has only one group \(patient\)"):
        labelled_sets(str(path), None, 0.2, None, 0, listing=GROUPED)


def test_patients_on_both_sides_of_a_given_split_are_refused(tmp_path):
    train, val = str(patients(tmp_path / "a")), str(patients(tmp_path / "b", 3))
    with pytest.raises(UserError, match="3 of 3 groups of the validation images are in"):
        labelled_sets(train, val, 0.2, None, 0, listing=GROUPED)


# What is no class


def test_masks_are_no_classes(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="mae segment and mae compare segment are for these"):
        labelled_sets(str(tmp_path), None, 0.3, None, 0)


def test_captions_are_no_classes(tmp_path):
    """Neither taken for classes, nor does the advice lead there."""
    folder(tmp_path)
    rows = [f"{kind}/{i}.png;A {kind} on plate {i}, from above" for kind, i in LIST]
    for head in ("image;caption", "image;label"):
        (tmp_path / "x.csv").write_text("\n".join([head, *rows]))
        with pytest.raises(UserError) as caught:
            labelled_sets(str(tmp_path / "x.csv"), None, 0.2, None, 0)
        assert "no classes" in str(caught.value) and "--label-column" in str(caught.value)
        assert "path,label" not in str(caught.value)


def test_parts_of_a_set_are_no_classes(tmp_path):
    for names_of_parts in (("train2017", "val2017"), ("Testing", "Training")):
        at = tmp_path / names_of_parts[0]
        for part in names_of_parts:
            folder(at / part)
        with pytest.raises(UserError, match=r"parts of a data set, no classes.*Train.* --val|2017"):
            labelled_sets(str(at), None, 0.2, None, 0)
        train, val = sorted(names_of_parts, key=lambda part: "rain" not in part)
        sets = labelled_sets(str(at / train), str(at / val), 0.2, None, 0)  # what it says to do
        assert sets.classes == CLASSES


def test_one_image_in_each_folder(tmp_path):
    plant(tmp_path, *(f"{i}/x.png" for i in range(7)))
    with pytest.raises(UserError, match="as if each of the 7 were a class"):
        labelled_sets(str(tmp_path), None, 0.2, None, 0)


def test_images_without_a_label_are_counted(tmp_path):
    plant(folder(tmp_path), "loose.png", "looser.png")
    assert labelled(open_source(tmp_path), "")[0].left_out == "2 without a label"
