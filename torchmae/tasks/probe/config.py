"""The settings of `mae probe`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torchmae.errors import UserError, choose
from torchmae.settings.defaults import Rule
from torchmae.settings.groups import (
    OF_TIMM,
    DeviceOptions,
    LabelledCropOptions,
    LabelledSourceOptions,
    RunDecodeOptions,
    SplitListingOptions,
    SplitOptions,
)
from torchmae.settings.options import (
    ALL,
    BATCH,
    EPOCHS,
    NOT_NEGATIVE,
    POSITIVE,
    WIDTH,
    Range,
    argument,
    check_ranges,
    flatten,
    option,
    options_of,
)


@dataclass(frozen=True)
class TrainedProbeOptions(LabelledCropOptions):
    """Of the probe that is trained."""

    GROUP: ClassVar[str] = "training (not with --fast)"

    out: str | None = option(
        None, "Run folder of the probe.", metavar="FOLDER", otherwise="RUN-probe"
    )
    epochs: float | None = option(
        None,
        "Passes over the labelled images.",
        within=EPOCHS,
        otherwise="as mae finetune --train head",
    )
    batch_size: int | None = option(
        None,
        "Images per optimizer step, over all processes.",
        within=BATCH,
        otherwise="by the number of images",
    )
    base_lr: float | None = option(
        None,
        "Learning rate for 256 images a step.",
        within=NOT_NEGATIVE,
        otherwise="1 for sgd, the paper's 0.1 for lars",
    )
    optimizer: str | None = option(
        None, "adamw, sgd or lars.", otherwise="sgd, or lars from 4,096 images a step on"
    )
    workers: int | None = option(
        None,
        "Processes that load images.",
        within=Range(at_least=0, at_most=1024),
        otherwise="by the cores",
    )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How well does a small head tell the classes apart, from the features of the frozen encoder?

    By default a linear probe as the paper's: the head alone, behind a BatchNorm, is trained by SGD
    or LARS on weakly augmented images. With --fast, logistic regression on the stored features of
    whole images, beside the same on an untrained encoder and on raw pixels. With --head attentive
    learned queries pool the patch tokens before the linear map, which suits MAE's features.
    """

    GROUP: ClassVar[str] = "features"

    RULES: ClassVar[Mapping[str, Rule]] = {}

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    source: LabelledSourceOptions
    listing: SplitListingOptions = SplitListingOptions()
    split: SplitOptions = SplitOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    fast: bool = option(
        False,
        "Logistic regression on stored features, its strength chosen by cross-validation on the "
        "training images.",
    )
    head: str = option(
        "linear",
        "linear: a linear map of one pooled feature. attentive: learned queries pool the patch "
        "tokens first (efficient probing).",
    )
    queries: int = option(
        32, "Learned queries of --head attentive, a divisor of the encoder's width.", within=WIDTH
    )
    pool: str | None = option(
        None,
        "Of --head linear: mean of the patch tokens, or cls, the class token.",
        otherwise="cls (the paper's); with --fast mean, as mae knn",
    )
    layer: int | str | None = option(
        None,
        "With --fast: take the tokens after this block, 1 to depth; all: each of them, with a "
        "picture.",
        within=POSITIVE,
        metavar="BLOCK",
        otherwise="after the last",
    )
    seed: int = option(
        0,
        "Seed of split, subset, head, order and augmentation; of the cross-validation and the "
        "untrained "
        "encoder.",
        within=Range(at_least=0, below=1 << 62),
    )
    training: TrainedProbeOptions = TrainedProbeOptions()
    runtime: DeviceOptions = DeviceOptions()


def check(config: Probe) -> None:
    """Raises UserError for settings of the other kind of probe, and for a run that there is not."""
    check_ranges(config)
    if config.run == "none":
        raise UserError("mae probe needs a run: --fast measures an untrained encoder beside it")
    choose(dict.fromkeys(("linear", "attentive")), config.head, "--head")
    if config.head == "attentive" and config.pool is not None:
        raise UserError(f"--pool {config.pool}: --head attentive pools by queries: leave it out")
    if config.head == "attentive" and config.layer == ALL:
        raise UserError(
            "--layer all keeps one pooled feature of each block, and --head attentive needs all "
            "tokens: name one block, or leave --head out"
        )
    if config.head == "linear" and config.queries != 32:
        raise UserError(f"--queries {config.queries} belongs to --head attentive")
    foreign = flatten(config.training) if config.fast else {"layer": config.layer}
    known = options_of(Probe)
    for name, value in foreign.items():
        if value != known[name].default:
            flag = f"--no-{name}" if value is False else known[name].flag
            way_out = "leave it out, or --fast" if config.fast else "add --fast, or leave it out"
            kind = "that is trained" if config.fast else "on stored features"
            raise UserError(f"{flag} belongs to the probe {kind}: {way_out}")
