"""The settings of `mae reconstruct`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Reconstruct:
    """Draw original, masked input, reconstruction and prediction of images side by side."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Image files."""
    out: str = "reconstruction.png"
    """The picture to write (.png or .jpg)."""
    mask_ratio: float | None = None
    """Share of hidden patches, 0..1. Default: the run's."""
    masking: str | None = None
    """random, block or grid. Default: the run's."""
    mask: str | None = None
    """A mask image of your own in place of masking and ratio: white is hidden, black is visible; any size."""
    seed: int = 0
    """Of the masks."""
    true_statistics: bool = False
    """With normalised targets: borrow each hidden patch's true mean and deviation (which leaks part of the answer)."""
