"""Files that are whole or not there, at any kill or crash."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from torchmae.errors import RunError, UserError


def refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder: name a new one")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, or leaves nothing."""
    partial = out.with_name(f".partial-{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(
                    partial.stat().st_mode & 0o666
                )  # safetensors makes its files for their owner only
                sync(file)
        os.rename(partial, out)
        sync(out.parent)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"could not write {out}: {getattr(error, 'strerror', None) or error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that it is whole or not there, at any kill or crash."""
    write_whole(path, text.encode())


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, path: Path) -> None:
    """Gives a finished file its name, once it is on the disk."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name first; nothing of it is left where that fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        publish(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
