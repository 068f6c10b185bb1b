"""Runs that several verbs are tested on."""

import shutil
from pathlib import Path

import pytest
from helpers.small import QUICK


@pytest.fixture(scope="module")
def classifier(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torchmae

    out = tmp_path_factory.mktemp("classifier") / "run"
    return Path(torchmae.finetune(run, photos, out=out, **{**QUICK, "epochs": 3}))


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run without results."""
    folder = shutil.copytree(run, tmp_path / "small")
    (folder / "results.json").unlink(missing_ok=True)
    return folder
