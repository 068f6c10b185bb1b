"""How decoded images are laid out in a cache, and whether there is room for one."""

import math
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from torchmae.errors import UserError

LINE = 64  # bytes: images begin at multiples of it


PIXELS = "pixels.bin"
SUMS = "sums.bin"
ABOUT = "about.json"


def starts_of(sizes: Integer[np.ndarray, "N 2"], pixel_bytes: int) -> Integer[np.ndarray, " N+1"]:
    """Where each image begins, and last where the file ends, in bytes."""
    each = sizes.astype(np.int64).prod(axis=1) * pixel_bytes
    return np.concatenate([[0], np.cumsum(-(-each // LINE) * LINE)])


def bytes_needed(sizes: Integer[np.ndarray, "N 2"], pixel_bytes: int) -> int:
    """By all decoded images and their checksums."""
    return int(starts_of(sizes, pixel_bytes)[-1]) + 8 * len(sizes)


def check_room(where: str, needed: int, free: float) -> None:
    """`UserError` if so many bytes are not free."""
    if needed > 0.9 * free:
        raise UserError(
            f"--cache {where} needs {needed / 1e9:,.1f} GB for the decoded images, "
            f"{free / 1e9:,.1f} GB are free: "
            "use --cache disk or none, or make the images smaller first (mae pack)"
        )


def free_memory() -> float:
    """Bytes that this process may still take; infinity where the system does not report it."""
    free = math.inf
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(
            next(line for line in lines if line.startswith("MemAvailable")).split()[1]
        )
    # A container's limit counts the page cache of files too, which may be dropped.
    with suppress(OSError, ValueError, StopIteration):
        group = Path("/sys/fs/cgroup")
        limit, taken = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        free = min(
            free,
            limit
            - taken
            + int(next(line for line in lines if line.startswith("inactive_file")).split()[1]),
        )
    return free
