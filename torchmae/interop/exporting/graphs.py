"""Graphs of the forward pass, which need no model code: ONNX and torch.export."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmae.errors import library
from torchmae.interop.exporting.check import ExportInput, ExportResult, no_decoder
from torchmae.models.heads import Classifier
from torchmae.version import __version__

BATCHES = (1, 3, 16)  # sizes of batch that a graph is compared in: one of them was not traced


def program(subject: ExportInput, form: str) -> Any:
    """The forward pass without a mask as a graph, for any number of images."""
    no_decoder(subject, form)
    shape = (2, subject.encoder.channels, *subject.encoder.image_size)
    images = torch.zeros(shape, dtype=torch.uint8 if subject.serving else torch.float32)
    batch = {"images": {0: torch.export.Dim("batch")}}
    module = subject.serving or subject.model
    return torch.export.export(module, (images,), dynamic_shapes=batch, strict=True)


def metadata(subject: ExportInput) -> dict[str, str]:
    """What a server has to know: texts, and JSON for numbers, sizes and classes."""
    encoder = subject.encoder
    pixels = "uint8 pixels" if subject.serving else "float32, (pixels / 255 - mean) / std"
    output = "logits" if isinstance(subject.model, Classifier) else "tokens"
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
    return ExportResult(again, lines, again, batches=BATCHES)


def to_onnx(subject: ExportInput, folder: Path) -> ExportResult:
    """A graph for ONNX Runtime and others that read ONNX, with `metadata` as its properties."""
    onnxruntime = library("onnxruntime", "onnx")
    library("onnxscript", "onnx")  # torch.onnx.export needs it
    made = torch.onnx.export(
        program(subject, "ONNX"),
        (),
        input_names=["images"],
        output_names=["output"],
        dynamic_shapes=({0: "batch"},),  # its name in the graph; the program's own is "s6"
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

    return ExportResult(reloaded, lines, None, 1e-4, BATCHES)
