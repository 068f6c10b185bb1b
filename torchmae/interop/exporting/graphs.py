"""Graphs of the forward pass, which need no model code: ONNX and torch.export."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmae.interop.exporting.check import ExportInput, ExportResult, no_decoder
from torchmae.interop.foreign import library


def program(subject: ExportInput, form: str) -> Any:
    """The forward pass without a mask as a graph, for any number of images."""
    no_decoder(subject, form)
    images = torch.zeros(2, subject.encoder.channels, *subject.encoder.image_size)
    batch = {"images": {0: torch.export.Dim("batch")}}
    return torch.export.export(subject.model, (images,), dynamic_shapes=batch, strict=True)


def to_torch_export(subject: ExportInput, folder: Path) -> ExportResult:
    """A program that needs PyTorch, but not torchmae."""
    torch.export.save(program(subject, "torch.export"), folder / "model.pt2")
    again = torch.export.load(folder / "model.pt2").module()
    lines = [
        "import torch",
        f'model = torch.export.load("{subject.out}/model.pt2").module()',
        "output = model(images)",
    ]
    return ExportResult(again, lines, again, batches=(1, 3, 16))


def to_onnx(subject: ExportInput, folder: Path) -> ExportResult:
    """A graph for ONNX Runtime and others that read ONNX."""
    onnxruntime = library("onnxruntime", "onnx")
    library("onnxscript", "onnx")  # torch.onnx.export needs it
    graph = program(subject, "ONNX")
    made = torch.onnx.export(
        graph, (), input_names=["images"], output_names=["output"], dynamo=True, verbose=False
    )
    assert made is not None
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

    return ExportResult(reloaded, lines, None, 1e-4, (1, 3, 16))
