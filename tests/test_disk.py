"""Files that are complete or not there."""

from pathlib import Path

import pytest

from torchmae.disk import whole_file


def test_a_file_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with whole_file(path) as partial:
        partial.write_text("one")
        assert partial.suffix == ".png"
        assert not path.exists()

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
