"""The settings of `mae predict`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Predict:
    """Write the predicted class of every image, and the probability of each class, to a file."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder that mae finetune or mae import made."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images, as for mae pretrain; no labels are needed."""
    out: str = "predictions.csv"
    """.csv or .parquet (extra "parquet")."""
    best: bool = False
    """Take the weights of the epoch that was best on the validation images, not the last ones."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
