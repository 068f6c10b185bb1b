"""Tables in files: what every kind keeps, and what a full disk leaves."""

import csv
from pathlib import Path

import numpy as np
import pytest

from torchmae.errors import RunError, UserError
from torchmae.report.tables import WRITERS, Column, check_table, write_table

COLUMNS: dict[str, Column] = {
    "path": ["a\udcff.jpg", "b, c.jpg"],
    "score": np.array([1 / 3, 2], dtype=np.float32),
    "features": np.array([[1 / 3, 2, 3], [4, 5, 6]], dtype=np.float32),
}


def test_csv_keeps_float32_exactly_and_names_of_any_bytes(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", COLUMNS)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "score", "f0", "f1", "f2"]
    assert [row[0] for row in rows] == COLUMNS["path"]
    numbers = np.array([row[1:] for row in rows], dtype=np.float32)
    assert np.array_equal(numbers[:, 0], COLUMNS["score"])
    assert np.array_equal(numbers[:, 1:], COLUMNS["features"])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_full_disk_leaves_the_earlier_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"t{suffix}"
    write_table(out, {**COLUMNS, "path": ["a", "b"]})
    before = out.read_bytes()

    def full(path: Path, *_: object) -> None:
        path.write_bytes(before[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, suffix, full)
    with pytest.raises(RunError, match=f"could not write {out}: No space left on device"):
        write_table(out, COLUMNS)
    assert out.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    check_table(tmp_path / "new" / "t.csv", WRITERS)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match=r"unknown kind of file '.npz'; one of: .csv"):
        check_table(tmp_path / "t.npz", (".csv",))
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UserError, match="is a folder: name a file"):
        check_table(tmp_path / "t.csv", WRITERS)
