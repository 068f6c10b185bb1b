"""The settings of `mae evaluate`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, each class, calibration and confusion of a fine-tuned classifier on labelled images."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder that mae finetune or mae import made."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LABELLED")]
    """Labelled images (with train/ and val/: those of val/); their classes may be some of the classifier's."""
    class_map: str | None = None
    """A JSON file {class name in the data: class name of the classifier}, where they differ."""
    among: bool = False
    """Let the classifier choose among the classes of the data only (as ImageNet-A and -R are scored)."""
    best: bool = False
    """Take the weights of the epoch that was best on the validation images, not the last ones."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
