"""Arrays written row by row, so that they may be larger than memory: .safetensors, .npy."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float16
from torch import Tensor

from torchmae.disk import write_text
from torchmae.errors import RunError, UserError

MOST_HEADER = 100_000_000  # bytes, that safetensors reads


class Rows(NamedTuple):
    """A file that is being written: `add` appends rows; `finish` says how many there are, with what
    is known of them."""

    add: Callable[[Float16[Tensor, "B ..."]], None]
    finish: Callable[[list[str], Mapping[str, Any]], None]


@contextmanager
def rows_file(out: Path, shape: tuple[int, ...], names: list[str]) -> Iterator[Rows]:
    """A float16 array whose rows come one after the other; it is whole or not there.

    The header comes first in both formats, and how many rows follow is known last: room for the
    longest one is left, and it is written again in the end.

    Args:
        out: the file, .safetensors or .npy.
        shape: of all rows that there may be.
        names: of all these rows, of which `finish` gets those that are there.

    Raises:
        UserError: the disk has not enough space, or the names fill more than a header.
        RunError: the disk fails.
    """
    need, free = 2 * int(np.prod(shape)), shutil.disk_usage(out.parent).free
    if need > free:
        raise UserError(
            f"--out {out} would take {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free: name "
            "a file on another disk, or a part of DATA by --include"
        )
    header = HEADERS[out.suffix.lower()]
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    longest = len(header(shape, names, {"none": " " * 4096}, 0))
    try:
        with partial.open("wb") as file:
            file.write(bytes(longest))

            def add(rows: Float16[Tensor, "B ..."]) -> None:
                file.write(rows.contiguous().numpy().tobytes())

            def finish(kept: list[str], about: Mapping[str, Any]) -> None:
                whole = (len(kept), *shape[1:])
                write_header(file, header(whole, kept, about, longest), longest)
                if out.suffix.lower() == ".npy":
                    write_text(beside(out), json.dumps({**about, "paths": kept}, indent=1))

            yield Rows(add, finish)
        partial.replace(out)
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def beside(out: Path) -> Path:
    """The file with the names of a .npy's rows."""
    return out.with_suffix(".json")


def write_header(file: BinaryIO, header: bytes, room: int) -> None:
    """Fills the room at the beginning."""
    assert len(header) == room, "the longest header was not the longest"
    file.seek(0)
    file.write(header)
    file.seek(0, os.SEEK_END)


def safetensors_header(
    shape: tuple[int, ...], names: list[str], about: Mapping[str, Any], room: int
) -> bytes:
    """The length of a JSON text and that text, filled with spaces to `room` bytes."""
    words = {name: json.dumps(value) for name, value in about.items()}
    content = {
        "__metadata__": {"paths": json.dumps(names), **words},
        "features": {
            "dtype": "F16",
            "shape": list(shape),
            "data_offsets": [0, 2 * int(np.prod(shape))],
        },
    }
    text = json.dumps(content).encode()
    size = max(room, -(-(8 + len(text)) // 8) * 8)  # tensors begin at multiples of 8
    if size > MOST_HEADER:
        raise UserError("the names of these images fill more than a safetensors header: use .npy")
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


def npy_header(
    shape: tuple[int, ...], names: list[str], about: Mapping[str, Any], room: int
) -> bytes:
    """Version 1.0 of numpy's format, filled with spaces to `room` bytes."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}"
    size = max(room, -(-(10 + len(text) + 1) // 64) * 64)
    filled = text.ljust(size - 11).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + filled


HEADERS: dict[str, Callable[[tuple[int, ...], list[str], Mapping[str, Any], int], bytes]] = {
    ".safetensors": safetensors_header,
    ".npy": npy_header,
}
