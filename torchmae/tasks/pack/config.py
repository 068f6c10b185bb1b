"""The settings of `mae pack`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Pack:
    """Pack image files into tar shards with an index, which every verb takes as DATA; the files stay as they are.

    Images with a longer short side than --size are made smaller and become JPEGs, all others keep their bytes. The same
    command goes on after any interruption.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Image files, as for mae pretrain; with --verify: a packed set."""
    out: str = "shards"
    """Folder for the shards: a new one, or that of the same command."""
    size: int | None = None
    """Pixels of the short side of larger images. Default: 320."""
    quality: int | None = None
    """Of the JPEGs that are made, 1 to 100. Default: 90."""
    lossless: bool = False
    """Copy every file as it is, whatever its size."""
    drop_duplicates: bool = False
    """Leave out files whose bytes are those of an earlier one. They are listed in any case."""
    shard_mb: float = 256.0
    """A shard is closed when it has so many megabytes."""
    max_megapixels: float = 100.0
    """Larger images are refused before they are decoded."""
    white: int = 65535
    """The value of white in images of more than 8 bits (4095 for 12-bit data)."""
    workers: int | None = None
    """Threads. Default: one a core. The result does not depend on them."""
    verify: bool = False
    """Pack nothing; compare the shards of DATA with their SHA-256."""
