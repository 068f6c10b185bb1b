"""The settings of `mae knn`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Knn:
    """How good are the features? k-NN accuracy on labelled images, beside raw pixels and an untrained encoder."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LABELLED")]
    """Labelled images: a folder of class folders (with train/ and val/ above them: these are the split), tar, list, ..."""
    val: str | None = None
    """Labelled images to test on. Default: a share of the others."""
    val_fraction: float = 0.2
    """That share, drawn in every class by the seed."""
    k: int = 20
    """Neighbours that vote, each with the weight exp(similarity / 0.07)."""
    layer: int | None = None
    """Take the tokens after this block, 1 to depth. Default: after the last."""
    pool: str = "mean"
    """mean (of the patch tokens), cls (the class token) or cls+mean."""
    seed: int = 0
    """Of the split and of the untrained encoder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
