"""What `mae segment` and `mae detect` have in common in their settings, and in what is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torchmae.data.config import OF_PIXELS
from torchmae.errors import UserError, choose
from torchmae.models.sizes import SIZES, architecture, check_from_scratch
from torchmae.settings import defaults
from torchmae.settings.defaults import Choice, Facts, Rule
from torchmae.settings.groups import (
    OF_TIMM,
    OptimOptions,
    OutputOptions,
    PatternOptions,
    ResolvedRuntimeOptions,
    RunDecodeOptions,
    RuntimeOptions,
    ScanOptions,
)
from torchmae.settings.options import (
    BELOW_ONE,
    CHANNELS,
    DECAY,
    EPOCHS,
    NOT_NEGATIVE,
    POSITIVE,
    ChangeableOptions,
    Range,
    argument,
    check_ranges,
    hidden,
    option,
    parse_size,
    patch_text,
    size_text,
)

PYRAMIDS = ("taps", "simple")
GLOBAL = Range(at_least=0, at_most=1000)


@dataclass(frozen=True)
class DenseSourceOptions(ChangeableOptions):
    """Where the annotated images are, and those to validate on."""

    GROUP: ClassVar[str] = "data"

    data: str = argument(
        "annotated images: a folder with images/ and masks/ (below train/ and val/: the split), "
        "name_mask.png beside name.jpg, COCO json, YOLO's data.yaml, VOC, "
        "torchvision:VOCSegmentation?root=DIR",
        "DATA",
        images=True,
    )
    val: str | None = option(
        None,
        "Annotated images to validate on.",
        metavar="DATA",
        otherwise="val/ or test/ beside train/, else a share of DATA",
        images=True,
    )


@dataclass(frozen=True)
class DenseSplitOptions:
    """Which annotated images are trained on, which are validated on."""

    GROUP: ClassVar[str] = "data"

    val_fraction: float = option(
        0.2,
        "Without images to validate on: the share that is held out, drawn by the seed.",
        within=Range(above=0, below=1),
    )
    train_images: int | None = option(
        None,
        "Train on so many images, drawn by the seed.",
        within=POSITIVE,
        otherwise="all",
    )
    # Of a trial of mae compare: train and validate on images that none of these seeds validates on.
    avoid_seeds: tuple[int, ...] = hidden(())


@dataclass(frozen=True)
class DenseDecodeOptions(RunDecodeOptions):
    """How annotated images are decoded: as the run was decoded, unless told otherwise."""

    channels: int | None = option(
        None,
        "What the model takes, where run and data differ: gray and color images are converted to "
        "it, the run's patch weights adapted.",
        within=CHANNELS,
        otherwise="the run's; from scratch the data's",
    )
    dtype: str | None = option(
        None,
        f"{OF_PIXELS} Another type than the run's: mean and std are measured again.",
        otherwise="the run's; from scratch the data's",
    )


@dataclass(frozen=True)
class DenseModelOptions:
    """The encoder, its pyramid of feature maps, and what is trained."""

    GROUP: ClassVar[str] = "model"

    train: str = option(
        "all",
        "What may change: all, head (everything but the encoder), 0.5 (the MLP half of the last "
        "block) or the number of last blocks.",
        metavar="PART",
    )
    model: str | None = option(
        None,
        f"From scratch: {', '.join(SIZES)}, or a run whose architecture is taken without its "
        "weights.",
    )
    image_size: str | int | None = option(
        None,
        "Side in pixels of the crops that are trained on, or HEIGHTxWIDTH; positions are resized.",
        metavar="SIZE",
    )
    patch_size: str | int | None = option(
        None, "From scratch: side of a patch in pixels, or HEIGHTxWIDTH.", metavar="SIZE"
    )
    pyramid: str | None = option(
        None,
        "Maps of four strides from those after each quarter of the blocks (taps, the paper's) or "
        "from the last one (simple, ViTDet's).",
        metavar="KIND",
    )
    window: int = option(
        0,
        "Attention within windows of so many patches a side, except in --global-blocks; 0: all "
        "patches attend to each other.",
        within=Range(at_least=0, at_most=1000),
    )
    global_blocks: int = option(
        4, "With --window: blocks that attend to all patches, evenly spaced.", within=GLOBAL
    )
    relative_positions: bool = option(
        False,
        "Add decomposed relative positions to the attention (ViTDet), which start at zero.",
    )


@dataclass(frozen=True)
class DenseOptimOptions(OptimOptions):
    """How weights move."""

    lr_scale: float = hidden(1.0)  # times the learning rate that is chosen: a trial of mae compare
    min_lr: float = option(0.0, "Learning rate at the end.", within=NOT_NEGATIVE)
    weight_decay: float | None = option(None, "On all but 1-D parameters.", within=DECAY)
    layer_decay: float | None = option(
        None,
        "Each layer's learning rate is this times the next one's.",
        within=Range(above=0, at_most=1),
    )
    beta2: float = option(0.999, "AdamW's second beta.", within=BELOW_ONE)
    drop_path: float | None = option(
        None, "Stochastic depth of the last block, growing from 0 at the first.", within=BELOW_ONE
    )
    ema: float = option(
        0.0,
        "Decay of the exponential moving average of the weights, which is what is validated and "
        "kept; 0: off.",
        within=BELOW_ONE,
    )
    validate_epochs: float | None = option(None, "Epochs between two validations.", within=EPOCHS)


@dataclass(frozen=True)
class DenseCropOptions:
    """Random crops: scale, place, flip."""

    GROUP: ClassVar[str] = "data"

    jitter: tuple[float, float] | None = option(
        None,
        "Smallest and largest scale of a random crop.",
        metavar="S",
        within=Range(above=0, at_most=100),
    )
    flip: bool = option(True, "Mirror half of the crops (not for text or organs).")

    def check(self) -> None:
        """Raises UserError for scales in the wrong order."""
        if self.jitter is not None and self.jitter[0] > self.jitter[1]:
            raise UserError(
                f"--jitter {self.jitter[0]:g} {self.jitter[1]:g}: the smallest scale comes first"
            )


@dataclass(frozen=True)
class DenseOutputOptions(OutputOptions):
    """Where the model goes."""

    out: str | None = option(
        None,
        "Run folder. If it holds this run already, the run is resumed.",
        metavar="FOLDER",
        otherwise="RUN-segment or RUN-detect; from scratch runs/NAME-OF-DATA-segment, -detect",
    )


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The settings of every verb of dense prediction."""

    run: str = argument(
        f"a run folder; {OF_TIMM}; or none for the supervised baseline from scratch (--model names "
        "its size)",
        "RUN",
        encoder=True,
    )
    source: DenseSourceOptions
    listing: PatternOptions = PatternOptions()
    scan: ScanOptions = ScanOptions()
    split: DenseSplitOptions = DenseSplitOptions()
    model: DenseModelOptions = DenseModelOptions()
    optim: DenseOptimOptions = DenseOptimOptions()
    output: DenseOutputOptions = DenseOutputOptions()
    crop: DenseCropOptions = DenseCropOptions()
    decode: DenseDecodeOptions = DenseDecodeOptions()
    runtime: RuntimeOptions = RuntimeOptions()


@dataclass(frozen=True, kw_only=True)
class ResolvedDenseDecode(DenseDecodeOptions):
    """With nothing left to choose."""

    max_megapixels: float
    channels: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ResolvedDenseModel(DenseModelOptions):
    """With nothing left to choose (an encoder that exists has a patch size of its own)."""

    image_size: str
    pyramid: str


@dataclass(frozen=True, kw_only=True)
class ResolvedDenseOptim(DenseOptimOptions):
    """With nothing left to choose."""

    epochs: float
    batch_size: int
    base_lr: float
    warmup_epochs: float
    precision: str
    weight_decay: float
    layer_decay: float
    drop_path: float
    validate_epochs: float


@dataclass(frozen=True, kw_only=True)
class ResolvedDenseCrop(DenseCropOptions):
    """With nothing left to choose."""

    jitter: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ResolvedDense(Dense):
    """The settings of a run: what config.json holds."""

    decode: ResolvedDenseDecode
    model: ResolvedDenseModel
    optim: ResolvedDenseOptim
    crop: ResolvedDenseCrop
    runtime: ResolvedRuntimeOptions


D = TypeVar("D", bound=Dense)
R = TypeVar("R", bound=ResolvedDense)


def on_gpu(facts: Facts) -> bool:
    return facts.device != "cpu"


def image_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """As large as the images are, within what the device can train in reasonable time; a multiple
    of two patches, since the coarsest map has half of them."""
    most = 512 if on_gpu(facts) else 224
    least = min(facts.height, facts.width)
    patch = facts.run_patch or architecture(values["model"]).get("patch_size") or 16
    cell = 2 * max(patch) if isinstance(patch, tuple) else 2 * int(patch)
    side = max(cell, min(most, least) // cell * cell)
    return Choice(
        str(side),
        f"the median image is {facts.width}x{facts.height}; at most {most} on a "
        f"{'GPU' if on_gpu(facts) else 'CPU'}",
    )


def patch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """Of an encoder from scratch; one that exists has its own."""
    if values["run"] != "none":
        return Choice(None, "the run's")
    named = architecture(values["model"]).get("patch_size")
    if named is not None:
        return Choice(patch_text(named), "that of --model")
    size = parse_size(values["image_size"])
    fits = next((p for p in (16, 8, 4) if all(side % (2 * p) == 0 for side in size)), None)
    if fits is None:
        return defaults.patch_choice(size)
    small = 8 if min(size) <= 96 and fits == 16 else fits
    return Choice(small, "16 px; less for crops of 96 px and less")


def pyramid(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """The paper's, where there are blocks enough."""
    return Choice("taps", "the paper's")


def batch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """16 crops on a GPU (mmsegmentation's), 8 on a CPU; fewer where there are few images."""
    most = 16 if on_gpu(facts) else 8
    limit = min(most, max(4, facts.images // 8), facts.images)
    power = 1 << (limit.bit_length() - 1)
    value = max(facts.processes, power // facts.processes * facts.processes)
    return Choice(value, f"for {facts.images} images on a {'GPU' if on_gpu(facts) else 'CPU'}")


def epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """320,000 crops on a GPU (20,000 steps), 8,000 on a CPU, within 50 to 400 or 20 to 100 epochs;
    with --minutes what fits into them."""
    if values["minutes"] is not None and facts.seconds_per_step is not None:
        return defaults.epochs_in_minutes(facts, values)
    budget, least, most = (320_000, 50, 400) if on_gpu(facts) else (8_000, 20, 100)
    count = min(most, max(least, budget // facts.images))
    return Choice(
        float(count),
        f"{count * facts.images:,} crops; {budget:,} are aimed at, within {least} to {most} epochs",
    )


def peak(facts: Facts, values: Mapping[str, Any]) -> float:
    """The peak learning rate for 16 crops."""
    if values["train"] == "head":
        # A linear map starts at nothing and is nearly convex. Nuclei, frozen: 1e-3 reached 49.5 and
        # 43.2 % in two seeds, 1e-2 62.3 and 61.0, 4e-2 62.9 in one (docs/lab-notes.md).
        linear = values.get("head", "of a detector") in (None, "linear")  # None: not chosen yet
        return 1e-2 if linear else 1e-3
    width = facts.embed_dim or 0
    return 1e-4 if width >= 768 else 2e-4 if width >= 384 else 5e-4


def base_lr(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """The peak of `peak`, growing with the root of the batch."""
    batch, top = values["batch_size"], peak(facts, values)
    value = top * (batch / 16) ** 0.5 * 256 / batch
    return Choice(value, f"a peak of {top:g} for 16 crops, growing with the root of the batch")


def weight_decay(facts: Facts, values: Mapping[str, Any]) -> Choice:
    return Choice(0.05, "the paper's in fine-tuning")


def layer_decay(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """mmsegmentation's for a ViT-B; none for small encoders, and where nothing is kept."""
    if values["run"] == "none":
        return Choice(1.0, "nothing is pre-trained")
    if values["train"] == "head":
        return Choice(1.0, "the encoder is frozen")
    width = facts.embed_dim or 0
    if width < 384:  # BCCD, vit_micro, 3 seeds: AP 37.8 with 1, 33.9 with 0.75
        return Choice(1.0, "small encoders in short trainings learned more without")
    wide = width >= 768
    return Choice(0.65 if wide else 0.75, "mmsegmentation's" if wide else "the paper's for images")


def drop_path(facts: Facts, values: Mapping[str, Any]) -> Choice:
    if values["train"] == "head":
        return Choice(0.0, "the encoder is frozen")
    return Choice(0.1, "the paper's for a ViT-B")


def validate_epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """Ten times in a training."""
    return Choice(max(1.0, values["epochs"] / 10), "ten times in the training, or every epoch")


RULES: dict[str, Rule] = {
    "image_size": Rule("the images' size, at most 512 on a GPU and 224 on a CPU", image_size),
    "patch_size": Rule("16, or less for crops of 96 px and less", patch_size),
    "pyramid": Rule("taps", pyramid),
    "batch_size": Rule("16 on a GPU, 8 on a CPU, fewer for few images", batch_size),
    "epochs": Rule(
        "320,000 crops on a GPU, 8,000 on a CPU, within 50 to 400 or 20 to 100 epochs", epochs
    ),
    "validate_epochs": Rule("a tenth of the epochs", validate_epochs),
    "warmup_epochs": Rule(
        "a twentieth of the epochs",
        lambda facts, values: Choice(values["epochs"] / 20, "a twentieth of the epochs"),
    ),
    "precision": defaults.PRECISION,
    "workers": defaults.WORKERS,
    "compile": defaults.COMPILE,
    "base_lr": defaults.scaled(
        Rule("by the width of the encoder: 1e-4 to 5e-4 for 16 crops", base_lr)
    ),
    "weight_decay": Rule("0.05", weight_decay),
    "layer_decay": Rule(
        "0.65 from ViT-B on, 0.75 for ViT-S; 1 for smaller ones and from scratch", layer_decay
    ),
    "drop_path": Rule("0.1; 0 for --train head", drop_path),
}


def check(config: Dense) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    check_ranges(config)
    for group in (config.crop, config.optim, config.runtime, config.output):
        group.check()
    model, source = config.model, config.source
    if source.val == source.data:
        raise UserError(
            f"--val {source.val} is the data that is trained on: leave it out, and a share is held "
            "out"
        )
    if model.pyramid is not None:
        choose(dict.fromkeys(PYRAMIDS), model.pyramid, "--pyramid")
    check_from_scratch(config.run, model.model, model.patch_size, model.train)
    if model.image_size is not None:
        parse_size(model.image_size)


def check_batch(config: ResolvedDense, facts: Facts) -> None:
    """Raises UserError for a batch of more images than there are."""
    batch = config.optim.batch_size
    if batch > facts.images:
        raise UserError(
            f"--batch-size {batch} is more than the {facts.images} annotated images: use at most "
            f"{facts.images}"
        )


def check_size(config: ResolvedDense, patch: tuple[int, ...]) -> None:
    """Raises UserError for crops that are not made of whole patches."""
    size = parse_size(config.model.image_size)
    if any(side % own for side, own in zip(size, patch)):
        near = tuple(max(own, round(side / own) * own) for side, own in zip(size, patch))
        raise UserError(
            f"--image-size {size_text(size)} is not made of whole patches of {size_text(patch)} "
            f"px: use {size_text(near)}"
        )
