"""Lists and tables: columns, delimiters, headers, paths of other systems."""

import codecs
import json

import pytest
from helpers.sources import labels, names, outcome, plant

from torchmae.data.sources import open_source
from torchmae.data.sources.lists import find_delimiter, open_list
from torchmae.errors import UserError


def groups(source):
    return [source.group(i) for i in range(len(source))]


def write(at, text, name="x.csv", encoding="utf-8"):
    plant(at, "im/a.png", "im/b.png", "im/c, d.png")
    (at / name).write_bytes(text.encode(encoding))
    return str(at / name)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_delimiters_are_found_by_looking(tmp_path, delimiter, name):
    text = 'path,label,age\nim/a.png,cat,3\n"im/c, d.png",dog,4\n'
    if delimiter != ",":
        text = text.replace(",", delimiter).replace("c; d", "c, d").replace("c\t d", "c, d")
    source = open_source(write(tmp_path, text, name))
    assert names(source) == ["im/a.png", "im/c, d.png"] and labels(source) == ["cat", "dog"]


@pytest.mark.parametrize(
    "text, want",
    [
        ("a;b\n1,5;2,5\n", ";"),
        ("a,b\n1;5,2\n", ","),
        ("a\tb\n1, 2; 3\tx\n", "\t"),
        ("one\ntwo\n", ","),
        ("", ","),
        ('path;label\n"a,b;c.png";x\n', ";"),
        ("path;label\na.png;x;more\n", ";"),
    ],
)
def test_the_delimiter(text, want):
    assert find_delimiter(text) == want


@pytest.mark.parametrize(
    "text, columns, want",
    [
        ("id,shot,dx\n1,im/a.png,x\n2,im/b.png,y\n", ("shot", "dx", None), ["x", "y"]),
        ("id,shot,dx\n1,im/a.png,x\n2,im/b.png,y\n", ("SHOT", " dx ", "id"), ["x", "y"]),
        ("id,shot,dx\n1,im/a.png,x\n2,im/b.png,y\n", (None, "dx", None), ["x", "y"]),
        ("id,shot,dx\n1,im/a.png,x\n2,im/b.png,y\n", (None, None, None), [None, None]),
        ("1,im/a.png,x\n2,im/b.png,y\n", ("2", "3", "1"), ["x", "y"]),
        ("1,im/a.png,x\n2,im/b.png,y\n", (None, "3", None), ["x", "y"]),
        ("im/a.png,x\nim/b.png,y\n", (None, None, None), ["x", "y"]),
        ("scan,grade\nim/a.png,x\nim/b.png,y\n", (None, "grade", None), ["x", "y"]),
    ],
)
def test_columns_by_header_number_or_content(tmp_path, text, columns, want):
    """And a header is never counted as a file."""
    source = open_list(write(tmp_path, text), *columns)
    assert names(source) == ["im/a.png", "im/b.png"] and source.unusable == []
    assert labels(source) == want
    assert groups(source) == (["1", "2"] if columns[2] else [None, None])


def test_a_listed_file_that_is_missing_is_no_header(tmp_path):
    source = open_source(write(tmp_path, "im/gone.png,x\nim/a.png,y\nim/b.png,x\n"))
    assert [bad.name for bad in source.unusable] == ["im/gone.png"] and len(source) == 2


def test_paths_of_windows_and_quoted_cells(tmp_path):
    text = 'Path,Label\nim\\a.png,cat\n"im\\c, d.png","a ""small"" dog"\n'
    source = open_source(write(tmp_path, text))
    assert names(source) == ["im/a.png", "im/c, d.png"]
    assert labels(source) == ["cat", 'a "small" dog']
    odd = tmp_path / "im\\odd.png"  # a backslash may also be a letter
    odd.write_bytes((tmp_path / "im/a.png").read_bytes())
    (tmp_path / "y.csv").write_text("path\nim\\odd.png\n")
    assert names(open_source(tmp_path / "y.csv")) == ["im\\odd.png"]
    (tmp_path / "z.csv").write_text("path,label\nC:\\data\\a.png,x\n")
    with pytest.raises(UserError, match="a path of Windows, with a drive"):
        open_source(tmp_path / "z.csv")


def test_objects_line_by_line(tmp_path):
    rows = [
        {"id": 7, "image": "im\\a.png", "label": "cat", "who": "p1"},
        {"image": "im/b.png", "label": 3, "more": {"x": [1]}},
        {"image": "im/c, d.png", "label": None, "who": "p1"},
        {"label": "no path"},
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path = write(tmp_path, f"{text}\n", "x.jsonl", "utf-8-sig")
    source = open_source(path)
    assert names(source) == ["im/a.png", "im/b.png", "im/c, d.png"]
    assert labels(source) == ["cat", "3", None] and len(source.unusable) == 1
    named = open_list(path, "image", "id", "WHO")
    assert labels(named) == ["7", None, None] and groups(named) == ["p1", None, "p1"]
    with pytest.raises(UserError, match="no column 'file'; its first line is: id, image, label"):
        open_list(path, "file")


@pytest.mark.parametrize(
    "line", ['{"path": "im/a.png"', "[1]", "im/a.png", '"\\ud800"', "[" * 9999]
)
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = write(tmp_path, f'{{"path": "im/a.png", "label": "\\ud800"}}\n\n{line}\n', "x.jsonl")
    with pytest.raises(UserError, match="line 3 of '.*' is no JSON object") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_at_the_beginning(tmp_path, encoding):
    source = open_source(write(tmp_path, "file\tclass\nim/a.png\tä\n", "x.tsv", encoding))
    assert names(source) == ["im/a.png"] and labels(source) == ["ä"]
    start = (tmp_path / "x.tsv").read_bytes()[:2]
    assert start in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def test_columns_that_there_are_not(tmp_path):
    path = write(tmp_path, "id,shot,dx\n1,im/a.png,x\n")
    for columns in (("file", None, None), (None, "dz", None), (None, None, "4")):
        with pytest.raises(UserError, match="has no column '.*'; its first line is: id, shot, dx"):
            open_list(path, *columns)
    (tmp_path / "x.txt").write_text("im/a.png\n")
    with pytest.raises(UserError, match="a table is a .csv, .tsv, .jsonl or .parquet"):
        open_list(str(tmp_path / "x.txt"), "file")
    (tmp_path / "y.csv").write_text("id,name\n1,a.png\n")
    with pytest.raises(UserError, match="--path-column names another column: id, name"):
        open_source(tmp_path / "y.csv")


def test_rows_without_a_label_or_a_first_cell(tmp_path):
    source = open_source(write(tmp_path, "note,path,label\n,im/a.png,x\nhm,im/b.png,\n,,\n"))
    assert names(source) == ["im/a.png", "im/b.png"] and labels(source) == ["x", None]


ODD = {
    "an open quote": b'path,label\n"im/a.png,cat\nim/b.png,dog\n',
    "a NUL": b"path,label\nim/a.png,c\0at\n",
    "Latin-1": "path,label\nim/a.png,k\xe4tzchen\n".encode("latin-1"),
    "old Mac lines": b"path,label\rim/a.png,cat\rim/b.png,dog\r",
    "a header alone": b"path,label\n",
    "spaces": b"path , label\n im/a.png , cat \n",
    "a column twice": b"img,img\nim/a.png,im/b.png\n",
    "nothing": b"",
    "white space": b"\n \n\t\n",
    "a huge cell": b'path,label\nim/a.png,"' + b"x" * 200_000 + b'"\n',
    "half a UTF-16": "path,label\nim/a.png,cat\n".encode("utf-16")[:-1],
    "binary": bytes(range(256)) * 8,
    "one row, wide": b"path" + b";x" * 5000 + b"\nim/a.png\n",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tables_open_or_are_refused_in_a_line(tmp_path, name):
    plant(tmp_path, "im/a.png", "im/b.png")
    (tmp_path / "x.csv").write_bytes(ODD[name])
    found = outcome(lambda: open_source(tmp_path / "x.csv"))
    opened = name in OPENED
    assert opened == isinstance(found, list), found
    assert found[0] == "im/a.png" if opened else "\n" not in found and len(found) < 1000


OPENED = {"a NUL", "Latin-1", "old Mac lines", "spaces", "a column twice", "one row, wide"}
