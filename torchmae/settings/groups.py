"""Groups of settings that several verbs have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from torchmae.errors import UserError, choose, missing_extra
from torchmae.settings.options import (
    BATCH,
    BELOW_ONE,
    EPOCHS,
    MEGAPIXELS,
    MINUTES,
    NOT_NEGATIVE,
    POSITIVE,
    STEPS,
    WIDTH,
    ChangeableOptions,
    Range,
    argument,
    hidden,
    option,
)

# What --cache may be, in words for the plan.
CACHES = {
    "none": "decoded each time",
    "memory": "decoded once, kept in memory",
    "disk": "decoded once, kept in a file",
    "device": "all decoded on the device, no loader",
}
# What --tracker may be, which is the name of its package and of its extra too, and where it writes.
TRACKERS = {
    "tensorboard": "events in the run folder",
    "wandb": "Weights & Biases, offline unless WANDB_MODE says otherwise",
    "mlflow": "mlruns/ beside the run folder, or MLFLOW_TRACKING_URI",
}
LEAST_NORM = 1e-6  # below, clipped gradients vanish in float32
# What RUN may be besides a run folder, where only an encoder is needed.
OF_TIMM = (
    'an encoder of timm (extra "timm"): timm:NAME, with timm\'s weights, which are downloaded, '
    "timm:NAME?checkpoint=FILE or timm:NAME?random=SEED"
)
VERIFY = "Refuse runs whose weights or config.json are not what was written (manifest.json)."


@dataclass(frozen=True)
class SourceOptions(ChangeableOptions):
    """Where the images are. A run recognises its data by names and sizes, not by their place."""

    GROUP: ClassVar[str] = "data"

    data: str = argument(
        "folder (nested or flat), pattern in quotes ('photos/**/*.jpg'), .txt/.csv/.tsv/.jsonl "
        "list, .tar or .parquet shards, packed set, .npy/.npz/.zarr/.h5 array, "
        "torchvision:NAME?root=DIR, hf:NAME or digits",
        "DATA",
        images=True,
    )


@dataclass(frozen=True)
class PatternOptions(ChangeableOptions):
    """Which images of DATA are taken. A run recognises its data by the images that are."""

    GROUP: ClassVar[str] = "data"

    include: tuple[str, ...] | None = option(
        None,
        "Take only images whose name, path below DATA or folder matches a pattern, such as "
        "'*.png' (in quotes); none: no pattern.",
        metavar="PATTERN",
        otherwise="all; what a run took of the same DATA",
        several=True,
    )
    exclude: tuple[str, ...] | None = option(
        None,
        "Leave out images whose name, path below DATA or folder matches a pattern, such as "
        "'*_mask*' (in quotes); none: no pattern.",
        metavar="PATTERN",
        otherwise="none; what a run left out of the same DATA",
        several=True,
    )
    # Of a training of mae compare: the patterns are those of a run, and need not match anything.
    inherited: bool = hidden(False)


@dataclass(frozen=True)
class ListingOptions(PatternOptions):
    """Likewise, of images that a table may name, or that are taken in tiles."""

    path_column: str | None = option(
        None,
        "Column of a table that has the paths, or the bytes of the images (.parquet): its name, "
        "or its number from 1.",
        metavar="COLUMN",
        otherwise="path, file, filename, image, ...; else the one with files",
    )
    tile: int | None = option(
        None,
        "Take tiles of so many pixels a side, each an image of its own; of a TIFF only a tile is "
        "decoded. 0: whole images.",
        within=Range(at_least=0, at_most=65_536),
        otherwise="0; as a run took the same DATA",
    )
    overlap: int | None = option(
        None,
        "With --tile: pixels that neighbors share.",
        within=Range(at_least=0, at_most=65_535),
        otherwise="0; that of a run of the same DATA",
    )
    level: int | None = option(
        None,
        "With --tile: the level of pyramids (TIFF, JPEG 2000) that tiles are of, counted from the "
        "full size, 0.",
        within=Range(at_least=0, at_most=63),
        otherwise="0; that of a run of the same DATA",
    )
    empty: float | None = option(
        None,
        "With --tile: leave out tiles that are flat: 99 % of their pixels are within this share of "
        "the range (255, or of other types the largest spread of a tile) around the tile's median; "
        "0: none.",
        within=BELOW_ONE,
        otherwise="0.05; that of a run of the same DATA",
    )
    cloud_cache: float | None = option(
        None,
        "Of DATA at an address: GB that may be kept on the local disk, of all sets together.",
        within=Range(at_least=0, at_most=10**6),
        metavar="GB",
        otherwise="10",
    )


@dataclass(frozen=True)
class LabelledListingOptions(ListingOptions):
    """Which labelled images of DATA are taken, and what a table says of them."""

    label_column: str | None = option(
        None,
        "Column of a table that has the classes.",
        metavar="COLUMN",
        otherwise="label, class, ...; without a header the second",
    )


@dataclass(frozen=True)
class SplitListingOptions(LabelledListingOptions):
    """Of labelled images that are split into training and validation images."""

    group_column: str | None = option(
        None,
        "Column of a table with what no split may divide, such as patients.",
        metavar="COLUMN",
        otherwise="each image by itself",
    )


@dataclass(frozen=True)
class ScanOptions(ChangeableOptions):
    """What the look at all files before training puts up with."""

    GROUP: ClassVar[str] = "data"

    max_bad_percent: float = option(
        1.0,
        "Percentage of unreadable files (20 are always allowed) above which nothing is trained.",
        within=Range(at_least=0, at_most=100),
    )


@dataclass(frozen=True)
class LabelledSourceOptions(ChangeableOptions):
    """Where the labelled images are, and those to validate on."""

    GROUP: ClassVar[str] = "data"

    data: str = argument(
        "labelled images: class folders (with train/ and val/ above them: the split), CSV of "
        "path,label, "
        "tar, digits, ...",
        "DATA",
        images=True,
    )
    val: str | None = option(
        None,
        "Labelled images to validate on.",
        metavar="DATA",
        otherwise="val/ or test/ beside train/, else a share of DATA",
        images=True,
    )


@dataclass(frozen=True)
class SplitOptions:
    """Which labelled images are trained on, which are validated on."""

    GROUP: ClassVar[str] = "data"

    val_fraction: float = option(
        0.2,
        "Without --val: the share of every class that is held out, drawn by the seed.",
        within=Range(above=0, below=1),
    )
    labels_per_class: int | None = option(
        None,
        "Train on so many images of each class, drawn by the seed.",
        within=POSITIVE,
        otherwise="all",
    )
    # Of a trial of mae compare: the seeds whose validation images it neither trains nor chooses on.
    avoid_seeds: tuple[int, ...] = hidden(())


@dataclass(frozen=True)
class RunDecodeOptions:
    """How a later verb decodes images: as the run was decoded, unless told otherwise."""

    GROUP: ClassVar[str] = "data"

    max_megapixels: float | None = option(
        None,
        "Larger images are refused before they are decoded.",
        within=MEGAPIXELS,
        otherwise="the run's",
    )
    nodata: float | None = option(
        None, "The value of pixels that have none.", otherwise="the run's, or what a file declares"
    )
    bands: tuple[str, ...] | None = option(
        None,
        "Take these channels, by name or number from 1, as in B02,B03,B04.",
        several=True,
        otherwise="the run's, or all",
    )


@dataclass(frozen=True)
class CropOptions:
    """Random crops and flips."""

    GROUP: ClassVar[str] = "data"

    crop_scale: tuple[float, float] | None = option(
        None,
        "Smallest and largest share of the image's area that a random crop takes.",
        metavar="S",
    )
    flip: bool | None = option(None, "Mirror half of the crops (not for text or digits).")

    def check(self) -> None:
        """Raises UserError for shares that are none."""
        if self.crop_scale is None:
            return
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(
                f"--crop-scale {low:g} {high:g}: two shares of the area, 0 < smallest <= largest "
                "<= 1"
            )


@dataclass(frozen=True)
class LabelledCropOptions(CropOptions):
    """Random crops and flips of labelled images, chosen where they are left open."""

    crop_scale: tuple[float, float] | None = option(
        None,
        "Smallest and largest share of the image's area that a random crop takes.",
        metavar="S",
        otherwise="the paper's probe: 0.08 1",
    )
    flip: bool | None = option(
        None, "Mirror half of the crops (not for text or digits).", otherwise="on"
    )


@dataclass(frozen=True)
class OptimOptions:
    """How long and how fast weights move."""

    GROUP: ClassVar[str] = "training"

    epochs: float | None = option(None, "Passes over the images.", within=EPOCHS)
    minutes: float | None = option(
        None,
        "Train for about so many minutes, in place of --epochs: steps are timed first, then the "
        "number of epochs is decided and stored. Looking at the images, and the end with its "
        "pictures, come on top.",
        within=MINUTES._replace(above=0),
        instead_of="epochs",
    )
    batch_size: int | None = option(
        None, "Images per optimizer step, over all processes.", within=BATCH
    )
    base_lr: float | None = option(
        None,
        "Learning rate for 256 images a step: the peak is base_lr * batch_size / 256.",
        within=NOT_NEGATIVE,
    )
    warmup_epochs: float | None = option(
        None, "Epochs of linear warm-up.", within=EPOCHS._replace(above=None, at_least=0)
    )
    clip_grad: float | None = option(
        None, "Largest gradient norm.", otherwise="no clipping, as in the paper"
    )
    precision: str | None = option(None, "fp32, bf16 or fp16.")
    seed: int = option(
        0,
        "Seed of weights, splits, order, crops and masks.",
        within=Range(at_least=0, below=1 << 62),
    )

    def check(self) -> None:
        """Raises UserError for what does not go together."""
        if self.precision not in (None, "fp32", "bf16", "fp16"):
            raise UserError(f"--precision {self.precision}: fp32, bf16 or fp16")
        if self.clip_grad is not None and self.clip_grad < LEAST_NORM:
            raise UserError(
                f"--clip-grad {self.clip_grad:g}: a gradient norm of at least {LEAST_NORM:g}, such "
                "as 1; without clipping leave it out"
            )
        if self.minutes is not None and self.epochs is not None:
            raise UserError(
                "--minutes decides the number of epochs: leave --epochs out, or --minutes"
            )


@dataclass(frozen=True)
class RuntimeOptions(ChangeableOptions):
    """How the machine is used."""

    GROUP: ClassVar[str] = "runtime"

    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    workers: int | None = option(
        None,
        "Processes that load images, for each training process.",
        within=Range(at_least=0, at_most=1024),
    )
    cache: str | None = option(
        None,
        "Keep decoded images: memory, disk (a file), device (all of them there, no loader) or "
        "none.",
        otherwise="chosen where it pays, and explained in the plan",
    )
    compile: bool | None = option(None, "Use torch.compile.")
    fsdp: bool = option(
        False,
        "With several processes: shard the parameters (FSDP2) in place of copying them (DDP).",
    )
    grad_checkpointing: bool = option(
        False,
        "Compute each block again for its gradient: much less memory, about a third more time, the "
        "same weights.",
    )
    micro_batch_size: int | None = option(
        None,
        "Images at a time on a device.",
        within=BATCH,
        otherwise="the whole batch, or what fits",
    )
    timeout_minutes: float = option(
        10.0,
        "With several processes: how long a step waits for one that does not come.",
        within=POSITIVE,
    )
    plugin: tuple[str, ...] = option(
        (),
        "A Python file to load first, which adds maskings, targets, decoders, encoders, sources or "
        "verbs.",
        metavar="FILE.py",
        otherwise="those of the run that training starts from; may be repeated",
        repeated=True,
    )
    verify: bool = option(True, VERIFY)

    def check(self) -> None:
        """Raises UserError for a cache that there is not."""
        if self.cache is not None:
            choose(CACHES, self.cache, "--cache")


@dataclass(frozen=True, kw_only=True)
class ResolvedRuntimeOptions(RuntimeOptions):
    """With nothing left to choose."""

    workers: int
    compile: bool


@dataclass(frozen=True)
class DeviceOptions(ChangeableOptions):
    """Where a verb that does not train computes, and what it loads first."""

    GROUP: ClassVar[str] = "runtime"

    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    plugin: tuple[str, ...] = option(
        (),
        "A Python file to load first.",
        metavar="FILE.py",
        otherwise="those of the run; may be repeated",
        repeated=True,
    )
    verify: bool = option(True, VERIFY)


@dataclass(frozen=True)
class FeatureOptions(ChangeableOptions):
    """Which features of images are compared."""

    GROUP: ClassVar[str] = "features"

    features: str | None = option(
        None,
        "A .npz that mae embed wrote of the same run and DATA, in place of computing them.",
        metavar="FILE",
        otherwise="computed",
    )
    layer: int | None = option(
        None,
        "Take the tokens after this block, 1 to depth.",
        within=POSITIVE,
        otherwise="after the last, or that of --features",
    )
    pool: str | None = option(
        None,
        "mean (of the patch tokens), cls (the class token) or cls+mean.",
        otherwise="mean, or that of --features",
    )
    batch_size: int = option(64, "Images at a time.", within=BATCH)


@dataclass(frozen=True)
class SegmentTestOptions(ChangeableOptions):
    """How a segmenter predicts."""

    GROUP: ClassVar[str] = "prediction"

    slide: int | None = option(
        None,
        "Side in pixels of a window that slides over the resized image; 0: the whole image at "
        "once.",
        within=Range(at_least=0, at_most=65_536),
        otherwise="0, or as the run was validated",
    )
    stride: int | None = option(
        None,
        "With --slide: pixels between two windows.",
        within=WIDTH,
        otherwise="two thirds of --slide",
    )
    tta: str | None = option(
        None,
        "flip: averaged with what is predicted for the mirrored image; or none.",
        otherwise="none, or as the run was validated",
    )

    def check(self) -> None:
        """Raises UserError for what does not go together."""
        choose(dict.fromkeys(("none", "flip")), self.tta or "none", "--tta")
        if self.stride is not None and not 0 < self.stride <= (self.slide or 0):
            raise UserError(f"--stride {self.stride}: with --slide, and at most as long as it")


def test_as_run(test: SegmentTestOptions, stored: Mapping[str, Any]) -> dict[str, Any]:
    """How a segmenter predicts: as its run was validated, unless told otherwise.

    Args:
        test: what is requested.
        stored: the settings of the run; empty for no run.

    Returns:
        The arguments of `Segmenter.predict` beside the images.
    """
    slide, stride = test.slide, test.stride
    if slide is None:
        slide, stride = stored.get("slide") or 0, stored.get("stride")
    tta = test.tta or stored.get("tta") or "none"
    return {"slide": slide, "stride": stride, "flip": tta == "flip"}


@dataclass(frozen=True)
class OutputOptions(ChangeableOptions):
    """What a training writes, and how often."""

    GROUP: ClassVar[str] = "output"

    out: str | None = option(None, "Run folder. If it holds this run already, the run is resumed.")
    save_minutes: float = option(5.0, "Minutes between two checkpoints.", within=MINUTES)
    log_every: int = option(20, "Steps between two lines of log.jsonl.", within=STEPS)
    tracker: tuple[str, ...] = option(
        (),
        f"Write it elsewhere too: {', '.join(TRACKERS)} (extras of these names).",
        metavar="NAME",
        otherwise="nowhere",
        several=True,
    )

    def check(self) -> None:
        """Raises UserError for a tracker that there is not, or that is not installed."""
        for name in self.tracker:
            choose(TRACKERS, name, "--tracker")
            found = find_spec(name)
            if found is None or found.origin is None:  # wandb/ in this folder is no package
                raise missing_extra(name, name)
