"""Graphs of the forward pass, which need no model code: ONNX and torch.export."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim

from torchmae.errors import RunError, library
from torchmae.interop.exporting.check import (
    ExportInput,
    ExportResult,
    Masked,
    WithPreprocessing,
    hidden,
    no_decoder,
    random_images,
)
from torchmae.models.detection.detector import Detector
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.version import __version__

AXES = {0: "batch", 2: "height", 3: "width"}
TOLERANCE = 1e-4
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
    any size (`sizes_of`); of a detector for one image of the encoder's size."""
    no_decoder(subject, form)
    height, width = subject.encoder.image_size
    if isinstance(subject.model, Detector):
        from torchmae.interop.exporting.detectors import DetectorGraph  # needs torchvision

        pixels = subject.serving is not None
        graph = DetectorGraph(subject.model, pixels).eval()
        kind = torch.uint8 if pixels else torch.float32
        one = torch.zeros(1, subject.encoder.channels, height, width, dtype=kind)
        with warnings.catch_warnings():  # of torchvision's, for those who maintain it
            warnings.simplefilter("ignore", FutureWarning)
            return torch.export.export(graph, (one,), strict=False)
    module: nn.Module = subject.serving or subject.model
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
    any_size = isinstance(subject.model, Segmenter)  # is_exporting() is true without strict only
    return torch.export.export(
        module, (images,), dynamic_shapes={"images": dims}, strict=not any_size
    )


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
    if isinstance(subject.serving, WithPreprocessing) and subject.serving.pool:
        output = "features"
    if isinstance(subject.model, MAE):
        output = "pictures and tokens" if subject.serving else "predictions of hidden patches"
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
    if isinstance(subject.model, Detector):
        kept, fits = subject.model.max_detections, subject.model.fit == "long"
        own = "as large as it fits in, bilinear with antialiasing" if fits else "in its own pixels"
        found |= {
            "input": f"{pixels}, [1, {encoder.channels}, {height}, {width}]",
            "output": f"of the {kept} best objects boxes [x1, y1, x2, y2] in pixels, scores, "
            "labels (numbers of classes), masks (within 0..1 over the box, if there are any); "
            "count: how many have a score above 0.05",
            "resize": f"the image {own}, at the top left; the mean beside it",
        }
    if "classes" in subject.config:
        found["classes"] = json.dumps(subject.config["classes"])
    return found


def names_of(subject: ExportInput) -> tuple[str, ...]:
    """What a graph returns, by name."""
    if not isinstance(subject.model, Detector):
        return ("output",)
    from torchmae.interop.exporting.detectors import outputs

    return outputs(subject.model)


def to_torch_export(subject: ExportInput, folder: Path) -> ExportResult:
    """A program that needs PyTorch, but not torchmae."""
    graph = program(subject, "torch.export")
    about = {"torchmae.json": json.dumps(metadata(subject), indent=1)}
    torch.export.save(graph, folder / "model.pt2", extra_files=about)
    again = torch.export.load(folder / "model.pt2").module()
    lines = [
        *(["import torchvision  # its operators"] if isinstance(subject.model, Detector) else []),
        "import torch",
        f'model = torch.export.load("{subject.out}/model.pt2").module()',
        f"{', '.join(names_of(subject))} = model(images)",
    ]
    return ExportResult(again, lines, again, batches=BATCHES, sizes=sizes_of(subject, False))


def to_onnx(subject: ExportInput, folder: Path) -> ExportResult:
    """A graph for ONNX Runtime and others that read ONNX, with `metadata` as its properties."""
    for name in ("onnxruntime", "onnxscript"):  # torch.onnx.export needs the second
        library(name, "onnx")
    if isinstance(subject.model, MAE):
        return masked_to_onnx(subject, folder)
    names, is_detector = names_of(subject), isinstance(subject.model, Detector)
    axes: dict[int, str] = AXES if isinstance(subject.model, Segmenter) else {0: AXES[0]}
    if is_detector:
        axes = {}
    graph = program(subject, "ONNX")
    session = write_onnx(graph, {"images": axes}, names, metadata(subject), folder)
    lines = [
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{subject.out}/model.onnx")',
        f"{', '.join(names)} = session.run(None, {{'images': images.numpy()}})"
        + "[0]" * (not is_detector),
    ]

    def reloaded(images: Tensor) -> Any:
        found = [torch.from_numpy(one) for one in session.run(None, {"images": images.numpy()})]
        return found if is_detector else found[0]

    return ExportResult(reloaded, lines, None, TOLERANCE, BATCHES, sizes_of(subject, True))


def masked_to_onnx(subject: ExportInput, folder: Path) -> ExportResult:
    """An MAE: the numbers of visible and of hidden patches are inputs, of any count.

    All outputs are compared with few, half and nearly all patches visible; the first one is then
    compared at the run's ratio, like other exports.
    """
    module = subject.serving
    if not isinstance(module, Masked):
        module = Masked(subject.model, False).eval()
    encoder, count = subject.encoder, math.prod(subject.encoder.grid)
    shape = (2, encoder.channels, *encoder.image_size)
    images = torch.zeros(shape, dtype=torch.uint8 if module.pixels else torch.float32)
    keep, hide = torch.arange(count).expand(2, -1).split([count - count // 2, count // 2], dim=1)
    batch, visible, hidden_count = (Dim(name) for name in ("batch", "visible", "hidden"))
    graph = torch.export.export(
        module,
        (images, keep.contiguous(), hide.contiguous()),
        dynamic_shapes={
            "images": {0: batch},
            "keep": {0: batch, 1: visible},
            "hide": {0: batch, 1: hidden_count},
        },
        strict=True,
    )
    # The batch of all three has one name, from the first.
    axes = {"images": {0: "batch"}, "keep": {1: "visible"}, "hide": {1: "hidden"}}
    said = metadata(subject) | {"outputs": json.dumps(module.outputs)}
    session = write_onnx(graph, axes, module.outputs, said, folder)

    def all_outputs(images: Tensor, mask: Mask) -> list[Tensor]:
        inputs = dict(zip(axes, (images.numpy(), mask.keep.numpy(), mask.hide.numpy())))
        return [torch.from_numpy(one) for one in session.run(None, inputs)]

    def reloaded(images: Tensor) -> Tensor:
        return all_outputs(images, hidden(subject, images))[0]

    compare_all(subject, module, all_outputs)
    shown = hidden(subject, images).keep.shape[1]
    lines = [
        "import numpy, onnxruntime",
        f'session = onnxruntime.InferenceSession("{subject.out}/model.onnx")',
        f"order = numpy.random.rand(len(images), {count}).argsort(1)  # of the patches",
        f"mask = {{'keep': order[:, :{shown}], 'hide': order[:, {shown}:]}}",
        'output = session.run(None, {"images": images.numpy(), **mask})[0]',
    ]
    return ExportResult(reloaded, lines, None, TOLERANCE, BATCHES)


def compare_all(
    subject: ExportInput, module: Masked, outputs: Callable[[Tensor, Mask], list[Tensor]]
) -> None:
    """Raises RunError unless all outputs of a graph of an MAE are those of the module.

    Args:
        subject: what is exported.
        module: what its graph computes.
        outputs: what the graph gives for images and a mask.
    """
    count = math.prod(subject.encoder.grid)
    images = random_images(subject, [subject.encoder.image_size])[0][:2]
    places = torch.randperm(count, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    sides = {max(1, count // 10), count // 2, count - 1}
    masks = [Mask(places[:, :k].contiguous(), places[:, k:].contiguous()) for k in sides]
    masks.append(Mask(places.contiguous(), places[:, :1].contiguous()))  # the tokens of all
    for mask in masks:
        for name, own, other in zip(module.outputs, module(images, *mask), outputs(images, mask)):
            off = float((own - other).abs().max()) if own.shape == other.shape else math.inf
            if not off <= TOLERANCE * max(1.0, float(own.abs().max())):
                raise RunError(
                    f"reloaded, {name} of the export differs by {off:.1e} with "
                    f"{mask.keep.shape[1]} visible patches: nothing written"
                )


def write_onnx(
    graph: Any,
    axes: dict[str, dict[int, str]],
    outputs: Sequence[str],
    said: dict[str, str],
    folder: Path,
) -> Any:
    """Writes model.onnx, and returns a session that has loaded it.

    Args:
        graph: an exported program.
        axes: of each input the names of the axes that vary; the program's own are like "s6".
        outputs: their names.
        said: the properties of the file.
        folder: where it goes.
    """
    onnxruntime = library("onnxruntime", "onnx")
    with warnings.catch_warnings():  # of torchvision's, for those who maintain it
        warnings.simplefilter("ignore", FutureWarning)
        made = torch.onnx.export(
            graph,
            (),
            input_names=list(axes),
            output_names=list(outputs),
            # A graph without varying axes takes no list of them.
            dynamic_shapes=tuple(axes.values()) if any(axes.values()) else None,
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    made.model.metadata_props.update(said)
    made.save(folder / "model.onnx")
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
