"""Shape checking is on for every test: jaxtyping's annotations are enforced by beartype, in the tests only."""

from jaxtyping import install_import_hook

hook = install_import_hook("torchmae", "shape_checks.check")
