"""Files of rows: whether they can be written, and the library for Parquet."""

from pathlib import Path
from typing import Any

from torchmae.errors import UserError, missing_extra


def ready(out: Path) -> None:
    """A `UserError`, before anything is computed, if the file cannot be written; its folder is made."""
    trial = out.with_name(f".partial-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written ({error.strerror or error}): name another file"
        ) from error
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")


def pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet") from error
    return pyarrow, pyarrow.parquet
