"""Graphs of the forward pass, which need no model code: ONNX and torch.export."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import library
from torchmae.interop.exporting.check import (
    ExportInput,
    ExportResult,
    WithPreprocessing,
    no_decoder,
)
from torchmae.models.heads import Classifier
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.version import __version__

AXES = {0: "batch", 2: "height", 3: "width"}
BATCHES = (1, 3, 16)  # sizes of batch that a graph is compared in: one of them was not traced


class Padded(nn.Module):
    """A segmenter that pads normalized images to whole patches always: a graph cannot hold the
    condition under which its encoder does, which depends on the size."""

    def __init__(self, model: Segmenter):
        super().__init__()
        self.model = model
        self.encoder = model.encoder

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes H W"]:
        height, width = images.shape[2], images.shape[3]
        down, across = self.encoder.patch
        below = (height + down - 1) // down * down - height
        right = (width + across - 1) // across * across - width
        padded = F.pad(images, (0, right, 0, below))
        return self.model(padded)[:, :, :height, :width]


def program(subject: ExportInput, form: str) -> Any:
    """The forward pass without a mask as a graph, for any number of images; of a segmenter also of
    any size (`sizes_of`)."""
    no_decoder(subject, form)
    module: nn.Module = subject.serving or subject.model
    height, width = subject.encoder.image_size
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    if isinstance(subject.model, Segmenter):
        down, across = subject.encoder.patch
        dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        height, width = height + down, width + 2 * across  # two sides that differ stay apart
        if form == "ONNX":
            module, height, width = Padded(subject.model), height + 1, width + 1
            module = WithPreprocessing(module, None) if subject.serving else module
    shape = (2, subject.encoder.channels, height, width)
    images = torch.zeros(shape, dtype=torch.uint8 if subject.serving else torch.float32)
    return torch.export.export(module, (images,), dynamic_shapes={"images": dims}, strict=True)


def sizes_of(subject: ExportInput, any_size: bool) -> tuple[tuple[int, int], ...]:
    """The sizes of images in which a graph is compared: of a segmenter several.

    Args:
        subject: what is exported.
        any_size: also sizes that are not of whole patches.
    """
    if not isinstance(subject.model, Segmenter):
        return ()
    (height, width), (down, across) = subject.encoder.image_size, subject.encoder.patch
    whole = ((height, width), (height + 3 * down, width + across))
    return (*whole, (height + 1, width + across - 1)) if any_size else whole


def metadata(subject: ExportInput) -> dict[str, str]:
    """What a server has to know: texts, and JSON for numbers, sizes and classes."""
    encoder = subject.encoder
    unit = "pixels / 255" if encoder.scaling is None else "values"
    pixels = "uint8 pixels" if subject.serving else f"float32, ({unit} - mean) / std"
    output = "logits" if isinstance(subject.model, Classifier | Segmenter) else "tokens"
    if subject.serving and subject.serving.pool:
        output = "features"
    height, width = encoder.image_size
    found = {
        "input": f"{pixels}, [batch, {encoder.channels}, {height}, {width}]",
        "output": output,
        "resize": "the largest centered window of this shape, crop_pct of each of its sides, "
        "bicubic with antialiasing",
        "image_size": json.dumps([height, width]),
        "mean": json.dumps(encoder.mean),
        "std": json.dumps(encoder.std),
        "crop_pct": json.dumps(subject.crop_pct),
        "versions": json.dumps({"torchmae": __version__, "torch": torch.__version__}),
        **subject.origin,
    }
    if isinstance(subject.model, Segmenter):
        side = subject.model.short_side or "that of image_size"
        found |= {
            "input": f"{pixels}, [batch, {encoder.channels}, height, width]",
            "output": "logits, [batch, classes, height, width]",
            "resize": f"the shorter side to {side}, bilinear with antialiasing; logits back to the "
            "image's size, bilinear",
        }
    if "classes" in subject.config:
        found["classes"] = json.dumps(subject.config["classes"])
    return found


def to_torch_export(subject: ExportInput, folder: Path) -> ExportResult:
    """A program that needs PyTorch, but not torchmae."""
    graph = program(subject, "torch.export")
    about = {"torchmae.json": json.dumps(metadata(subject), indent=1)}
    torch.export.save(graph, folder / "model.pt2", extra_files=about)
    again = torch.export.load(folder / "model.pt2").module()
    lines = [
        "import torch",
        f'model = torch.export.load("{subject.out}/model.pt2").module()',
        "output = model(images)",
    ]
    return ExportResult(again, lines, again, batches=BATCHES, sizes=sizes_of(subject, False))


def to_onnx(subject: ExportInput, folder: Path) -> ExportResult:
    """A graph for ONNX Runtime and others that read ONNX, with `metadata` as its properties."""
    onnxruntime = library("onnxruntime", "onnx")
    library("onnxscript", "onnx")  # torch.onnx.export needs it
    made = torch.onnx.export(
        program(subject, "ONNX"),
        (),
        input_names=["images"],
        output_names=["output"],
        # Their names in the graph; the program's own are like "s6".
        dynamic_shapes=(AXES if isinstance(subject.model, Segmenter) else {0: AXES[0]},),
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props.update(metadata(subject))
    made.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    lines = [
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{subject.out}/model.onnx")',
        'output = session.run(None, {"images": images.numpy()})[0]',
    ]

    def reloaded(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return ExportResult(reloaded, lines, None, 1e-4, BATCHES, sizes_of(subject, True))
