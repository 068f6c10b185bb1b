"""The README's Python runs as it stands; what documents link to is there; the example of docs/extending.md works."""

import re
from pathlib import Path

import pytest
import torch
from helpers.small import SMALL, make_photos

ROOT = Path(__file__).parent.parent


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", file.read_text(), re.DOTALL)


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    make_photos(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)
    small = ", ".join(f"{name}={value!r}" for name, value in SMALL.items())
    code = code.replace("epochs=50", f"epochs=1, {small}")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["tokens"].shape == (2, 1 + 16, 128)  # type: ignore[attr-defined]
    assert (tmp_path / "four.png").exists() and (tmp_path / "features.npz").exists()


def test_the_example_of_a_new_masking_works() -> None:
    from torchmae.models.masking import mask_from_order, noise

    (code,) = blocks(ROOT / "docs" / "extending.md", "python")
    names: dict[str, object] = {"torch": torch, "split": mask_from_order}
    exec(code, names)
    zeros = torch.zeros(4, dtype=torch.int64)
    mask = names["half"](noise(0, zeros, torch.arange(4), 16), (4, 4), 0.5)  # type: ignore[operator]
    for keep in mask.keep.tolist():
        assert {i % 4 for i in keep} in ({0, 1}, {2, 3})


def test_links_lead_somewhere() -> None:
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert link.startswith("https://") or (file.parent / link).exists(), (
                f"{file.name}: {link}"
            )
