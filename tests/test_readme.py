"""The Python of the README runs as it is."""

from pathlib import Path

import pytest
from helpers.documents import ROOT, blocks
from helpers.small import SMALL, make_photos


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    make_photos(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)
    small = ", ".join(f"{name}={value!r}" for name, value in SMALL.items())
    code = code.replace("epochs=50", f"epochs=1, {small}")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["tokens"].shape == (2, 1 + 16, 128)
    assert (tmp_path / "four.png").exists() and (tmp_path / "features.npz").exists()
