"""A run's model in the format of another library, reloaded there and compared. `EXPORTS` has one
function a format."""

from collections.abc import Callable
from pathlib import Path

from torchmae.interop.exporting.check import ExportInput, ExportResult
from torchmae.interop.exporting.graphs import to_onnx, to_torch_export
from torchmae.interop.exporting.libraries import (
    to_hugging_face,
    to_safetensors,
    to_timm,
    to_vision,
)

EXPORTS: dict[str, Callable[[ExportInput, Path], ExportResult]] = {
    "timm": to_timm,
    "transformers": to_hugging_face,
    "torchvision": to_vision,
    "onnx": to_onnx,
    "torch-export": to_torch_export,
    "safetensors": to_safetensors,
}
