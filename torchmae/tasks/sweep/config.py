"""The settings of `mae compare` and `mae partial`: those of mae finetune, of which each verb varies
some."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torchmae.errors import UserError, choose
from torchmae.settings.groups import OF_TIMM, SplitOptions
from torchmae.settings.options import EPOCHS, POSITIVE, Range, argument, hidden, option
from torchmae.tasks.finetune.config import (
    ClassifierOptions,
    Finetune,
    FinetuneOptimOptions,
    FinetuneOutputOptions,
)


class Trial(NamedTuple):
    """What a trial changes: a factor of the learning rate, and the level of --augment (None: that
    of the recipe)."""

    lr_scale: float
    augment: str | None

    @property
    def times(self) -> str:
        """Such as "x1/3"."""
        return "x1/3" if self.lr_scale < 1 else f"x{self.lr_scale:g}"

    def __str__(self) -> str:
        return f"learning rate {self.times}" + (f", augment {self.augment}" if self.augment else "")

    @property
    def folder(self) -> str:
        return f"lr-x{self.lr_scale:.2g}" + (f"-{self.augment}" if self.augment else "")


# What is tried, the most telling first: --trials N takes the first N.
TRIALS = (
    Trial(1.0, "mild"),
    Trial(3.0, "mild"),
    Trial(1.0, "strong"),
    Trial(1.0, "none"),
    Trial(1 / 3, "mild"),
    Trial(3.0, "strong"),
    Trial(3.0, "none"),
    Trial(1 / 3, "strong"),
    Trial(1 / 3, "none"),
)
LR_SWEEP = (Trial(1.0, None), Trial(3.0, None), Trial(1 / 3, None))  # --lr-sweep N: the first N


@dataclass(frozen=True)
class CompareSplitOptions(SplitOptions):
    """Several subsets in place of one."""

    labels_per_class: tuple[int, ...] = option(  # type: ignore[assignment]
        (),
        "Numbers of training images of each class, one comparison each.",
        within=POSITIVE,
        otherwise="all images",
    )


@dataclass(frozen=True)
class CompareModelOptions(ClassifierOptions):
    """Model and patch size are the run's, for both."""

    model: str | None = hidden(None)
    patch_size: int | None = hidden(None)


@dataclass(frozen=True)
class CompareOptimOptions(FinetuneOptimOptions):
    """Several seeds in place of one."""

    seeds: tuple[int, ...] = option(
        (0, 1, 2, 3, 4),
        "Seed of split, subset, head, order and augmentation: a pair of trainings each.",
        within=Range(at_least=0, below=1 << 62),
    )
    seed: int = hidden(0)
    minutes: float | None = hidden(None)  # each training would be timed, and have its own length
    trials: int | None = option(
        None,
        "Trainings of each side, and of each number of labels, from which learning rate (x1/3, x1, "
        "x3) and --augment level of that side are chosen, on training images that no seed "
        "validates on; 0: no search.",
        within=Range(at_least=0, at_most=9),
        otherwise="6; none where too few images are left to choose on",
    )
    lr_sweep: int | None = option(
        None,
        "In place of --trials: so many learning rates (2: x1, x3; 3: x1/3 too) are tried of each "
        "side on the same images, and the augmentation is that of the recipe.",
        within=Range(at_least=2, at_most=3),
        otherwise="as --trials says",
    )


@dataclass(frozen=True)
class SweepOutputOptions(FinetuneOutputOptions):
    """A folder of runs in place of one."""

    out: str | None = option(
        None,
        "Folder of the sweep: a run folder for each training, a table and a picture.",
        metavar="FOLDER",
        otherwise="RUN-compare, RUN-partial",
    )


# What --measure may be: of frozen features, and of fine-tuning.
FEW_LABEL = "few-label"
MEASURES = {
    "knn": "k-NN: 20 neighbors among standardized features vote",
    "linear": "logistic regression on frozen features, its penalty by cross-validation on the "
    "training labels",
    "attentive": "learned queries pool frozen patch tokens, their learning rate chosen on a fold "
    "of the training labels",
    FEW_LABEL: "fine-tuning on the labels, last epoch",
}


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured of each encoder."""

    GROUP: ClassVar[str] = "measures"

    measure: tuple[str, ...] = option(
        (),
        f"Any of {', '.join(MEASURES)}: frozen features, and fine-tuning on --labels-per-class.",
        metavar="NAME",
        otherwise="few-label for one run, all four for several",
    )


@dataclass(frozen=True, kw_only=True)
class Compare(Finetune):
    """Compare a run with the same encoder from scratch, or any number of encoders with the first
    of them: same images, labels, steps and seeds.

    Flags are those of mae finetune and hold for all; what is left open follows each one's own
    recipe. mae compare segment and mae compare detect do the same with masks and boxes.
    """

    run: tuple[str, ...] = argument(  # type: ignore[assignment]
        "a run folder, which is compared with the same encoder from scratch; or several: run "
        f"folders, none (the encoder of the first run from scratch), and {OF_TIMM}",
        "RUN...",
        encoder=True,
    )
    measures: MeasureOptions = MeasureOptions()
    split: CompareSplitOptions = CompareSplitOptions()
    model: CompareModelOptions = CompareModelOptions()
    optim: CompareOptimOptions = CompareOptimOptions()
    output: SweepOutputOptions = SweepOutputOptions()


@dataclass(frozen=True)
class PartialModelOptions(ClassifierOptions):
    """Several parts in place of one."""

    train: tuple[str, ...] = option(  # type: ignore[assignment]
        (),
        "What may change, one training each: 0 (linear probe), 0.5 (MLP half of the last block), "
        "numbers of last "
        "blocks, all.",
        metavar="PART",
        otherwise="0 0.5 1 2 4 all, as far as there are so many",
    )


@dataclass(frozen=True)
class PartialOptimOptions(FinetuneOptimOptions):
    """Several lengths in place of one."""

    epochs: tuple[float, ...] = option(  # type: ignore[assignment]
        (),
        "Passes over the labelled images. Several: each is tried, and the best of each part is "
        "shown (the paper: "
        "50 100 200).",
        within=EPOCHS,
        otherwise="as mae finetune",
    )
    minutes: float | None = hidden(None)


@dataclass(frozen=True, kw_only=True)
class Partial(Finetune):
    """Fine-tune more and more of the last blocks, and draw the accuracies beside those of the
    paper's Figure 9.

    Flags are those of mae finetune and hold for all; 0 is the linear probe with its own recipe.
    """

    RULES: ClassVar = {
        name: rule for name, rule in Finetune.RULES.items() if name not in ("epochs",)
    }

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    model: PartialModelOptions = PartialModelOptions()
    optim: PartialOptimOptions = PartialOptimOptions()
    output: SweepOutputOptions = SweepOutputOptions()


def check_compare(config: Compare) -> None:
    """Raises UserError for what cannot be compared."""
    optim = config.optim
    for name in config.measures.measure:
        choose(MEASURES, name, "--measure")
    if config.source.data == "none":
        raise UserError(
            "the last argument is the labelled images, and none is an encoder: name a folder "
            "behind it"
        )
    check_encoders(config)
    if optim.lr_sweep is not None and optim.trials is not None:
        raise UserError(f"--lr-sweep {optim.lr_sweep} tries learning rates: leave --trials out")


def check_encoders(config: Any) -> None:
    """Raises UserError for encoders that cannot be compared, whatever is made of them."""
    seeds, optim = config.optim.seeds, config.optim
    if set(config.run) == {"none"}:
        raise UserError(
            "mae compare needs a run before the labelled images: from scratch is the partner that "
            "it trains by itself"
        )
    if len(set(seeds)) != len(seeds) or len(seeds) < 2:
        raise UserError(
            f"--seeds {' '.join(map(str, seeds))}: at least two, all different, for a spread"
        )
    if optim.lr_sweep is not None and optim.base_lr is not None:
        raise UserError(f"--lr-sweep {optim.lr_sweep} tries learning rates: leave --base-lr out")
