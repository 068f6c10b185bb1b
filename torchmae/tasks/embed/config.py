"""The settings of `mae embed`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Embed:
    """Write the paths and features of images to a file."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images, as for mae pretrain."""
    out: str = "features.npz"
    """.npz (arrays "paths" and "features"), .csv or .parquet (extra "parquet")."""
    layer: int | None = None
    """Take the tokens after this block, 1 to depth. Default: after the last."""
    pool: str = "mean"
    """mean (of the patch tokens), cls (the class token) or cls+mean."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
