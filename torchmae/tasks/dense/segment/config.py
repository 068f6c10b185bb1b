"""The settings of `mae segment`, and what is chosen where they are left open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torchmae.errors import UserError, choose
from torchmae.settings.defaults import Choice, Facts, Rule
from torchmae.settings.groups import ResolvedRuntimeOptions, SegmentTestOptions
from torchmae.settings.options import NOT_NEGATIVE, SHARE, WIDTH, hidden, option
from torchmae.tasks.dense import config as dense
from torchmae.tasks.dense.config import (
    Dense,
    ResolvedDense,
    ResolvedDenseCrop,
    ResolvedDenseDecode,
    ResolvedDenseModel,
    ResolvedDenseOptim,
)

HEADS = ("linear", "fpn", "upernet")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class SegmentOptions:
    """The classes, the head, the loss."""

    GROUP: ClassVar[str] = "model"

    classes: tuple[str, ...] | None = option(
        None,
        "Names of the classes in the order of their values, or a file with them: .json, .csv or "
        ".txt, also with colors.",
        metavar="NAME",
        otherwise="a table in the folder of DATA (classes.json, ...), else the values found",
        several=True,
    )
    ignore: tuple[str, ...] = option(
        ("255",),
        "What is no class: values of masks, colors (#000000), names.",
        metavar="VALUE",
        several=True,
    )
    head: str | None = option(
        None,
        "linear (a norm and a linear map of the last tokens), fpn, or upernet (the paper's).",
    )
    head_width: int | None = option(None, "Channels of fpn and upernet.", within=WIDTH)
    auxiliary: float = option(
        0.4, "Weight of upernet's second loss, on the third map; 0: off.", within=NOT_NEGATIVE
    )
    dice: float = option(
        0.0, "Weight of a Dice loss beside the cross-entropy.", within=NOT_NEGATIVE
    )
    class_weights: str = option(
        "none", "balanced: rare classes count more, by the root of their share of the pixels."
    )
    photometric: float = option(
        1.0,
        "How much brightness, contrast, saturation and hue change, each in half of the crops; 0: "
        "not at all.",
        within=SHARE,
    )
    short_side: int | None = option(
        None,
        "Pixels of the shorter side of images at scale 1, as they are predicted.",
        within=WIDTH,
        otherwise="that of the crops",
    )
    # What the values of the masks mean, once they have been looked at.
    coding: str | None = hidden(None)
    values: tuple[int, ...] | None = hidden(None)
    ignored: tuple[int, ...] | None = hidden(None)
    weights: tuple[float, ...] | None = hidden(None)


def head(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """The paper's on a GPU, a cheaper one on a CPU, the linear one where the encoder is frozen."""
    if values["train"] == "head":
        return Choice("linear", "what everybody compares frozen features with")
    if dense.on_gpu(facts):
        return Choice("upernet", "the paper's")
    return Choice("fpn", "upernet takes several times as long on a CPU")


def head_width(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """512 for a ViT-B and larger, as in the paper; no more than the encoder's width below."""
    width = facts.embed_dim or 768
    if values["head"] == "linear":
        return Choice(width, "the encoder's, there is nothing between")
    if width >= 768:
        return Choice(512 if values["head"] == "upernet" else 256, "mmsegmentation's")
    own = width if dense.on_gpu(facts) else width // 2
    words = "about the encoder's width" if dense.on_gpu(facts) else "half the encoder's, on a CPU"
    return Choice(max(64, min(256, own // 64 * 64)), words)


def jitter(facts: Facts, values: Mapping[str, Any]) -> Choice:
    return Choice((0.5, 2.0), "mmsegmentation's")


RULES: dict[str, Rule] = {
    **dense.RULES,
    "head": Rule("upernet; on a CPU fpn; linear for --train head", head),
    "head_width": Rule("512 for upernet on a ViT-B and larger, less below", head_width),
    "jitter": Rule("0.5 2", jitter),
}


@dataclass(frozen=True, kw_only=True)
class Segment(Dense):
    """Make a segmenter from a pre-trained run (or "none": from scratch) and images with masks.

    What is left open is chosen for the images and the device, and printed with the reason.
    """

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    segment: SegmentOptions = SegmentOptions()
    test: SegmentTestOptions = SegmentTestOptions()


@dataclass(frozen=True, kw_only=True)
class ResolvedSegmentOptions(SegmentOptions):
    """With nothing left to choose."""

    head: str
    head_width: int
    coding: str
    values: tuple[int, ...]
    ignored: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ResolvedSegment(ResolvedDense, Segment):
    """The settings of a run: what config.json holds."""

    decode: ResolvedDenseDecode
    model: ResolvedDenseModel
    optim: ResolvedDenseOptim
    crop: ResolvedDenseCrop
    runtime: ResolvedRuntimeOptions
    segment: ResolvedSegmentOptions


def check(config: Segment) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    dense.check(config)
    own = config.segment
    if own.head is not None:
        choose(dict.fromkeys(HEADS), own.head, "--head")
    choose(dict.fromkeys(CLASS_WEIGHTS), own.class_weights, "--class-weights")
    config.test.check()
    if own.head == "linear" and own.head_width is not None:
        raise UserError(f"--head-width {own.head_width}: a linear head has the encoder's width")
