"""The folder of a decoded cache on disk: found, made in full size, replaced when data changes."""

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from torchmae.data.cache.layout import ABOUT, LINE, PIXELS, SUMS, bytes_needed, starts_of
from torchmae.data.sources.source import Source, Subset, digest_of
from torchmae.disk import cache_folder, write_whole
from torchmae.errors import UserError


def make_folder(data: str, source: Source, sizes: Integer[np.ndarray, "N 2"]) -> Path:
    """The folder for the decoded images of `data`.

    The one that exists, if nothing has changed since (names, sizes and times of the files, options,
    decoders); else a new one in full size, in place of the old one.

    Args:
        data: what the set is called on the command line.
        source: its images.
        sizes: (height, width) of each.

    Raises:
        UserError: changes of the data cannot be noticed, or there is no room.
    """
    stamp = source.stamp()  # of opening: what changes later gets a key that no later run has
    if stamp is None:
        raise UserError(f"--cache disk cannot tell whether {data} has changed: use --cache memory")
    place = os.path.abspath(data)
    decode, width = source.decode, source.pixel_bytes
    settings = source.channels, source.dtype, decode.max_megapixels, decode.nodata, decode.bands
    part = isinstance(source, Subset)  # so that it does not take the place of the whole set's
    owner = digest_of(place, *settings, *["part"] * part)[:16]
    key = digest_of(stamp, *settings, version("pillow"), version("simplejpeg"), sizes.tobytes())[
        :16
    ]
    room = cache_folder("decoded")
    needed = bytes_needed(sizes, width)
    lengths = {
        PIXELS: max(LINE, int(starts_of(sizes, width)[-1])),
        SUMS: max(LINE, 8 * len(sizes)),
    }
    folder = room / f"{owner}-{key}"
    try:
        if all_there(folder, lengths):
            return folder
        room.mkdir(mode=0o700, parents=True, exist_ok=True)  # others need not see the pictures
        for old in (
            *room.glob(f"{owner}-*"),
            *(p for p in room.glob(f".{owner}-*") if is_abandoned(p)),
        ):
            if old == folder and all_there(folder, lengths):  # made by another process since
                return folder
            (old / ABOUT).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)  # processes that read it have it mapped
        free = shutil.disk_usage(room).free
        if needed > 0.9 * free:
            raise OSError(f"{free / 1e9:,.1f} GB are free")
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=room))
        try:
            for name, length in lengths.items():
                allocate(partial / name, length)
            write_whole(
                partial / ABOUT,
                json.dumps({"data": place, "images": len(sizes), "bytes": needed}).encode(),
            )
            with suppress(OSError):  # another process was quicker
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if not all_there(folder, lengths):
            raise OSError("it cannot be made")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--cache disk needs {needed / 1e9:,.1f} GB in {room} "
            f"({getattr(error, 'strerror', None) or error}): make room, "
            "set XDG_CACHE_HOME to a folder elsewhere, or use --cache none"
        ) from error
    return folder


def all_there(folder: Path, lengths: dict[str, int]) -> bool:
    """Whether it is a whole cache that this process may write to."""
    files = [folder / name for name in lengths]
    if not (folder / ABOUT).exists() or not all(file.exists() for file in files):
        return False
    if not all(os.access(file, os.R_OK | os.W_OK) for file in files):
        raise OSError(f"{folder} is somebody else's")
    return [file.stat().st_size for file in files] == list(lengths.values())


def is_abandoned(partial: Path) -> bool:
    """Whether an unfinished folder is a day old: its process was killed."""
    with suppress(OSError):
        return time.time() - partial.stat().st_mtime > 86_400
    return False


def allocate(path: Path, length: int) -> None:
    """A file of zeros that takes its room on the disk now.

    A full disk must not end a training that writes through mapped memory.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)
