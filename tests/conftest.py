"""Shape checking is on for every test: jaxtyping's annotations are enforced by beartype, in the tests only.

Files of tests run side by side (pytest-xdist), so each keeps to one thread. The user's cache is left alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import helpers.shape_checks
import pytest
from jaxtyping import install_import_hook

assert helpers.shape_checks.check  # the hook finds it by name, once its module is imported
hook = install_import_hook("torchmae", "helpers.shape_checks.check")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Also for the commands that tests start."""
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

    return torchmae.pretrain(
        str(photos), out=str(tmp_path_factory.mktemp("runs") / "small"), epochs=3, **SMALL
    )


@pytest.fixture(autouse=True)
def console() -> None:
    """Messages of the library are shown, so that tests can read them, as the command line does."""
    from torchmae.cli import show_messages

    show_messages()
