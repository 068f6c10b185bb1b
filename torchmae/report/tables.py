"""Tables: columns of rows in .npz, .csv or .parquet files."""

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmae.disk import whole_file
from torchmae.errors import RunError, UserError, choose, missing_extra

# Strings [N], or float32 [N] or [N, F].
Column = Sequence[str] | np.ndarray


def check_table(out: Path, suffixes: Collection[str]) -> None:
    """Makes sure that a table can be written to `out`, before anything is computed.

    The file's folder is made.

    Args:
        out: the file; its suffix decides the format.
        suffixes: those that are allowed, out of `WRITERS`.

    Raises:
        UserError: another suffix, a folder, not writable, or pyarrow is missing.
    """
    choose(dict.fromkeys(suffixes), out.suffix.lower(), "kind of file")
    if out.suffix.lower() == ".parquet":
        pyarrow()
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


def write_table(out: Path, columns: Mapping[str, Column], digits: int = 9) -> None:
    """Writes a table, which is whole or not there.

    Args:
        out: the file; .csv, .parquet or .npz.
        columns: by name, all of one length.
        digits: significant digits in a .csv; 9 keep a float32 exactly.

    Raises:
        RunError: the disk fails.
    """
    try:
        with whole_file(out) as partial:
            WRITERS[out.suffix.lower()](partial, columns, digits)
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error


def write_npz(path: Path, columns: Mapping[str, Column], digits: int) -> None:
    """An array for each column; the column "path" becomes the array "paths"."""
    arrays: dict[str, Any] = {
        "paths" if name == "path" else name: np.array(column) for name, column in columns.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_csv(path: Path, columns: Mapping[str, Column], digits: int) -> None:
    """Text; a column of vectors becomes the columns f0, f1, ... Names are no formulas
    (`no_formula`); numbers are as they are."""
    header: list[str] = []
    for name, column in columns.items():
        if isinstance(column, np.ndarray) and column.ndim == 2:
            header += [f"f{i}" for i in range(column.shape[1])]
        else:
            header.append(name)

    def cells(value: Any) -> list[str]:
        if isinstance(value, str):
            return [no_formula(value)]
        numbers = value if isinstance(value, list) else [value]
        return [f"{number:.{digits}g}" for number in numbers]

    lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
    # File names can be any bytes: they are written as they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(map(no_formula, header))
        table.writerows([cell for value in row for cell in cells(value)] for row in zip(*lists))


def no_formula(text: str) -> str:
    """A text that spreadsheets do not compute: OWASP's rule against CSV injection.

    Programs such as Excel run a cell that begins with = + - @, a tab or a line end as a formula; a
    single quote before it makes it text.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def write_parquet(path: Path, columns: Mapping[str, Column], digits: int) -> None:
    """A column of vectors is a fixed-size list."""
    arrow, parquet = pyarrow()
    arrays = {
        name: arrow.FixedSizeListArray.from_arrays(arrow.array(column.ravel()), column.shape[1])
        if isinstance(column, np.ndarray) and column.ndim == 2
        else column
        for name, column in columns.items()
    }
    parquet.write_table(arrow.table(arrays), path)


def pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet") from error
    return pyarrow, pyarrow.parquet


WRITERS: dict[str, Callable[[Path, Mapping[str, Column], int], None]] = {
    ".npz": write_npz,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
