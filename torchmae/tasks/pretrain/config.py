"""The settings of `mae pretrain`, and what is chosen where they are left open."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torchmae.data.config import OF_PIXELS, decode_as_run
from torchmae.errors import UserError, choose
from torchmae.models.sizes import SIZES, size_of
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
    BELOW_ONE,
    BLOCKS,
    CHANNELS,
    DECAY,
    MEGAPIXELS,
    MINUTES,
    SHARE,
    WIDTH,
    Range,
    changed,
    check_ranges,
    hidden,
    option,
    parse_patch,
    parse_ratio,
    parse_size,
    size_text,
)
from torchmae.train.config import DECAY_SHARE, SCHEDULES

# What --crop may be, in words.
CROPS = {
    "random": "windows of any size and place",
    "fixed": "windows of one size at any place",
    "none": "the center",
}


@dataclass(frozen=True)
class ModelOptions:
    """The encoder, the decoder, and the weights that training starts from."""

    GROUP: ClassVar[str] = "model"

    model: str | None = option(None, f"{', '.join(SIZES)}.")
    image_size: str | int | None = option(
        None, "Side in pixels, or HEIGHTxWIDTH such as 192x256.", metavar="SIZE"
    )
    patch_size: str | int | None = option(
        None,
        "Side of a patch in pixels, or HEIGHTxWIDTH such as 8x32; divides the image size.",
        metavar="SIZE",
    )
    registers: int = option(
        0, "Register tokens of the encoder.", within=Range(at_least=0, at_most=1024)
    )
    decoder: str = option(
        "transformer",
        "transformer, cross (mask tokens look at visible patches only: less work), cross-weighted "
        "(at a learned mix of all encoder blocks), or linear (no block: a lower bound).",
        metavar="KIND",
    )
    decoder_dim: int | None = option(
        None,
        "Width of the decoder.",
        within=WIDTH,
        otherwise="512 from vit_base on, 256 and 128 below",
    )
    decoder_depth: int | None = option(
        None,
        "Blocks of the decoder.",
        within=BLOCKS,
        otherwise="8 from vit_base on, 4 and 2 below",
    )
    decoder_heads: int | None = option(
        None, "Heads of the decoder.", within=WIDTH, otherwise="of 32 dimensions each"
    )
    normalize: str | None = option(
        None,
        "Mean and std of the pixels: data (measured), imagenet or (with --from) run.",
        metavar="KIND",
    )
    scale: tuple[str, ...] = option(
        ("none",),
        "Of pixels that are not of 8 bits, before that: none, sqrt, log, percentile, or window LOW "
        "HIGH.",
        metavar="SCALE",
        several=True,
    )
    from_run: str | None = option(
        None,
        "Start from the weights of this run (of pretrain, import or finetune), at any image size "
        "and channels.",
        metavar="RUN",
        flag="from",
        otherwise="from scratch",
    )
    new_decoder: bool = option(False, "With --from: start with a new decoder.")


@dataclass(frozen=True)
class MaskingOptions:
    """What the encoder does not see of an image, and what is predicted of it."""

    GROUP: ClassVar[str] = "masking"

    mask_ratio: float | str = option(
        0.75,
        "Share of hidden patches, or a range such as 0.6..0.9, of which every 4 steps have 4 "
        "values; 0 (with --noise and --loss-on all): a denoising autoencoder.",
        within=BELOW_ONE,
    )
    masking: str = option("random", "random, block, grid or green (regions of middling size).")
    mask_unit: int = option(
        1,
        "Hide squares of so many patches a side together.",
        within=Range(at_least=1, at_most=64),
    )
    predict_share: float = option(
        1.0,
        "Share of the hidden patches that the decoder predicts, sampled each time: less work.",
        within=Range(above=0, at_most=1),
    )
    views: int = option(
        1,
        "Masks of each crop in a step. --batch-size and epochs count every one, so with 4 a batch "
        "of 32 has 8 crops.",
        within=Range(at_least=1, at_most=64),
    )
    complementary: bool = option(
        False, "With --views: each shows other patches, at 75 % with 4 views every patch once."
    )
    target: str = option(
        "norm-pixels",
        "What is predicted: norm-pixels (each patch normalized: better features), pixels, pca "
        "(the largest components of normalized patches), hog (directions of edges), ema (features "
        "of the encoder's own average over the steps), tokens:RUN (of a run of mae tokenizer) or "
        "run:RUN (features of the encoder of another run).",
    )
    noise: float = option(
        0.0,
        "Std of Gaussian noise on what the encoder sees of the normalized images; the truth has "
        "none.",
        within=Range(at_least=0, at_most=100),
    )
    loss_on: str = option(
        "hidden", "hidden patches, or all (the paper's worse variant).", metavar="PATCHES"
    )
    encode_all: bool = option(
        False,
        "Give the encoder mask tokens in place of hidden patches (the paper's slower and worse "
        "variant, Table 1c).",
    )

    def check(self) -> None:
        """Raises UserError for what does not go together."""
        low, _ = parse_ratio(self.mask_ratio)
        if not low and (self.loss_on != "all" or not self.noise):
            raise UserError(
                "--mask-ratio 0 hides nothing, so that there is nothing to predict: for a "
                "denoising autoencoder add --noise 0.5 --loss-on all, else hide some patches"
            )
        if self.complementary and self.views == 1:
            raise UserError("--complementary is about several masks of a crop: add --views 4")
        if self.predict_share < 1 and self.loss_on == "all":
            raise UserError(
                f"--predict-share {self.predict_share:g} leaves patches out, and --loss-on all "
                "needs all of them: leave one of them out"
            )


@dataclass(frozen=True)
class PretrainCropOptions(CropOptions):
    """The augmentations of the paper's Table 1e."""

    crop: str = option(
        "random",
        "random (any size and place), fixed (7/8 of the shorter side, any place) or none (the "
        "center) (paper, Table 1e).",
        metavar="KIND",
        instead_of="crop_scale",
    )
    aspect: str = option(
        "one",
        "one (all crops have the shape of --image-size), or keep (each batch has one of a few "
        "shapes, drawn by the seed as often as images have it; as many patches, and no crop is "
        "stretched).",
        metavar="KIND",
    )
    shapes: tuple[str, ...] | None = hidden(None)  # of --aspect keep, found from the images
    color_jitter: float = option(
        0.0,
        "Change brightness, contrast and saturation by up to this share, hue by a quarter of it "
        "(0.4 is usual).",
        within=SHARE,
        metavar="S",
    )

    def check(self) -> None:
        """Raises UserError for an unknown crop, and for what it does not use."""
        super().check()
        choose(CROPS, self.crop, "--crop")
        choose(dict.fromkeys(("one", "keep")), self.aspect, "--aspect")
        if self.crop != "random" and self.crop_scale is not None:
            raise UserError(
                f"--crop-scale belongs to --crop random, not to {self.crop}: leave one of them out"
            )
        if self.crop == "none" and self.flip:
            raise UserError("--crop none mirrors nothing: leave --flip out, or choose --crop fixed")


@dataclass(frozen=True)
class PretrainOptimOptions(OptimOptions):
    """Of AdamW with betas 0.9 and 0.95 (paper, appendix Table 8)."""

    weight_decay: float = option(0.05, "AdamW's, on all but 1-D parameters.", within=DECAY)
    schedule: str = option(
        "cosine",
        "Learning rate after the warm-up: cosine, or wsd (the peak, then a decay in the last "
        "fifth: the run can be lengthened).",
        metavar="KIND",
    )

    def check(self) -> None:
        """Raises UserError for what does not go together."""
        super().check()
        choose(SCHEDULES, self.schedule, "--schedule")


@dataclass(frozen=True)
class PretrainOutputOptions(OutputOptions):
    """What pre-training writes."""

    out: str | None = option(
        None,
        "Run folder. If it holds this run already, the run is resumed.",
        metavar="FOLDER",
        otherwise="runs/NAME-OF-DATA",
    )
    picture_minutes: float = option(3.0, "Minutes between two pictures.", within=MINUTES)
    labelled: str | None = option(
        None,
        "Labelled images, as for mae knn (DATA itself, where its folders are classes): k-NN "
        "accuracy and RankMe are measured with each picture. They change no weight. none: as "
        "without, for a run that had some.",
        metavar="DATA",
        otherwise="nothing is measured",
        images=True,
    )


def model_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """Small models for few images and for CPUs; None for an encoder that exists already and has no
    name."""
    if facts.embed_dim is not None:
        return Choice(None, "the run's, of a size without a name")
    if facts.device != "cuda":
        return Choice("vit_micro", "the largest that trains in minutes without a GPU")
    return Choice(suited(facts.images), f"for {facts.images:,} images on a GPU")


def suited(images: int) -> str:
    """The largest size that so many images call for, whatever the device."""
    sizes = ((10_000, "vit_tiny"), (200_000, "vit_small"))
    return next((name for limit, name in sizes if images < limit), "vit_base")


def batch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """See `defaults.batch_of`."""
    on_gpu = facts.device == "cuda"
    value = defaults.batch_of(facts.images, on_gpu, facts.processes)
    return Choice(
        value,
        f"for {facts.images:,} images on a {'GPU' if on_gpu else 'CPU'}",
    )


def epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """20 million crops on a GPU, 100,000 on a CPU, within bounds; with --minutes what fits into
    them."""
    if values["minutes"] is not None and facts.seconds_per_step is not None:
        return defaults.epochs_in_minutes(facts, values)
    if facts.device == "cuda":
        count = min(400, max(30, 20_000_000 // facts.images))
        return Choice(count, "20 million crops, within 30 to 400 epochs")
    return Choice(
        min(400, max(3, 100_000 // facts.images)), "100,000 crops, within 3 to 400 epochs"
    )


def base_lr(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """See `defaults.pretraining_lr`."""
    width = facts.embed_dim or size_of(values["model"])["embed_dim"]
    small = "small models bear more than the paper's 1.5e-4 with small batches"
    value = defaults.pretraining_lr(width, values["batch_size"])
    return Choice(value, "the paper's" if width >= 768 else small)


def warmup_epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """The paper's share; with wsd it must not depend on how long the training is."""
    if values["schedule"] == "wsd":
        usual = epochs(facts, {"minutes": None}).value
        if values["epochs"] < usual / 4:  # it has to end long before the decay begins
            return Choice(values["epochs"] / 5, "a fifth of the epochs, which are few")
        return Choice(usual / 20, f"a twentieth of the default {usual}, for runs of any length")
    return Choice(values["epochs"] / 20, "a twentieth of the epochs, as in the paper")


def crop_scale(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """The paper's range, where sizes are random."""
    if values["crop"] == "random":
        return Choice((0.2, 1.0), "the paper's")
    return Choice(None, f"--crop {values['crop']} has one size")


def flip(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """As in the paper; its images without augmentation are not mirrored."""
    if values["crop"] == "none":
        return Choice(False, "--crop none mirrors nothing")
    return Choice(True, "half of the crops, as in the paper")


def shapes_of(
    aspects: Sequence[float], size: tuple[int, int], patch: tuple[int, int]
) -> tuple[str, ...]:
    """For each aspect the size in pixels of the grid that has it most nearly, of at most as many
    patches as `size` has; aspects beyond 3 count as 3.

    Args:
        aspects: height over width.
        size: --image-size.
        patch: height and width of a patch.
    """
    patches = size[0] // patch[0] * (size[1] // patch[1])

    def off(rows: int, aspect: float) -> float:
        columns = patches // rows
        shape = rows * patch[0] / (columns * patch[1])
        return abs(math.log(shape / aspect)) + math.log(patches / (rows * columns))

    found = []
    for aspect in aspects:
        wanted = min(3.0, max(1 / 3, aspect))
        rows = min(range(1, patches + 1), key=lambda rows: off(rows, wanted))
        found.append(size_text((rows * patch[0], patches // rows * patch[1])))
    return tuple(found)


RULES: dict[str, Rule] = {
    "model": Rule("by the number of images and the device; with --from the run's", model_size),
    "image_size": Rule("the largest usual side that the median image has", defaults.largest_side),
    "patch_size": Rule(
        "at most 144 patches, or 16 px",
        lambda facts, values: defaults.patch_choice(parse_size(values["image_size"])),
    ),
    "channels": Rule(
        "what the data has; 3 for image files",
        lambda facts, values: Choice(facts.channels, "the data's"),
    ),
    "normalize": Rule(
        "data; with --from run, if its channels fit",
        lambda facts, values: Choice("data", "measured on the images"),
    ),
    "batch_size": Rule("by the number of images: at most 32 on a CPU, 1024 on a GPU", batch_size),
    "epochs": Rule("100,000 crops on a CPU, 20 million on a GPU", epochs),
    "base_lr": Rule("the paper's 1.5e-4 from vit_base on, more for smaller models", base_lr),
    "warmup_epochs": Rule(
        "a twentieth of the epochs, as in the paper; with wsd of the default ones", warmup_epochs
    ),
    "crop_scale": Rule("0.2 1, with --crop random", crop_scale),
    "flip": Rule("on, but with --crop none", flip),
    "precision": defaults.PRECISION,
    "workers": defaults.WORKERS,
    "compile": defaults.COMPILE,
}


@dataclass(frozen=True)
class PretrainDecodeOptions(RunDecodeOptions):
    """How images are decoded: as the run of --from was decoded, unless told otherwise."""

    max_megapixels: float | None = option(
        None,
        "Larger images are refused before they are decoded.",
        within=MEGAPIXELS,
        otherwise="100, or that of the run of --from",
    )
    channels: int | None = option(
        None,
        "3 for color, 1 for gray.",
        within=CHANNELS,
        otherwise="what the data has; 3 for image files of 8 bits",
    )
    dtype: str | None = option(None, OF_PIXELS, otherwise="what the data has")


@dataclass(frozen=True)
class Pretrain:
    """Pre-train a Masked Autoencoder on images.

    What is left open is chosen for the data and the device, and printed with the reason.
    """

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    source: SourceOptions
    listing: ListingOptions = ListingOptions()
    optim: PretrainOptimOptions = PretrainOptimOptions()
    output: PretrainOutputOptions = PretrainOutputOptions()
    model: ModelOptions = ModelOptions()
    masking: MaskingOptions = MaskingOptions()
    crop: PretrainCropOptions = PretrainCropOptions()
    decode: PretrainDecodeOptions = PretrainDecodeOptions()
    scan: ScanOptions = ScanOptions()
    runtime: RuntimeOptions = RuntimeOptions()

    def check(self) -> None:
        """Raises UserError for what is known to be wrong before any file is read."""
        check_ranges(self)
        self.crop.check()
        self.optim.check()
        self.runtime.check()
        self.output.check()
        if self.crop.color_jitter and self.runtime.cache == "device":
            raise UserError(
                "--cache device makes crops and flips only, no --color-jitter: use --cache memory"
            )
        if self.crop.aspect == "keep" and self.runtime.cache == "device":
            raise UserError("--cache device makes crops of one shape: use --cache memory")
        self.masking.check()
        if self.masking.target == "ema" and self.runtime.fsdp:
            raise UserError("--target ema needs the whole encoder in each process: without --fsdp")
        model = self.model
        if model.normalize not in (None, "data", "imagenet", "run"):
            raise UserError(f"--normalize {model.normalize}: data or imagenet, or run with --from")
        if model.from_run is None and (model.new_decoder or model.normalize == "run"):
            flag = "--new-decoder" if model.new_decoder else "--normalize run"
            raise UserError(
                f"{flag} says what to do with the run of --from: add --from RUN, or leave {flag} "
                "out"
            )
        check_scale(model.scale)
        if model.model is not None:
            size_of(model.model)
        if model.image_size is not None:
            parse_size(model.image_size)
        if model.patch_size is not None:
            parse_patch(model.patch_size)

    def resolve(self, facts: Facts) -> tuple["ResolvedPretrain", dict[str, Choice]]:
        """The settings with nothing left to choose, and what was chosen.

        Raises:
            UserError: a batch larger than the data set; a warm-up that does not end before the
                decay.
        """
        decode = decode_as_run(self.model.from_run or "none", self.decode)
        dtype = self.decode.dtype or facts.dtype
        config = changed(self, **{**decode.stored(), "dtype": dtype})
        resolved, chosen = defaults.resolve(config, ResolvedPretrain, RULES, facts)
        if resolved.crop.aspect == "keep" and resolved.crop.shapes is None:
            patch = parse_patch(resolved.model.patch_size)
            sizes = (
                parse_size(resolved.model.image_size),
                (patch if isinstance(patch, tuple) else (patch, patch)),
            )
            resolved = changed(resolved, shapes=shapes_of(facts.aspects, *sizes))
        batch = resolved.optim.batch_size
        if batch > facts.images:
            raise UserError(
                f"--batch-size {batch} is more than the {facts.images} images of the data set: use "
                f"at most {facts.images}"
            )
        views = resolved.masking.views
        if batch % views:
            raise UserError(
                f"--batch-size {batch} counts {views} masks of each crop: use a multiple of "
                f"{views}, such as {max(1, batch // views) * views}"
            )
        warmup, stable = resolved.optim.warmup_epochs, (1 - DECAY_SHARE) * resolved.optim.epochs
        if resolved.optim.schedule == "wsd" and warmup > stable:
            raise UserError(
                f"--schedule wsd falls from epoch {stable:.4g} on, but the warm-up takes "
                f"{warmup:.4g} epochs: use more --epochs, or less --warmup-epochs"
            )
        return resolved, chosen


@dataclass(frozen=True, kw_only=True)
class ResolvedDecode(PretrainDecodeOptions):
    """With nothing left to choose."""

    max_megapixels: float
    channels: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelOptions):
    """With nothing left to choose."""

    image_size: str
    patch_size: str | int
    normalize: str


@dataclass(frozen=True, kw_only=True)
class ResolvedCrop(PretrainCropOptions):
    """With nothing left to choose."""

    flip: bool


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(PretrainOptimOptions):
    """With nothing left to choose."""

    epochs: float
    batch_size: int
    base_lr: float
    warmup_epochs: float
    precision: str


@dataclass(frozen=True, kw_only=True)
class ResolvedPretrain(Pretrain):
    """The settings of a run: what config.json holds."""

    crop: ResolvedCrop
    decode: ResolvedDecode
    model: ResolvedModel
    optim: ResolvedOptim
    runtime: ResolvedRuntimeOptions
