"""The settings of `mae tokenizer`, and what is chosen where they are left open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torchmae.data.config import OF_PIXELS, decode_as_run
from torchmae.errors import UserError
from torchmae.scaling import check_scale
from torchmae.settings import defaults
from torchmae.settings.defaults import Choice, Facts, Rule
from torchmae.settings.groups import (
    CropOptions,
    ListingOptions,
    OptimOptions,
    OutputOptions,
    ResolvedRuntimeOptions,
    RunDecodeOptions,
    RuntimeOptions,
    ScanOptions,
    SourceOptions,
)
from torchmae.settings.options import (
    CHANNELS,
    MEGAPIXELS,
    MINUTES,
    NOT_NEGATIVE,
    WIDTH,
    Range,
    changed,
    check_ranges,
    option,
    parse_size,
)


@dataclass(frozen=True)
class TokenizerOptions:
    """The discrete VAE."""

    GROUP: ClassVar[str] = "model"

    image_size: str | int | None = option(
        None, "Side in pixels, or HEIGHTxWIDTH such as 192x256.", metavar="SIZE"
    )
    patch_size: int | None = option(
        None, "Side of what becomes a token, in pixels: 2, 4, 8, 16, ...", within=WIDTH
    )
    vocabulary: int | None = option(
        None,
        "How many tokens there are; 512 to 8192 are usual.",
        within=Range(at_least=16, at_most=65_536),
    )
    scale: tuple[str, ...] = option(
        ("none",),
        "Of pixels that are not of 8 bits, before mean and std: none, sqrt, log, percentile, or "
        "window LOW HIGH, as in mae pretrain.",
        metavar="SCALE",
        several=True,
    )
    kl_weight: float = option(
        1.0,
        "Weight of the divergence of a token's distribution from the uniform one, in nats a pixel "
        "value, beside the mean squared error: more uses more codes and is less exact.",
        within=NOT_NEGATIVE,
    )


@dataclass(frozen=True)
class TokenizerCropOptions(CropOptions):
    """Those of mae pretrain's random crops: the tokenizer sees what the encoder will see."""

    crop_scale: tuple[float, float] = option(
        (0.2, 1.0),
        "Smallest and largest share of the image's area that a random crop takes.",
        metavar="S",
    )
    flip: bool = option(True, "Mirror half of the crops (not for text or digits).")


@dataclass(frozen=True)
class TokenizerOutputOptions(OutputOptions):
    """What the training of a tokenizer writes."""

    out: str | None = option(
        None,
        "Run folder. If it holds this run already, the run is resumed.",
        metavar="FOLDER",
        otherwise="runs/NAME-OF-DATA-tokenizer",
    )
    picture_minutes: float = option(
        3.0, "Minutes between two evaluations with a picture.", within=MINUTES
    )


def patch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """That of mae pretrain, where it is a power of two; else the next one that divides the
    sides.

    Raises:
        UserError: no power of two above it does.
    """
    size = parse_size(values["image_size"])
    side, reason = defaults.patch_choice(size)
    if side & (side - 1) == 0:
        return Choice(side, reason)
    powers = [p for p in (2, 4, 8, 16, 32) if all(length % p == 0 for length in size)]
    larger = next((p for p in powers if p > side), None)
    if larger is None:
        raise UserError(
            f"--image-size {values['image_size']} has no patch size that is a power of two: use "
            "one that 16 divides"
        )
    return Choice(larger, f"a power of two (mae pretrain would choose {side}: name it there)")


def vocabulary(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """BEiT's 8192 for a million images; fewer where there are too few images to use as many."""
    if facts.device != "cuda":
        return Choice(512, "each token costs time, and there is no GPU")
    count = 512 if facts.images < 20_000 else 2048 if facts.images < 500_000 else 8192
    return Choice(count, f"for {facts.images:,} images on a GPU")


def batch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """See `defaults.batch_of`; at most 256, because every patch has logits of all tokens."""
    on_gpu = facts.device == "cuda"
    value = min(256, defaults.batch_of(facts.images, on_gpu, facts.processes))
    value = max(facts.processes, value // facts.processes * facts.processes)
    return Choice(value, f"for {facts.images:,} images on a {'GPU' if on_gpu else 'CPU'}")


def epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """5 million crops on a GPU, 50,000 on a CPU, within bounds; with --minutes what fits into
    them."""
    if values["minutes"] is not None and facts.seconds_per_step is not None:
        return defaults.epochs_in_minutes(facts, values)
    crops, least = (5_000_000, 10) if facts.device == "cuda" else (50_000, 3)
    count = min(200, max(least, crops // facts.images))
    return Choice(count, f"{crops:,} crops, within {least} to 200 epochs")


RULES: dict[str, Rule] = {
    "image_size": Rule("the largest usual side that the median image has", defaults.largest_side),
    "patch_size": Rule("that of mae pretrain, if it is a power of two", patch_size),
    "vocabulary": Rule("512 on a CPU; 512, 2048 or 8192 by the number of images", vocabulary),
    "channels": Rule(
        "what the data has; 3 for image files",
        lambda facts, values: Choice(facts.channels, "the data's"),
    ),
    "batch_size": Rule("by the number of images: at most 32 on a CPU, 256 on a GPU", batch_size),
    "epochs": Rule("50,000 crops on a CPU, 5 million on a GPU", epochs),
    "base_lr": Rule(
        "a peak of 1e-3 at any batch size",
        lambda facts, values: Choice(
            1e-3 * 256 / values["batch_size"], "a peak of 1e-3 at any batch size"
        ),
    ),
    "warmup_epochs": Rule(
        "a twentieth of the epochs",
        lambda facts, values: Choice(values["epochs"] / 20, "a twentieth of the epochs"),
    ),
    "precision": defaults.PRECISION,
    "workers": defaults.WORKERS,
    "compile": defaults.COMPILE,
}


@dataclass(frozen=True)
class TokenizerDecodeOptions(RunDecodeOptions):
    """How images are decoded: what is open is, when a run is resumed, as it was."""

    max_megapixels: float | None = option(
        None,
        "Larger images are refused before they are decoded.",
        within=MEGAPIXELS,
        otherwise="100",
    )
    channels: int | None = option(
        None,
        "3 for color, 1 for gray.",
        within=CHANNELS,
        otherwise="what the data has; 3 for image files of 8 bits",
    )
    dtype: str | None = option(None, OF_PIXELS, otherwise="what the data has")


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a discrete VAE, whose tokens `mae pretrain --target tokens:RUN` predicts.

    What is left open is chosen for the data and the device, and printed with the reason.
    """

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    source: SourceOptions
    listing: ListingOptions = ListingOptions()
    optim: OptimOptions = OptimOptions()
    output: TokenizerOutputOptions = TokenizerOutputOptions()
    model: TokenizerOptions = TokenizerOptions()
    crop: TokenizerCropOptions = TokenizerCropOptions()
    decode: TokenizerDecodeOptions = TokenizerDecodeOptions()
    scan: ScanOptions = ScanOptions()
    runtime: RuntimeOptions = RuntimeOptions()

    def check(self) -> None:
        """Raises UserError for what is known to be wrong before any file is read."""
        check_ranges(self)
        self.crop.check()
        self.optim.check()
        self.runtime.check()
        self.output.check()
        check_scale(self.model.scale)
        side = self.model.patch_size
        if side is not None and (side < 2 or side & (side - 1)):
            lower = max(2, 1 << (side.bit_length() - 1))
            raise UserError(
                f"--patch-size {side} is no power of two, and each layer of a tokenizer halves the "
                f"image: use {lower} or {2 * lower}, in mae pretrain too"
            )
        if self.model.image_size is not None:
            parse_size(self.model.image_size)

    def resolve(self, facts: Facts) -> tuple["ResolvedTokenizer", dict[str, Choice]]:
        """The settings with nothing left to choose, and what was chosen.

        Raises:
            UserError: a batch larger than the data set.
        """
        decode = decode_as_run("none", self.decode)
        dtype = self.decode.dtype or facts.dtype
        config = changed(self, **{**decode.stored(), "dtype": dtype})
        resolved, chosen = defaults.resolve(config, ResolvedTokenizer, RULES, facts)
        batch = resolved.optim.batch_size
        if batch > facts.images:
            raise UserError(
                f"--batch-size {batch} is more than the {facts.images} images of the data set: use "
                f"at most {facts.images}"
            )
        return resolved, chosen


@dataclass(frozen=True, kw_only=True)
class ResolvedDecode(TokenizerDecodeOptions):
    """With nothing left to choose."""

    max_megapixels: float
    channels: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(TokenizerOptions):
    """With nothing left to choose."""

    image_size: str
    patch_size: int
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(OptimOptions):
    """With nothing left to choose."""

    epochs: float
    batch_size: int
    base_lr: float
    warmup_epochs: float
    precision: str


@dataclass(frozen=True, kw_only=True)
class ResolvedTokenizer(TrainTokenizer):
    """The settings of a run: what config.json holds."""

    decode: ResolvedDecode
    model: ResolvedModel
    optim: ResolvedOptim
    runtime: ResolvedRuntimeOptions
