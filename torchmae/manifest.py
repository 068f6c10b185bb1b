"""What files should be: manifest.json in a folder has the size and SHA-256 of each file it lists.

    {"model.safetensors": [{"bytes": 447112, "sha256": "..."}], ...}

A file and its manifest cannot be replaced in one step. `publish` therefore lists the old and the
new content first, then renames the file, then lists the new content alone: whenever a kill comes,
and whenever another process looks, what is there is listed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from torchmae import disk
from torchmae.errors import UserError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SMALL = 1 << 20  # bytes; a smaller file may change twice within one tick of the clock

T = TypeVar("T")
verifying: ContextVar[bool] = ContextVar("verifying", default=True)


class Content(NamedTuple):
    """What a file holds."""

    bytes: int
    sha256: str


@contextmanager
def verification(on: bool) -> Iterator[None]:
    """Whether `check` and `read` compare, inside; what is off stays off in a nested one."""
    token = verifying.set(on and verifying.get())
    try:
        yield
    finally:
        verifying.reset(token)


def content_of(path: Path) -> Content:
    """What a file holds now; a large one is read once while it stays as it is."""
    status = path.stat()
    if status.st_size < SMALL:
        return content_of_bytes(path.read_bytes())
    stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return Content(status.st_size, digest(path, stamp))


@lru_cache(maxsize=16)
def digest(path: Path, stamp: tuple[int, ...]) -> str:
    """The SHA-256 of a file with this stamp: 0.2 to 1 s for the 447 MB of a ViT-B's MAE."""
    return disk.sha256(path)


def content_of_bytes(data: bytes) -> Content:
    return Content(len(data), hashlib.sha256(data).hexdigest())


def listed(folder: Path) -> dict[str, list[Content]] | None:
    """What the manifest of a folder lists; None where there is none (runs made earlier).

    Raises:
        UserError: it is damaged.
    """
    path = folder / MANIFEST
    try:
        entries = disk.parse_json(path.read_bytes())
        return {
            str(name): [Content(int(one["bytes"]), str(one["sha256"])) for one in contents]
            for name, contents in entries.items()
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): restore it from a copy. If the other "
            "files are good, delete it: they are then used as they are"
        ) from error


def publish(
    folder: Path,
    files: Mapping[str, Path],
    adopt: Iterable[str] = (),
    known: Mapping[str, Content] | None = None,
) -> None:
    """Gives finished files their names in a folder, and lists them.

    For one process at a time: whoever holds the run's lock. A manifest that was damaged meanwhile
    is written again, since no training should end for it: with the files as they are now.

    Args:
        folder: of the manifest.
        files: name to the finished file, in the same folder under a temporary name.
        adopt: names that are listed as they are where the folder has no manifest, or a damaged one.
        known: what some files have to hold, where the caller knows; the others are read.

    Raises:
        OSError: the disk fails. The files are then the old or the new ones, and listed.
    """
    known = dict(known or {})
    try:
        before = listed_or_adopted(folder, adopt)
        contents = {n: content_of(partial) for n, partial in files.items() if n not in known}
        new = {name: [content] for name, content in (contents | known).items()}
        write(folder, before | {name: before.get(name, []) + new[name] for name in new})
        for name, partial in files.items():
            disk.publish(partial, folder / name)
        write(folder, before | new)
    finally:
        for partial in files.values():
            partial.unlink(missing_ok=True)


def listed_or_adopted(folder: Path, adopt: Iterable[str]) -> dict[str, list[Content]]:
    """What the manifest lists; where there is none, or a damaged one, the files as they are."""
    try:
        found = listed(folder)
    except UserError as error:
        found = None
        logger.warning(
            f"{folder / MANIFEST} was damaged ({error.__cause__!r}) and is written again: from now "
            "on the files of the run count as they are"
        )
    if found is None:
        found = {name: [content_of(folder / name)] for name in adopt if (folder / name).is_file()}
    return found


def forget(folder: Path, names: Iterable[str]) -> None:
    """Deletes files, then their entries."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    before = listed(folder)
    if before is not None:
        write(folder, {name: found for name, found in before.items() if name not in set(names)})


def write(folder: Path, entries: Mapping[str, list[Content]]) -> None:
    """Writes a manifest."""
    text = {name: [one._asdict() for one in contents] for name, contents in entries.items()}
    disk.write_text(folder / MANIFEST, json.dumps(text, indent=1))


def check(folder: Path, name: str) -> None:
    """`UserError` unless a file is what the manifest lists, where there is one."""
    compare(folder, name, lambda path: (content_of(path), None))


def read(folder: Path, name: str) -> bytes:
    """The bytes of a file, compared with the manifest as `check` does."""

    def look(path: Path) -> tuple[Content, bytes]:
        data = path.read_bytes()
        return content_of_bytes(data), data

    return compare(folder, name, look)


def compare(folder: Path, name: str, look: Callable[[Path], tuple[Content, T]]) -> T:
    """What `look` returns beside a file's content, which has to be listed."""
    path = folder / name
    if not verifying.get():
        return look(path)[1]
    entries = listed(folder)
    while True:
        found, result = look(path)
        if entries is None or found in entries.get(name, []):
            return result
        before, entries = entries, listed(folder)
        if entries == before:  # else a training published between the two looks
            raise UserError(mismatch(path, entries.get(name, []), found))


def mismatch(path: Path, wanted: list[Content], found: Content) -> str:
    """What is wrong with a file, and the ways out."""
    if not wanted:
        what = f"{MANIFEST} does not list it"
    elif all(one.bytes != found.bytes for one in wanted):
        what = f"it has {found.bytes:,} bytes, {wanted[-1].bytes:,} were written"
    else:
        what = f"its SHA-256 begins with {found.sha256[:8]}, not with {wanted[-1].sha256[:8]}"
    run = os.fspath(path.parent)
    ways = {
        "model.safetensors": f", or repeat the command that trained {run}, which writes it again "
        "from its newest checkpoint",
        "best.safetensors": ", or use the last weights (without --best)",
    }
    return (
        f"{path} is not what torchmae wrote ({what}): it was damaged, or edited. Restore it from a "
        f"copy{ways.get(path.name, '')}. mae verify {run} checks every file; if you "
        "edited it on purpose: --no-verify (in Python verify=False)"
    )
