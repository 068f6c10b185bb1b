"""Fixtures for all tests. Shapes in annotations (jaxtyping) are checked by beartype, in tests only.

Test files run in parallel (pytest-xdist), so each uses one thread. The user's cache is not touched.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import helpers.shape_checks  # noqa: F401 (the hook needs its module imported)
import pytest
from jaxtyping import install_import_hook

install_import_hook("torchmae", "helpers.shape_checks.check")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for this session, also for processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.small import make_photos

    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.small import SMALL

    import torchmae

    out = tmp_path_factory.mktemp("runs") / "small"
    return Path(torchmae.pretrain(photos, out=out, epochs=3, **SMALL))


@pytest.fixture(autouse=True)
def console() -> None:
    """Shows messages as the command line does, so that tests can read them from stdout."""
    from torchmae.cli import show_messages

    show_messages()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on pictures from here on."""
    from PIL import ImageDraw

    words: list[str] = []
    text = ImageDraw.ImageDraw.text

    def record(self, at, string, *rest, **options):
        words.append(string)
        return text(self, at, string, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return words
