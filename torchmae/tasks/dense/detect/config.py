"""The settings of `mae detect`, and what is chosen where they are left open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torchmae.errors import UserError, choose
from torchmae.settings.defaults import Choice, Facts, Rule
from torchmae.settings.groups import ResolvedRuntimeOptions
from torchmae.settings.options import (
    POSITIVE,
    WIDTH,
    Range,
    argument,
    hidden,
    option,
    parse_patch,
    parse_size,
)
from torchmae.tasks.dense import config as dense
from torchmae.tasks.dense.config import (
    Dense,
    DenseSourceOptions,
    ResolvedDense,
    ResolvedDenseCrop,
    ResolvedDenseDecode,
    ResolvedDenseModel,
    ResolvedDenseOptim,
)

FITS = ("long", "own")
MANY = 5000  # images, from which on crops are as different as ViTDet's
MOST_DETECTIONS = 1000  # what the proposals of an image are cut to


@dataclass(frozen=True)
class DetectOptions:
    """What is found, and the heads that find it."""

    GROUP: ClassVar[str] = "model"

    masks: bool | None = option(
        None,
        "Find a mask of each object too (Mask R-CNN; else Faster R-CNN).",
        otherwise="where the data has masks or polygons",
    )
    fit: str | None = option(
        None,
        "How large images are at scale 1: long (they fit into the crop, as in ViTDet) or own (they "
        "keep their pixels, as in microscopy).",
        otherwise="own where the images' sides differ much, else long",
    )
    max_detections: int | None = option(
        None,
        "Objects that are found in an image at most; so many count in AP.",
        within=Range(at_least=1, at_most=MOST_DETECTIONS),
        otherwise="100, or more where images have more objects",
    )
    head_width: int | None = option(None, "Channels of the pyramid and of the heads.", within=WIDTH)
    roi_samples: int | None = option(
        None, "Proposals of an image that a step learns from.", within=POSITIVE
    )
    anchor: float | None = option(
        None,
        "Length of an anchor in cells of its map; the finest map has cells of a quarter of a "
        "patch.",
        within=Range(at_least=1, at_most=32),
    )
    # The tenth percentile of the objects' sides: pixels, or with --fit long the share of the
    # image's longer side.
    object_side: float | None = hidden(None)
    # Images that are not of the size their annotations say: their numbers.
    unfit: tuple[int, ...] | None = hidden(None)
    unfit_val: tuple[int, ...] | None = hidden(None)


def head_width(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """ViTDet's 256 on a GPU; on a CPU half the encoder's width, at most 128: there the convolutions
    of the heads are most of a step (ViT-Micro at 160 px, seconds an image: 0.15 with 64 channels
    and 64 samples, 0.36 with 128 samples, 0.68 with 128 of both)."""
    width = facts.embed_dim or 768
    if dense.on_gpu(facts):
        return Choice(256 if width >= 384 else 128, "ViTDet's 256; half of it for small encoders")
    return Choice(max(64, min(128, width // 2 // 32 * 32)), "on a CPU: heads are most of a step")


def roi_samples(facts: Facts, values: Mapping[str, Any]) -> Choice:
    if dense.on_gpu(facts):
        return Choice(512, "detectron2's")
    return Choice(64, "on a CPU: heads are most of a step")


def anchor(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """Eight cells, as in ViTDet, or less where objects are smaller than the smallest anchor."""
    side = values["object_side"] or 1.0
    pixels = side * max(parse_size(values["image_size"])) if values["fit"] == "long" else side
    patch = facts.run_patch or parse_patch(values["patch_size"] or 16)
    finest = (patch if isinstance(patch, int) else max(patch)) / 4
    cells = next((cells for cells in (8.0, 4.0, 2.0) if cells * finest <= 1.5 * pixels), 2.0)
    return Choice(
        cells,
        f"anchors of {cells * finest:g} px and more; one in ten objects is smaller than "
        f"{pixels:.0f} px",
    )


def jitter(facts: Facts, values: Mapping[str, Any]) -> Choice:
    if facts.images >= MANY:
        return Choice((0.1, 2.0), "ViTDet's")
    return Choice((0.5, 1.5), f"milder than ViTDet's 0.1 to 2: fewer than {MANY:,} images")


def pyramid(facts: Facts, values: Mapping[str, Any]) -> Choice:
    return Choice("simple", "ViTDet's")


def weight_decay(facts: Facts, values: Mapping[str, Any]) -> Choice:
    return Choice(0.1, "ViTDet's")


def layer_decay(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """detectron2's for ViT-B, L and H."""
    width = facts.embed_dim or 0
    if values["run"] == "none" or values["train"] == "head" or width < 768:
        return dense.layer_decay(facts, values)
    return Choice(0.7 if width < 1024 else 0.8 if width < 1280 else 0.9, "detectron2's")


def drop_path(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """detectron2's for ViT-B, L and H."""
    width = facts.embed_dim or 768
    if values["train"] == "head" or width < 1024:
        return dense.drop_path(facts, values)
    return Choice(0.4 if width < 1280 else 0.5, "detectron2's")


RULES: dict[str, Rule] = {
    **dense.RULES,
    "pyramid": Rule("simple", pyramid),
    "weight_decay": Rule("0.1", weight_decay),
    "layer_decay": Rule(
        "0.7, 0.8, 0.9 for a ViT-B, L, H, 0.75 for ViT-S; 1 for smaller ones and from scratch",
        layer_decay,
    ),
    "drop_path": Rule("0.1, from ViT-L on 0.4, from ViT-H on 0.5; 0 for --train head", drop_path),
    "jitter": Rule(f"0.5 1.5; 0.1 2 from {MANY:,} images on", jitter),
    "head_width": Rule("256, or less for a small encoder and on a CPU", head_width),
    "roi_samples": Rule("512; 64 on a CPU", roi_samples),
    "anchor": Rule("8, or less where objects are small", anchor),
}


@dataclass(frozen=True)
class DetectSourceOptions(DenseSourceOptions):
    """Where the images with objects are, and those to validate on."""

    data: str = argument(
        "images with objects: COCO json or a folder with one or more, YOLO's data.yaml or its "
        "folder, VOC (Annotations/, or .xml beside the images)",
        "DATA",
        images=True,
    )


@dataclass(frozen=True, kw_only=True)
class Detect(Dense):
    """Make a detector from a pre-trained run (or "none": from scratch) and images with objects.

    What is left open is chosen for the images and the device, and printed with the reason.
    """

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    source: DetectSourceOptions
    detect: DetectOptions = DetectOptions()


@dataclass(frozen=True, kw_only=True)
class ResolvedDetectOptions(DetectOptions):
    """With nothing left to choose."""

    masks: bool
    fit: str
    max_detections: int
    head_width: int
    roi_samples: int
    anchor: float
    object_side: float
    unfit: tuple[int, ...]
    unfit_val: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ResolvedDetect(ResolvedDense, Detect):
    """The settings of a run: what config.json holds."""

    decode: ResolvedDenseDecode
    model: ResolvedDenseModel
    optim: ResolvedDenseOptim
    crop: ResolvedDenseCrop
    runtime: ResolvedRuntimeOptions
    detect: ResolvedDetectOptions


def check(config: Detect) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    dense.check(config)
    if config.detect.fit is not None:
        choose(dict.fromkeys(FITS), config.detect.fit, "--fit")
    if config.runtime.compile:
        raise UserError(
            "--compile: a detector has other shapes at each step, and would be compiled each time"
        )
