"""mae predict: the table that it writes."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

import torchmae
from torchmae.cli import main
from torchmae.data.sources.source import distinct
from torchmae.errors import UserError
from torchmae.report.tables import write_table
from torchmae.tasks.predict.run import prediction_columns


def test_predictions_agree_with_evaluate(classifier: Path, photos: Path, tmp_path: Path) -> None:
    result = torchmae.evaluate(classifier, photos)
    out = torchmae.predict(classifier, photos, out=tmp_path / "p.csv")
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["count"] == 24
    right = sum(row["path"].startswith(f"{row['class']}/") for row in rows)
    assert right / 24 == pytest.approx(result["top1"])
    for row in rows:
        shares = [float(row[f"p_{name}"]) for name in ("across", "blob", "down")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert max(shares) == float(row["probability"])
    import pyarrow.parquet

    out = torchmae.predict(classifier, photos, out=tmp_path / "p.parquet")
    table = pyarrow.parquet.read_table(out)
    assert table.column("class").to_pylist() == [row["class"] for row in rows]


def test_single_files(
    classifier: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the order given, named as given, with the same probabilities as in the folder."""
    out = torchmae.predict(classifier, photos, out=tmp_path / "all.csv")
    with out.open(newline="", encoding="utf-8") as file:
        whole = {row["path"]: row for row in csv.DictReader(file)}
    shutil.copy(photos / "across" / "1.jpg", tmp_path / "UPPER.JPG")
    (tmp_path / "broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    one, other = str(photos / "blob" / "0.jpg"), "UPPER.JPG"
    torchmae.predict(classifier, (one, other, one, "broken.png"), out="p.csv")
    said = capsys.readouterr().out
    with Path("p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("path") for row in rows] == [one, other]
    expected = [whole["blob/0.jpg"], whole["across/1.jpg"]]
    for row, same in zip(rows, expected):
        assert row.pop("class") == same["class"]
        assert all(float(row[n]) == pytest.approx(float(same[n]), abs=1e-5) for n in row)
        assert f": {same['class']} {float(same['probability']):.1%}, " in said
    assert "skipped: broken.png: not an image" in said
    assert main(["predict", str(classifier), other, "--out", "q.csv"]) == 0
    assert torchmae.predict(classifier, other, out="r.csv").read_text() == Path("q.csv").read_text()


def test_single_files_that_are_none(classifier: Path, photos: Path, tmp_path: Path) -> None:
    good = str(photos / "blob" / "0.jpg")
    for data, words in [
        ((good, "missing.jpg"), "cannot read missing.jpg: No such file"),
        (("missing.jpg",), "cannot read missing.jpg: No such file"),
        ((good, str(photos)), "is not a file: give image files, or one folder"),
        ((str(photos), str(photos / "blob")), "is not a file: give image files"),
    ]:
        with pytest.raises(UserError, match=words):
            torchmae.predict(classifier, data, out=tmp_path / "p.csv")
    assert list(tmp_path.iterdir()) == []


def test_classes_named_like_columns(tmp_path: Path) -> None:
    import pyarrow.parquet

    names = distinct(["path", "class", "probability", "crane", "crane"])
    shares = np.array([[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.6]], dtype=np.float32)
    columns = prediction_columns(["1.jpg", "2.jpg"], shares, names)
    for suffix in (".csv", ".parquet"):
        write_table(tmp_path / f"p{suffix}", columns, digits=6)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    wanted = ["path", "class", "probability", "p_path", "p_class", "p_probability"]
    wanted += ["p_crane (3)", "p_crane (4)"]
    assert header == wanted
    assert [row[:3] for row in rows] == [
        ["1.jpg", "path", "0.5"],
        ["2.jpg", "crane (4)", "0.6"],
    ]
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == wanted
    assert table.column("path").to_pylist() == ["1.jpg", "2.jpg"]
    assert table.column("p_path").to_pylist() == pytest.approx([0.5, 0.1])


def test_an_out_that_cannot_be_written_is_found_first(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchmae.tasks.predict.run.collect", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for name, words in (
        ("file/p.csv", "cannot be written"),
        ("folder.csv", "is a folder: name a file"),
    ):
        with pytest.raises(UserError, match=f"--out .*{name} {words}"):
            torchmae.predict(classifier, photos, out=tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.csv"]


def test_mistakes(classifier: Path, run: Path, photos: Path, tmp_path: Path) -> None:
    for suffix in (".txt", ".npz"):
        with pytest.raises(UserError, match=f"unknown kind of file '{suffix}'"):
            torchmae.predict(classifier, photos, out=tmp_path / f"p{suffix}")
    with pytest.raises(UserError, match="holds no classifier"):
        torchmae.predict(run, photos, out=tmp_path / "p.csv")
