"""The settings of `mae finetune`, and what is chosen where they are left open."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torchmae.data.config import OF_PIXELS
from torchmae.errors import UserError, choose
from torchmae.models.sizes import SIZES, architecture, check_from_scratch
from torchmae.settings import defaults
from torchmae.settings.defaults import Choice, Facts, Rule
from torchmae.settings.groups import (
    OF_TIMM,
    LabelledCropOptions,
    LabelledSourceOptions,
    OptimOptions,
    OutputOptions,
    ResolvedRuntimeOptions,
    RunDecodeOptions,
    RuntimeOptions,
    SplitListingOptions,
    SplitOptions,
)
from torchmae.settings.options import (
    ALPHA,
    BELOW_ONE,
    CHANNELS,
    DECAY,
    EPOCHS,
    NOT_NEGATIVE,
    SHARE,
    WIDTH,
    Range,
    argument,
    check_ranges,
    hidden,
    option,
    parse_size,
    patch_text,
)

MANY = 1000  # labelled images, from which on the paper's strong augmentation is used


@dataclass(frozen=True)
class FinetuneDecodeOptions(RunDecodeOptions):
    """How labelled images are decoded: as the run was decoded, unless told otherwise."""

    channels: int | None = option(
        None,
        "What the classifier takes, where run and data differ: gray and color images are "
        "converted to it, the "
        "run's patch weights adapted.",
        within=CHANNELS,
        otherwise="the run's; from scratch the data's",
    )
    dtype: str | None = option(
        None,
        f"{OF_PIXELS} Another type than the run's: mean and std are measured again.",
        otherwise="the run's; from scratch the data's",
    )


@dataclass(frozen=True)
class FinetuneCropOptions(LabelledCropOptions):
    """Random crops to train on, the middle to evaluate on."""

    clamp_crops: bool = option(
        False,
        "A random crop that is higher or wider than the image is cut to it, as in the reference's "
        "linear probe, in place of up to ten draws.",
    )
    crop_pct: float = option(
        1.0,
        "Share of the side that validation, evaluate and predict see (the paper's recipes at 224 "
        "px: 0.875).",
        within=Range(above=0, at_most=1),
    )


@dataclass(frozen=True)
class ClassifierOptions:
    """The classifier, and what of it is trained."""

    GROUP: ClassVar[str] = "model"

    train: str = option(
        "all",
        "What may change: all, head (the linear probe), 0.5 (the MLP half of the last block) or "
        "the number of "
        "last blocks (paper Figure 9).",
        metavar="PART",
    )
    pool: str | None = option(
        None,
        "What the head sees: mean of the patch tokens with its own norm; cls, the class token; or "
        "attentive, the patch tokens as learned queries weight them.",
    )
    queries: int = option(
        32,
        "Learned queries of --pool attentive, a divisor of the encoder's width.",
        within=WIDTH,
    )
    model: str | None = option(
        None,
        f"From scratch: {', '.join(SIZES)}, or a run whose architecture is taken without its "
        "weights.",
    )
    image_size: str | int | None = option(
        None, "Side in pixels, or HEIGHTxWIDTH; positions are resized.", metavar="SIZE"
    )
    position_resizing: str | None = option(
        None,
        "How positions are resized: timm (antialiased bicubic) or reference (plain bicubic, as in "
        "facebookresearch/mae).",
        metavar="RULE",
        otherwise="the run's, which is timm unless it was set before",
    )
    patch_size: str | int | None = option(
        None, "From scratch: side of a patch in pixels, or HEIGHTxWIDTH.", metavar="SIZE"
    )


@dataclass(frozen=True)
class FinetuneOptimOptions(OptimOptions):
    """How weights move in fine-tuning."""

    optimizer: str | None = option(None, "adamw, sgd or lars.")
    lr_scale: float = hidden(1.0)  # times the learning rate that is chosen: a trial of mae compare
    min_lr: float = option(1e-6, "Learning rate at the end.", within=NOT_NEGATIVE)
    weight_decay: float | None = option(None, "On all but 1-D parameters.", within=DECAY)
    layer_decay: float | None = option(
        None,
        "Each layer's learning rate is this times the next one's.",
        within=Range(above=0, at_most=1),
    )
    beta2: float | None = option(None, "AdamW's second beta.", within=BELOW_ONE)
    ema: float | None = option(
        None,
        "Decay of the exponential moving average of the weights, which is what is validated and "
        "kept; 0: off.",
        within=BELOW_ONE,
    )
    validate_epochs: float | None = option(None, "Epochs between two validations.", within=EPOCHS)


@dataclass(frozen=True)
class FinetuneOutputOptions(OutputOptions):
    """Where the classifier goes."""

    out: str | None = option(
        None,
        "Run folder. If it holds this run already, the run is resumed.",
        metavar="FOLDER",
        otherwise="RUN-finetune, RUN-probe, RUN-last-4, ... or runs/NAME-OF-DATA-scratch",
    )


@dataclass(frozen=True)
class RegularizationOptions:
    """Strong augmentation and other regularisation (paper Table 9)."""

    GROUP: ClassVar[str] = "regularization"

    augment: str | None = option(
        None,
        "How strongly images are changed: none (whole images), mild (crops of half the area and "
        "more, flips) or strong (the paper's: small crops, flips, RandAugment, erasing, mixing). "
        "It sets --crop-scale, --flip, --randaug-magnitude, --random-erasing, --mixup and --cutmix "
        "where these are not given.",
        metavar="LEVEL",
    )
    drop_path: float | None = option(
        None, "Stochastic depth of the last block, growing from 0 at the first.", within=BELOW_ONE
    )
    randaug_magnitude: float | None = option(
        None, "Magnitude of RandAugment, 0 (off) to 10.", within=Range(at_least=0, at_most=10)
    )
    random_erasing: float | None = option(None, "Probability of random erasing.", within=SHARE)
    mixup: float | None = option(None, "Mixup's alpha; 0: off.", within=ALPHA)
    cutmix: float | None = option(None, "CutMix's alpha; 0: off.", within=ALPHA)
    label_smoothing: float | None = option(None, "Label smoothing.", within=BELOW_ONE)
    unlabelled: str | None = option(
        None,
        "With --mae-weight: images without labels, as many in each step as labelled ones, for the "
        "MAE's loss.",
        metavar="DATA",
        otherwise="the labelled images alone",
        images=True,
    )
    mae_weight: float = option(
        0.0,
        "Share of the run's own MAE loss, on the same images with its decoder, in the loss; the "
        "rest is the labels' (0.9 in SSAT).",
        within=BELOW_ONE,
    )


def classify_kind(values: Mapping[str, Any]) -> str:
    """Which of the paper's recipes a fine-tuning follows: "scratch" (Table 11), "head" (Table 10)
    or "tune" (Table 9)."""
    if values["run"] == "none":
        return "scratch"
    return "head" if values["train"] == "head" else "tune"


Choose = Callable[[Facts, Mapping[str, Any]], Choice]
Chooser = Choice | Choose


def by_kind(
    words: str, tune: Chooser, head: Chooser | None = None, scratch: Chooser | None = None
) -> Rule:
    """A rule that differs between the recipes; head and scratch are as tune where they are not
    given."""

    def choose(facts: Facts, values: Mapping[str, Any]) -> Choice:
        kinds = {"tune": tune, "head": head or tune, "scratch": scratch or tune}
        chosen = kinds[classify_kind(values)]
        return chosen if isinstance(chosen, Choice) else chosen(facts, values)

    return Rule(words, choose)


@dataclass(frozen=True)
class Augmentation:
    """A level of --augment: what it stands for, by the names of the settings.

    Mixing needs many images: it is off below `MANY` at every level.
    """

    crop_scale: tuple[float, float]
    flip: bool
    randaug_magnitude: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


AUGMENTATIONS = {
    "none": Augmentation((1.0, 1.0), flip=False),
    "mild": Augmentation((0.5, 1.0), flip=True),
    # The paper's Table 9; erasing is the reference's.
    "strong": Augmentation((0.08, 1.0), True, 9.0, 0.25, 0.8, 1.0),
}
# The paper's linear probe (Table 10), where no level is named.
PROBE = Augmentation((0.08, 1.0), flip=True)


def augment(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """Mild where strong augmentation costs more than it gives (measured: docs/results.md)."""
    if facts.grey:
        return Choice(
            "mild", "gray images: what RandAugment does to them often changes their class"
        )
    if facts.images < MANY:
        return Choice("mild", f"{facts.images} labelled images, fewer than {MANY:,}: few steps")
    return Choice("strong", f"{PAPER}, from {MANY:,} labelled images on")


def by_level(name: str) -> Choose:
    """The value that the level of --augment stands for."""

    def choose_value(facts: Facts, values: Mapping[str, Any]) -> Choice:
        level = values["augment"]
        if level is None:
            return Choice(getattr(PROBE, name), "a probe sees crops and flips only")
        if name in ("mixup", "cutmix") and level == "strong" and facts.images < MANY:
            return Choice(0.0, FEW)
        return Choice(getattr(AUGMENTATIONS[level], name), f"--augment {level}")

    return choose_value


def image_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """That of the run, or of the architecture that --model names."""
    choice = defaults.largest_side(facts, values)
    return choice._replace(reason="the run's" if facts.run_size else "the images' size")


def patch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """Of an encoder from scratch; one that exists has its own."""
    if values["run"] != "none":
        return Choice(None, "the run's")
    named = architecture(values["model"]).get("patch_size")
    if named is not None:
        return Choice(patch_text(named), "that of --model")
    return defaults.patch_choice(parse_size(values["image_size"]))


def batch_size(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """See `defaults.batch_of`."""
    on_gpu = facts.device != "cpu"
    value = defaults.batch_of(facts.images, on_gpu, facts.processes)
    return Choice(value, f"for {facts.images} images on a {'GPU' if on_gpu else 'CPU'}")


def epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """2 million crops on a GPU, 20,000 on a CPU, within 20 to 100 epochs; with --minutes what fits
    into them."""
    if values["minutes"] is not None and facts.seconds_per_step is not None:
        return defaults.epochs_in_minutes(facts, values)
    budget = 2_000_000 if facts.device != "cpu" else 20_000
    count = min(100, max(20, budget // facts.images))
    return Choice(
        float(count),
        f"{count * facts.images:,} crops; {budget:,} are aimed at, within 20 to 100 epochs",
    )


def validate_epochs(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """Validation should not outweigh the training."""
    count = max(1, round(facts.val_images / facts.images))
    return Choice(
        float(count), f"{facts.val_images} images to validate on, {facts.images} to train on"
    )


def flip(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """By the level of --augment, but mild does not mirror grey images: digits, letters and organs
    have a left and a right (digits with ten labels a class, from scratch: 66 % with, 90 without).
    """
    if facts.grey and values["augment"] == "mild":
        return Choice(False, "--augment mild: gray images often have a left and a right")
    return by_level("flip")(facts, values)


def large_batch(values: Mapping[str, Any]) -> bool:
    """Whether a probe is trained by LARS: by request, or because its batch is as large as the
    paper's."""
    return values["optimizer"] == "lars" or (
        values["optimizer"] is None and values["batch_size"] >= 4096
    )


def probe_optimizer(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """LARS for very large batches (paper Table 10), else SGD; AdamW for queries."""
    if values["pool"] == "attentive":
        return Choice("adamw", "for the queries, whose gradients are small at first")
    name = "lars" if large_batch(values) else "sgd"
    return Choice(name, f"{values['batch_size']} images a step; LARS is for 4,096 and more")


def probe_lr(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """0.1 for LARS (paper Table 10); SGD bears more (measured on digits and Imagenette); queries
    learn by AdamW (measured on stored tokens of brain MRI, `eval.attentive`)."""
    if values["pool"] == "attentive":
        few = facts.images < MANY
        value = (2e-3 if few else 1e-2) * 256 / (128 * values["batch_size"]) ** 0.5
        return Choice(value, f"for {facts.images} images, falling with the root of the batch")
    if large_batch(values):
        return Choice(0.1, "the paper's")
    return Choice(1.0, "SGD bears more than the paper's 0.1 for LARS")


def finetune_lr(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """The paper's 1e-3 at 1,024 images a step, falling with the root of the batch."""
    value = 1e-3 * (1024 / values["batch_size"]) ** 0.5
    return Choice(
        value, "the paper's 1e-3 at 1,024 images a step, falling with the root of the batch"
    )


PAPER = "the paper's"
OFF = Choice(0.0, "a probe sees crops and flips only")
FEW = "mixing needs many images, there are fewer than 1,000"

RULES: dict[str, Rule] = {
    "image_size": Rule("the run's; from scratch the images' size", image_size),
    "patch_size": Rule("at most 144 patches, or 16 px", patch_size),
    "batch_size": Rule("by the number of images", batch_size),
    "epochs": Rule("20,000 crops on a CPU, 2 million on a GPU, within 20 to 100 epochs", epochs),
    "validate_epochs": Rule(
        "1; more with fewer images to train on than to validate on", validate_epochs
    ),
    "warmup_epochs": Rule(
        "a tenth of the epochs",
        lambda facts, values: Choice(values["epochs"] / 10, "a tenth of the epochs"),
    ),
    "precision": defaults.PRECISION,
    "workers": defaults.WORKERS,
    "compile": defaults.COMPILE,
    "pool": by_kind(
        "mean; cls for --train head, as in the paper",
        Choice("mean", "the reference's default"),
        head=Choice("cls", "the paper's linear probe"),
    ),
    "optimizer": by_kind(
        "adamw; for --train head sgd, or lars from 4,096 images a step on, adamw if attentive",
        Choice("adamw", PAPER),
        head=probe_optimizer,
    ),
    "base_lr": defaults.scaled(
        by_kind(
            "the paper's 1e-3 at 1,024 images a step; for --train head 1 (sgd) or 0.1 (lars); by "
            "the number of images if attentive",
            finetune_lr,
            head=probe_lr,
        )
    ),
    "weight_decay": by_kind(
        "0.05; 0.3 from scratch; 0 for --train head (paper)",
        Choice(0.05, PAPER),
        head=Choice(0.0, PAPER),
        scratch=Choice(0.3, "the paper's from scratch"),
    ),
    "layer_decay": by_kind(
        "0.75 (paper); 1 from scratch",
        Choice(0.75, PAPER),
        head=Choice(1.0, "there is one layer"),
        scratch=Choice(1.0, "nothing is pre-trained"),
    ),
    "beta2": by_kind(
        "0.999; 0.95 from scratch (paper)",
        Choice(0.999, PAPER),
        head=Choice(0.999, "not used"),
        scratch=Choice(0.95, "the paper's from scratch"),
    ),
    "drop_path": by_kind(
        "0.1 where blocks are trained (paper)",
        Choice(0.1, PAPER),
        head=Choice(0.0, "the encoder is frozen"),
    ),
    "augment": by_kind(
        "mild below 1,000 labelled images and for gray ones, else strong; --train head: the "
        "paper's crops and flips",
        augment,
        head=Choice(None, "the paper's"),
    ),
    "crop_scale": Rule("by --augment: 1 1, 0.5 1, 0.08 1", by_level("crop_scale")),
    "flip": Rule("by --augment: off, on (off for gray images), on", flip),
    "randaug_magnitude": Rule("by --augment: 0, 0, 9", by_level("randaug_magnitude")),
    "random_erasing": by_kind(
        "by --augment: 0, 0, 0.25; from scratch 0",
        by_level("random_erasing"),
        scratch=Choice(0.0, "the paper's from scratch"),
    ),
    "mixup": Rule("by --augment: 0, 0, 0.8 from 1,000 images on", by_level("mixup")),
    "cutmix": Rule("by --augment: 0, 0, 1 from 1,000 images on", by_level("cutmix")),
    "label_smoothing": by_kind("0.1 (paper); off for --train head", Choice(0.1, PAPER), head=OFF),
    "ema": by_kind(
        "0.9999 from scratch (paper), else off",
        Choice(0.0, PAPER),
        scratch=Choice(0.9999, "the paper's from scratch"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Make a classifier from a pre-trained run (or "none": from scratch) and labelled images.

    What is left open is chosen for the number of labelled images and the device, and printed with
    the reason.
    """

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    run: str = argument(
        f"a run folder; {OF_TIMM}; or none for the supervised baseline from scratch (--model names "
        "its size)",
        "RUN",
        encoder=True,
    )
    source: LabelledSourceOptions
    listing: SplitListingOptions = SplitListingOptions()
    split: SplitOptions = SplitOptions()
    model: ClassifierOptions = ClassifierOptions()
    optim: FinetuneOptimOptions = FinetuneOptimOptions()
    output: FinetuneOutputOptions = FinetuneOutputOptions()
    regularization: RegularizationOptions = RegularizationOptions()
    crop: FinetuneCropOptions = FinetuneCropOptions()
    decode: FinetuneDecodeOptions = FinetuneDecodeOptions()
    runtime: RuntimeOptions = RuntimeOptions()


@dataclass(frozen=True, kw_only=True)
class ResolvedClassifier(ClassifierOptions):
    """With nothing left to choose (an encoder that exists has a patch size of its own)."""

    pool: str
    image_size: str


@dataclass(frozen=True, kw_only=True)
class ResolvedDecode(FinetuneDecodeOptions):
    """With nothing left to choose."""

    max_megapixels: float
    channels: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(FinetuneOptimOptions):
    """With nothing left to choose."""

    epochs: float
    batch_size: int
    base_lr: float
    warmup_epochs: float
    precision: str
    optimizer: str
    weight_decay: float
    layer_decay: float
    beta2: float
    ema: float
    validate_epochs: float


@dataclass(frozen=True, kw_only=True)
class ResolvedCrop(FinetuneCropOptions):
    """With nothing left to choose."""

    crop_scale: tuple[float, float]
    flip: bool


@dataclass(frozen=True, kw_only=True)
class ResolvedRegularization(RegularizationOptions):
    """With nothing left to choose."""

    drop_path: float
    randaug_magnitude: float
    random_erasing: float
    mixup: float
    cutmix: float
    label_smoothing: float


@dataclass(frozen=True, kw_only=True)
class ResolvedFinetune(Finetune):
    """The settings of a run: what config.json holds."""

    decode: ResolvedDecode
    model: ResolvedClassifier
    optim: ResolvedOptim
    regularization: ResolvedRegularization
    crop: ResolvedCrop
    runtime: ResolvedRuntimeOptions


def check(config: Finetune) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    check_ranges(config)
    config.crop.check()
    config.optim.check()
    config.runtime.check()
    config.output.check()
    check_optimizer(config)
    if config.regularization.augment is not None:
        choose(AUGMENTATIONS, config.regularization.augment, "--augment")
    model, source = config.model, config.source
    if source.val == source.data:
        raise UserError(
            f"--val {source.val} is the data that is trained on: leave it out, and a share is held "
            "out"
        )
    check_pool(model)
    if model.position_resizing is not None:
        rules = dict.fromkeys(("timm", "reference"))
        choose(rules, model.position_resizing, "--position-resizing")
    check_from_scratch(config.run, model.model, model.patch_size, model.train)
    check_probe(config)
    check_beside(config)
    if config.regularization.mae_weight and (config.run == "none" or model.train == "head"):
        raise UserError(
            "--mae-weight trains the encoder by the decoder of a run too: name a run of mae "
            "pretrain, and more than --train head"
        )
    if model.image_size is not None:
        parse_size(model.image_size)


def check_beside(config: Finetune) -> None:
    """Raises UserError for images without labels that nothing would use."""
    if config.regularization.unlabelled is None:
        return
    if not config.regularization.mae_weight:
        raise UserError("--unlabelled is for the MAE's loss: add --mae-weight 0.9")
    if config.runtime.cache == "device":
        raise UserError("--cache device holds one set of images: with --unlabelled use another")


def check_pool(model: ClassifierOptions) -> None:
    """Raises UserError for a pooling that there is not, and queries without attentive pooling."""
    if model.pool not in (None, "mean", "cls", "attentive"):
        raise UserError(f"--pool {model.pool}: mean, cls or attentive")
    if model.queries != 32 and model.pool != "attentive":
        raise UserError(f"--queries {model.queries} belongs to --pool attentive")


def check_optimizer(config: Finetune) -> None:
    """Raises UserError for an optimizer that there is not, or that cannot be sharded."""
    optimizer = config.optim.optimizer
    if optimizer is not None:
        choose(dict.fromkeys(("adamw", "sgd", "lars")), optimizer, "optimizer")
    if config.runtime.fsdp and (config.model.train == "head" or optimizer in ("sgd", "lars")):
        raise UserError("--fsdp shards AdamW's state: use --optimizer adamw, or leave --fsdp out")


def check_probe(config: Finetune) -> None:
    """A probe's BatchNorm sees the whole batch, of more than one image."""
    if config.model.train != "head":
        return
    micro = config.runtime.micro_batch_size
    if 1 in (config.optim.batch_size, micro):
        raise UserError(
            "a probe's BatchNorm needs more than one image at a time: --batch-size 2 or more"
        )
    if micro is not None:
        raise UserError(
            f"--micro-batch-size {micro}: a probe's BatchNorm sees the whole batch; leave it out"
        )


def resolve(config: Finetune, facts: Facts) -> tuple[ResolvedFinetune, dict[str, Choice]]:
    """The settings with nothing left to choose, and what was chosen.

    Raises:
        UserError: a batch larger than the data set, a micro-batch that cannot be mixed in pairs.
    """
    resolved, chosen = defaults.resolve(config, ResolvedFinetune, RULES, facts)
    chosen = {name: choice for name, choice in chosen.items() if choice.value is not None}
    batch, micro = resolved.optim.batch_size, resolved.runtime.micro_batch_size
    mixes = resolved.regularization.mixup or resolved.regularization.cutmix
    if mixes and micro and (micro % 2 or batch % micro):
        raise UserError(
            f"--micro-batch-size {micro}: mixup and CutMix pair neighbors, so it must be even and "
            "divide the "
            f"batch of {batch} (or switch them off: --mixup 0 --cutmix 0)"
        )
    if batch > facts.images:
        raise UserError(
            f"--batch-size {batch} is more than the {facts.images} labelled images: use at most "
            f"{facts.images}"
        )
    return resolved, chosen
