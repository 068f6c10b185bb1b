"""Patterns of names: what they match, in every kind of source, and what is said of it."""

import pickle
import re

import numpy as np
import pytest
from helpers.sources import BUILDERS, names, outcome, pack, pack_shards, plant, png

from torchmae.data.config import Listing
from torchmae.data.labels import labelled, open_pair
from torchmae.data.scan import scan
from torchmae.data.sources import open_source
from torchmae.data.sources.select import matches
from torchmae.errors import UserError

PATHS = ["a.png", "a_mask.png", "masks/b.png", "x/masks/c.png", "x/d_mask_1.png", "x/maskless.jpg"]


@pytest.mark.parametrize(
    "pattern, want",
    [
        ("*_mask*", [1, 4]),
        ("masks", [2, 3]),
        ("masks/", [2, 3]),
        ("masks/*", [2]),
        ("./masks/*", [2]),
        ("x/*", [3, 4, 5]),
        ("x", [3, 4, 5]),
        ("*.png", [0, 1, 2, 3, 4]),
        ("?.png", [0, 2, 3]),
        ("[ab].png", [0, 2]),
        ("x/*/c.png", [3]),
        ("mask", []),
        ("A.PNG", []),
    ],
)
def test_what_a_pattern_matches(pattern, want):
    assert np.flatnonzero(matches(pattern, PATHS)).tolist() == want


NAMES = ["cat/1.png", "cat/1_mask.png", "dog/2.png", "dog/2_mask.png"]


def listed(at):
    plant(at, *NAMES)
    (at / "x.csv").write_text("path,label\n" + "".join(f"{n},{n[:3]}\n" for n in NAMES))
    return at / "x.csv"


KINDS = {
    "folder": lambda at: plant(at, *NAMES),
    "glob": lambda at: f"{plant(at, *NAMES)}/*/*.png",
    "list": listed,
    "tar": lambda at: pack(at / "s.tar", {name: png(i) for i, name in enumerate(NAMES)}),
    "packed": lambda at: pack_shards(at, {name: png(i) for i, name in enumerate(NAMES)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_select_in_every_kind_of_files(tmp_path, kind):
    spec = KINDS[kind](tmp_path / "set")
    all_of_it = open_source(spec)
    source = open_source(spec, listing=Listing(exclude=("*_mask*",)))
    assert [name.split("/")[-1] for name in names(source)] == ["1.png", "2.png"]
    assert [source.label(i) for i in range(2)] == ["cat", "dog"]
    assert source.left_out == "2 of 4 images left out by --exclude '*_mask*'"
    assert source.read(1) == all_of_it.read(2)
    assert source.fingerprint() != all_of_it.fingerprint()
    assert source.stamp() != all_of_it.stamp()
    again = pickle.loads(pickle.dumps(source))
    assert names(again) == names(source) and again.stamp() == source.stamp()
    assert len(scan(source).sizes) == 2
    only = open_source(spec, listing=Listing(include=("cat/*",), exclude=("*_mask*",)))
    assert [name.split("/")[-1] for name in names(only)] == ["1.png"]


def test_what_is_left_is_the_set_without_the_others(tmp_path):
    """As if the others had never been there: the same run resumes."""
    one = open_source(plant(tmp_path / "a", *NAMES), listing=Listing(exclude=("*_mask*",)))
    two = open_source(plant(tmp_path / "b", *NAMES[::2]))
    assert one.fingerprint() == two.fingerprint()


@pytest.mark.parametrize("kind", ["array", "torchvision", "hf", "digits"])
def test_images_without_names_have_no_patterns(tmp_path, kind):
    with pytest.raises(UserError, match="numbers, no names that a pattern could match"):
        open_source(BUILDERS[kind](tmp_path / "set", 3), listing=Listing(exclude=("*",)))


def test_patterns_that_do_nothing_or_take_everything(tmp_path):
    plant(tmp_path, *NAMES)
    with pytest.raises(UserError, match=r"'\*_msk\*' matches none of the 4 images .*'cat/1.png'"):
        open_source(tmp_path, listing=Listing(exclude=("*_mask*", "*_msk*")))
    with pytest.raises(UserError, match=r"leaves nothing of the 4 images"):
        open_source(tmp_path, listing=Listing(exclude=("*.png",)))
    kept = open_source(tmp_path, listing=Listing(exclude=("*_msk*",), inherited=True))
    assert len(kept) == 4


def test_a_pair_needs_a_match_in_one_of_the_two(tmp_path):
    plant(tmp_path / "train", *NAMES)
    plant(tmp_path / "val", *NAMES[::2])
    train, val = open_pair(str(tmp_path), None, listing=Listing(exclude=("*_mask*",)))
    assert len(train) == len(val) == 2


def test_a_class_that_is_excluded_is_no_empty_class(tmp_path):
    plant(tmp_path, *NAMES, "masks/1.png", "masks/2.png")
    source = open_source(tmp_path, listing=Listing(exclude=("masks",)))
    assert set(labelled(source, "")[1]) == {"cat", "dog"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="class folder 'empty'"):
        labelled(source, "")


def test_broken_files_that_are_excluded_are_not_reported(tmp_path):
    plant(tmp_path, *NAMES)
    (tmp_path / "cat/9_mask.png").symlink_to("nowhere")
    (tmp_path / "cat/9.png").symlink_to("nowhere")
    source = open_source(tmp_path, listing=Listing(exclude=("*_mask*",)))
    assert [bad.name for bad in source.unusable] == ["cat/9.png"]


@pytest.mark.parametrize("pattern", [*"[/.\\(", "[!", "**", "*", "", "../*", "[z-a]", "a{1}", "a/"])
def test_odd_patterns_select_or_are_refused_in_a_line(tmp_path, pattern):
    plant(tmp_path, *NAMES, "a/1.png")
    found = outcome(lambda: open_source(tmp_path, listing=Listing(exclude=(pattern,))))
    if pattern == "a/":
        assert found == NAMES
    else:
        assert re.search("matches none|leaves nothing", found) and "\n" not in found


@pytest.mark.parametrize("glob", ["[", "*/", "*.jpg", "**/", "?", "?/[0-9].png", "***", "*/*/*"])
def test_odd_globs_open_or_are_refused_in_a_line(tmp_path, glob):
    plant(tmp_path, "a/1.png", "b/2.png")
    found = outcome(lambda: open_source(f"{tmp_path}/{glob}"))
    refused = isinstance(found, str) and re.fullmatch("no (image matches|such folder) .*", found)
    assert refused or found == ["a/1.png", "b/2.png"]
