"""The settings of `mae refine`, and what is chosen where they are left open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torchmae.errors import UserError
from torchmae.settings import defaults
from torchmae.settings.defaults import Choice, Facts, Rule
from torchmae.settings.groups import (
    OF_TIMM,
    CropOptions,
    ListingOptions,
    OptimOptions,
    OutputOptions,
    ResolvedRuntimeOptions,
    RunDecodeOptions,
    RuntimeOptions,
    SourceOptions,
)
from torchmae.settings.options import BLOCKS, Range, argument, check_ranges, hidden, option


@dataclass(frozen=True)
class ContrastOptions:
    """What is compared, and what of the encoder may change."""

    GROUP: ClassVar[str] = "model"

    blocks: int | None = option(
        None,
        "Last blocks of the encoder that are trained.",
        within=BLOCKS,
        otherwise="a third of them",
    )
    queue: int = option(
        4096,
        "Earlier images among which the nearest is looked for, at least a batch.",
        within=Range(at_least=2, at_most=1 << 20),
    )
    temperature: float = option(
        0.1, "Of the softmax over the queue.", within=Range(at_least=0.01, at_most=10)
    )


@dataclass(frozen=True)
class RefineCropOptions(CropOptions):
    """Two crops of each image."""

    crop_scale: tuple[float, float] = option(
        (0.2, 1.0),
        "Smallest and largest share of the image's area that each of two random crops takes.",
        metavar="S",
    )
    flip: bool = option(True, "Mirror half of the crops (not for text or digits).")
    color_jitter: float = option(
        0.0,
        "Change brightness, contrast and saturation of each crop by up to this share, hue by a "
        "quarter of it (0.4 is usual).",
        within=Range(at_least=0, at_most=1),
        metavar="S",
    )


@dataclass(frozen=True)
class RefineOutputOptions(OutputOptions):
    """Where the refined encoder goes."""

    out: str | None = option(
        None,
        "Run folder. If it holds this run already, the run is resumed.",
        metavar="FOLDER",
        otherwise="RUN-refined",
    )
    labelled: str | None = option(
        None,
        "Labelled images, on which mae knn measures RUN and the refined encoder. They change no "
        "weight. none: nothing is measured.",
        metavar="DATA",
        otherwise="DATA, where its folders are classes",
        images=True,
    )


@dataclass(frozen=True)
class RefineDecodeOptions(RunDecodeOptions):
    """As the run was decoded; kept for the verbs after this one."""

    channels: int | None = hidden(None)
    dtype: str | None = hidden(None)


def batch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """See `defaults.batch_of`."""
    on_gpu = facts.device == "cuda"
    value = defaults.batch_of(facts.images, on_gpu, facts.processes)
    return Choice(value, f"for {facts.images:,} images on a {'GPU' if on_gpu else 'CPU'}")


def epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """2 million images on a GPU, 20,000 on a CPU, within bounds; with --minutes what fits into
    them."""
    if values["minutes"] is not None and facts.seconds_per_step is not None:
        return defaults.epochs_in_minutes(facts, values)
    images = 2_000_000 if facts.device == "cuda" else 20_000
    count = min(50, max(1, images // facts.images))
    return Choice(count, f"{images:,} images, within 1 to 50 epochs")


def base_lr(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """As for pre-training; see `defaults.pretraining_lr`."""
    assert facts.embed_dim is not None
    value = defaults.pretraining_lr(facts.embed_dim, values["batch_size"])
    return Choice(value, "as in mae pretrain")


RULES: dict[str, Rule] = {
    "batch_size": Rule("by the number of images: at most 32 on a CPU, 1024 on a GPU", batch_size),
    "epochs": Rule("20,000 images on a CPU, 2 million on a GPU", epochs),
    "base_lr": Rule("as in mae pretrain", base_lr),
    "warmup_epochs": Rule(
        "a tenth of the epochs",
        lambda facts, values: Choice(values["epochs"] / 10, "a tenth of the epochs"),
    ),
    "precision": defaults.PRECISION,
    "workers": defaults.WORKERS,
    "compile": defaults.COMPILE,
}


@dataclass(frozen=True, kw_only=True)
class Refine:
    """Train the last blocks of a run's encoder to find images alike that are: a short second stage.

    Two crops of each image, nearest-neighbor contrast with a queue, no labels. What is left open is
    chosen for the data and the device, and printed with the reason.
    """

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    run: str = argument(f"a run folder; or {OF_TIMM}", "RUN", encoder=True)
    source: SourceOptions
    listing: ListingOptions = ListingOptions()
    optim: OptimOptions = OptimOptions()
    output: RefineOutputOptions = RefineOutputOptions()
    model: ContrastOptions = ContrastOptions()
    crop: RefineCropOptions = RefineCropOptions()
    decode: RefineDecodeOptions = RefineDecodeOptions()
    runtime: RuntimeOptions = RuntimeOptions()

    def check(self) -> None:
        """Raises UserError for what is known to be wrong before any file is read."""
        check_ranges(self)
        self.crop.check()
        self.optim.check()
        self.runtime.check()
        self.output.check()
        if self.runtime.cache == "device":
            raise UserError("--cache device makes one crop of an image: use --cache memory")
        if self.runtime.fsdp:
            raise UserError("mae refine trains few blocks: without --fsdp")

    def resolve(self, facts: Facts) -> tuple["ResolvedRefine", dict[str, Choice]]:
        """The settings with nothing left to choose, and what was chosen.

        Raises:
            UserError: a batch larger than the data set or the queue.
        """
        resolved, chosen = defaults.resolve(self, ResolvedRefine, RULES, facts)
        batch, queue = resolved.optim.batch_size, resolved.model.queue
        most, what = min((facts.images, f"the {facts.images} images"), (queue, f"--queue {queue}"))
        if batch > most:
            raise UserError(f"--batch-size {batch} is more than {what}: use at most {most}")
        return resolved, chosen


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(OptimOptions):
    """With nothing left to choose."""

    epochs: float
    batch_size: int
    base_lr: float
    warmup_epochs: float
    precision: str


@dataclass(frozen=True, kw_only=True)
class ResolvedRefine(Refine):
    """The settings of a run: what config.json holds."""

    optim: ResolvedOptim
    runtime: ResolvedRuntimeOptions
