"""The settings of `mae export`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import VERIFY
from torchmae.settings.options import REQUIRED, argument, option


@dataclass(frozen=True)
class Export:
    """Write a run's model in the form of another library, checked on 16 images, with a model
    card."""

    GROUP: ClassVar[str] = "output"

    run: str = argument("a run folder", "RUN")
    to: str = option(
        REQUIRED,
        "timm, transformers, torchvision, onnx, torch-export, safetensors, or page: an MAE in the "
        "browser.",
        metavar="FORM",
    )
    out: str = option(REQUIRED, "Folder to make.", metavar="FOLDER")
    plugin: tuple[str, ...] = option(
        (),
        "A Python file to load first.",
        metavar="FILE.py",
        otherwise="those of the run; may be repeated",
        repeated=True,
    )
    verify: bool = option(True, VERIFY)
    only: str | None = option(None, "encoder: without the decoder or the head.", metavar="PART")
    with_preprocessing: bool = option(
        False,
        "onnx and torch-export: the graph takes uint8 pixels, normalizes them, and returns logits, "
        "an encoder's pooled features, or the pictures of an MAE (onnx).",
    )
    pool: str | None = option(
        None,
        "What those features are: mean (of the patch tokens), cls or cls+mean.",
        otherwise="mean, as in mae embed",
    )
    best: bool = option(
        False,
        "Take the weights of the epoch that was best on the validation images, not the last ones.",
    )
    onnxruntime_web: str | None = option(
        None,
        "Of page: the folder of npm's package onnxruntime-web, whose files are copied.",
        metavar="FOLDER",
        otherwise="node_modules/onnxruntime-web, here or above",
    )
