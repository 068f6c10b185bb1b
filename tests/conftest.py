"""Shape checking is on for every test: jaxtyping's annotations are enforced by beartype, in the tests only.

Files of tests run side by side (pytest-xdist), so each keeps to one thread.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

hook = install_import_hook("torchmae", "shape_checks.check")
