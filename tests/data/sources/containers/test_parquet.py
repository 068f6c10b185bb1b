"""Parquet files that pyarrow and pandas-like writers make: images in rows, and tables of paths."""

import json
import pickle

import numpy as np
import pytest
from helpers.sources import labels, names, plant, png

from torchmae.data.config import Listing
from torchmae.data.decode import BadImage
from torchmae.data.sources import open_source
from torchmae.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="an extra")
parquet = pytest.importorskip("pyarrow.parquet")

PICTURE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def written(path, columns, rows=2, names=None):
    table = pyarrow.table(columns)
    if names:  # as `datasets` writes it
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    parquet.write_table(
        table, path, row_group_size=rows, use_dictionary=False, write_page_checksum=True
    )
    return path


def test_as_hugging_face_writes_them(tmp_path):
    plant(tmp_path / "more", "z.png")
    rows: list[dict[str, object] | None] = [{"bytes": png(i), "path": f"{i}.png"} for i in range(5)]
    rows += [{"bytes": None, "path": "more/z.png"}, None]
    classes = [0, 1, 0, 1, 1, -1, None]
    columns = {"image": pyarrow.array(rows, PICTURE), "label": pyarrow.array(classes, "int64")}
    for k in range(2):
        written(tmp_path / f"train-{k}.parquet", columns, names=["cat", "dog"])
    source = open_source(f"{tmp_path}/train-*.parquet")
    assert len(source) == 14 and names(source)[::13] == ["train-0.parquet[0]", "train-1.parquet[6]"]
    assert labels(source)[:7] == ["cat", "dog", "cat", "dog", "dog", None, None]
    for i in (4, 11, 0, 7):  # in any order
        assert source.read(i) == png(i % 7)
    assert source.read(5) == (tmp_path / "more" / "z.png").read_bytes()
    with pytest.raises(BadImage, match="no image in this row"):
        source.read(6)
    assert pickle.loads(pickle.dumps(source)).read(4) == png(4)


def test_a_plain_column_of_any_name_and_a_folder(tmp_path):
    files = tmp_path / "set"
    files.mkdir()
    columns = {"who": ["a", "b", "a"], "shot": [png(i) for i in range(3)], "grade": [1, 2, 3]}
    written(files / "x.parquet", columns)
    (files / "README.md").write_text("about")
    source = open_source(files, listing=Listing(label_column="grade", group_column="who"))
    assert labels(source) == ["1", "2", "3"] and source.group(2) == "a"
    assert [source.read(i) for i in range(3)] == columns["shot"]
    with pytest.raises(UserError, match="no column 'rank'; its first line is: who, shot, grade"):
        open_source(files / "x.parquet", listing=Listing(label_column="rank"))


def test_a_table_of_paths(tmp_path):
    plant(tmp_path, "im/a.png", "im/b.png")
    columns = {
        "file": ["im\\a.png", "im/b.png", "gone.png"],
        "label": ["x", None, "y"],
        "n": [[1]] * 3,
    }
    source = open_source(written(tmp_path / "x.parquet", columns))
    assert names(source) == ["im/a.png", "im/b.png"] and labels(source) == ["x", None]
    assert [bad.name for bad in source.unusable] == ["gone.png"]


def test_damaged_files_are_named(tmp_path):
    random = np.random.default_rng(0)
    images = [random.bytes(3000) for _ in range(6)]
    path = written(tmp_path / "x.parquet", {"image": images})
    whole = path.read_bytes()
    source = open_source(path)
    piece = images[0][1000:1040]
    at = whole.find(piece, whole.find(piece) + 1)  # the first is in a header, as the largest value
    path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    assert source.is_changed(0)
    source = open_source(path)  # the first one may have the group in memory
    with pytest.raises(BadImage, match="its row group is damaged"):
        source.read(1)
    assert source.read(2) == images[2]
    (tmp_path / "cut.parquet").write_bytes(whole[:-30])
    (tmp_path / "none.parquet").write_bytes(b"")
    written(tmp_path / "numbers.parquet", {"x": np.arange(3)})
    for name, message in (
        ("cut.parquet", "cannot read '.*cut.parquet' as Parquet"),
        ("none.parquet", "cannot read '.*none.parquet' as Parquet"),
        ("gone.parquet", "no Parquet file"),
        ("numbers.parquet", "names no image that exists"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)
