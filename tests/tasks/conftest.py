"""A labelled folder and a run that was really trained on it, made once for all tests of the tasks."""

from pathlib import Path

import pytest
from small import SMALL, make_photos

import torchmae


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchmae.pretrain(str(photos), out=str(tmp_path_factory.mktemp("runs") / "small"), epochs=3, **SMALL)
