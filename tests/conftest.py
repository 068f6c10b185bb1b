"""Shape checking is on for every test: jaxtyping's annotations are enforced by beartype, in the tests only.

Files of tests run side by side (pytest-xdist), so each keeps to one thread. The user's cache is left alone.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

hook = install_import_hook("torchmae", "shape_checks.check")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Also for the commands that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
