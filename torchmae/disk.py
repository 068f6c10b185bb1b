"""Files that are complete or not there, at any kill or crash."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from torchmae.errors import RunError, UserError


def refuse_full(out: Path) -> None:
    """A `UserError` unless `out` is an empty folder or not there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder: name a new one")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, or leaves nothing.

    Raises:
        RunError: the disk fails.
    """
    partial = out.with_name(f".partial-{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                # safetensors makes its files for their owner only
                file.chmod(partial.stat().st_mode & 0o666)
                sync(file)
        os.rename(partial, out)
        sync(out.parent)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"could not write {out}: {getattr(error, 'strerror', None) or error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, with the suffix of `path`: it becomes `path` at the end, or leaves nothing.

    For tables and pictures: unlike `write_whole` it does not wait for the disk.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as `write_whole` does."""
    write_whole(path, text.encode())


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is complete or not there, even after a power failure."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        publish(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Gives a finished file its name, once it is on the disk."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def copy(source: Path, target: Path) -> None:
    """Copies a file into one of its own: a write into one never changes the other.

    File systems that can (btrfs, XFS, ...) share the blocks until then, at no cost in space.
    """
    with source.open("rb") as old, target.open("wb") as new:
        left = os.fstat(old.fileno()).st_size
        try:
            while left and (count := os.copy_file_range(old.fileno(), new.fileno(), left)):
                left -= count
        except (AttributeError, OSError):  # not Linux; another file system; or a full disk
            left = max(left, 1)
    if left:
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(data: str | bytes) -> Any:
    """JSON from a file; ValueError also for what is nested too deeply to be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def cache_folder(kind: str) -> Path:
    """A folder of the user's cache, such as "scans". It may not exist, nor be writable."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        root = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # nobody's home: below this nothing can be made
        root = Path(os.devnull)
    return root / "torchmae" / kind
