"""The settings of `mae export`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Export:
    """Write a run's model in the form of another library, checked on 16 images, with a model
    card."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    to: str
    """timm, transformers, torchvision, onnx, torch-export or safetensors."""
    out: str
    """Folder to make."""
    only: str | None = None
    """encoder: leave out the decoder or the head."""
    best: bool = False
    """Take the weights of the epoch that was best on the validation images, not the last ones."""
