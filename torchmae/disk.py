"""Files that are whole or not there, at any kill or crash."""

import hashlib
import os
from pathlib import Path


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
