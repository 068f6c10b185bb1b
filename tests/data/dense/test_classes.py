"""Tables of classes as people write them, and what values of masks come to mean."""

import json

import pytest

from torchmae.data.dense.classes import decide, palette_color, read_table
from torchmae.data.dense.masks import Survey
from torchmae.errors import UserError


def found(values, colored=False, several=False, palette=()):
    return Survey([dict.fromkeys(values, 5)], [], colored, several, palette)


@pytest.mark.parametrize(
    "content",
    [
        ["sky", "road"],
        {"sky": 0, "road": 1},
        {"0": "sky", "1": "road"},
        {"classes": ["sky", "road"]},
        [{"name": "sky", "value": 0}, {"name": "road", "id": 1}],
    ],
)
def test_names_and_values_in_json(tmp_path, content):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    entries = read_table(tmp_path / "classes.json")
    assert [(one.name, one.value) for one in entries] == [("sky", 0), ("road", 1)]


@pytest.mark.parametrize(
    "name, text",
    [
        ("c.json", '{"sky": [128, 128, 128], "road": "#804080"}'),
        ("class_dict.csv", "name,r,g,b\nsky,128,128,128\nroad,128,64,128\n"),
        ("label_colors.txt", "128 128 128\tsky\n128 64 128 road\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:128,128,128::\nroad:128,64,128::\n"),
    ],
)
def test_names_and_colors(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    entries = read_table(tmp_path / name)
    assert [(one.name, one.color) for one in entries] == [
        ("sky", (128, 128, 128)),
        ("road", (128, 64, 128)),
    ]


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": [1, 2]}', '["a", "a"]', "{"])
def test_what_is_no_table(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match="no table of classes"):
        read_table(tmp_path / "classes.json")


def test_values_that_are_found_are_classes():
    classes = decide(found([0, 3, 7, 255]), None, (), ("255",), "data")
    assert classes.names == ("0", "3", "7") and classes.coding.values == (0, 3, 7)
    assert classes.coding.ignored == (255,)
    classes = decide(found([0, 1, 2]), None, ("a", "b"), ("0", "255"), "data")
    assert classes.names == ("a", "b") and classes.coding.values == (1, 2)


def test_black_and_white_is_background_and_object():
    classes = decide(found([0, 255]), None, (), ("255",), "data")
    assert classes.names == ("background", "object") and classes.coding.kind == "objects"
    assert decide(found([0, 1], several=True), None, ("no", "yes"), (), "x").names == ("no", "yes")


def test_a_table_gives_names_and_ignored_classes(tmp_path):
    (tmp_path / "c.json").write_text('{"sky": 0, "void": 11, "road": 4}')
    table = read_table(tmp_path / "c.json")
    classes = decide(found([0, 4, 11]), table, (), ("void",), "data")
    assert classes.names == ("sky", "road") and classes.coding.ignored == (11,)


def test_colors_need_a_table(tmp_path):
    with pytest.raises(UserError, match=r"color images \(2 colors, such as #804080"):
        decide(found([0x804080, 0], colored=True), None, (), (), "data")
    (tmp_path / "c.json").write_text('{"void": [0, 0, 0], "road": "#804080", "sky": "#ffffff"}')
    table = read_table(tmp_path / "c.json")
    classes = decide(found([0x804080, 0], colored=True), table, (), ("255", "void"), "data")
    assert classes.coding.kind == "colors" and classes.coding.values == (0x804080, 0xFFFFFF)
    assert classes.colors == ((128, 64, 128), (255, 255, 255)) and classes.coding.ignored == (0,)


def test_mistakes():
    with pytest.raises(UserError, match="--ignore grass: a value"):
        decide(found([0, 1]), None, (), ("grass",), "data")
    with pytest.raises(UserError, match="fewer than two classes"):
        decide(found([0, 1]), None, (), ("0",), "data")
    with pytest.raises(UserError, match="300 different values"):
        decide(found(range(300)), None, (), (), "data")


def test_the_palette_is_that_of_pascal_voc():
    expected = {1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128)}
    assert {i: palette_color(i) for i in expected} == expected
    assert len({palette_color(i) for i in range(255)}) == 255


def test_the_palette_of_the_masks_is_kept():
    palette = ((1, 1, 1), (2, 2, 2), (9, 8, 7))
    assert decide(found([0, 2], palette=palette), None, (), (), "x").colors == (
        (1, 1, 1),
        (9, 8, 7),
    )
