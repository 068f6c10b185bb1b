"""The settings of `mae ablate`: those of mae pretrain, what is varied, and how it is measured."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.errors import UserError
from torchmae.settings.options import (
    EPOCHS,
    POSITIVE,
    ChangeableOptions,
    Range,
    argument,
    hidden,
    option,
)
from torchmae.tasks.ablate.studies import ALL, STUDIES
from torchmae.tasks.pretrain.config import Pretrain, PretrainOptimOptions, PretrainOutputOptions

BUDGETS = ("images", "flops", "minutes")


@dataclass(frozen=True)
class AblationOptions(ChangeableOptions):
    """What is varied, and on which part of the trainings this call works."""

    GROUP: ClassVar[str] = "ablation"

    study: tuple[str, ...] = option(
        (),
        f"Experiments of the paper: {', '.join(STUDIES)}, or {ALL}.",
        metavar="STUDY",
        otherwise="none; --vary makes one of your own",
    )
    vary: tuple[str, ...] = option(
        (),
        "A setting of mae pretrain and its values, such as mask_ratio 0.5 0.75 0.9; several "
        "settings: every combination.",
        metavar="SETTING",
        otherwise="nothing but what --study varies",
        several=True,
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2),
        "Seed of weights, masks, crops, splits and heads: a training of every point each.",
        within=Range(at_least=0, below=1 << 62),
    )
    budget: str | None = option(
        None,
        "What a training costs, equal for all: images=N (seen), flops=N or minutes=N.",
        otherwise="equal epochs",
    )
    jobs: int = option(
        1, "Trainings side by side, which share the cores.", within=Range(at_least=1, at_most=256)
    )
    part: str | None = option(
        None,
        "Do only part I of N of the trainings, as 3/12, for job arrays on a shared folder.",
        metavar="I/N",
        otherwise="all of them",
    )
    keep: bool = option(False, "Keep the weights of every training.")


@dataclass(frozen=True)
class MeasureOptions:
    """How a pre-trained encoder is measured."""

    GROUP: ClassVar[str] = "measures"

    measure: tuple[str, ...] = option(
        ("knn", "linear", "attentive", "few-label"),
        "knn, linear and attentive (of frozen features, all labels), few-label (fine-tuning on "
        "--labels-per-class), finetune (on all labels), finetune-PART (see mae partial).",
        metavar="MEASURE",
    )
    labels_per_class: int = option(
        10, "Labelled images of each class that few-label trains on.", within=POSITIVE
    )
    val: str | None = option(
        None,
        "Labelled images to validate on.",
        metavar="DATA",
        otherwise="val/ or test/ beside train/, else a share of LABELLED",
        images=True,
    )
    val_fraction: float = option(
        0.2,
        "Without --val: the share of every class that is held out, drawn by the seed.",
        within=Range(above=0, below=1),
    )
    finetune_epochs: float | None = option(
        None,
        "Epochs of each fine-tuning.",
        within=EPOCHS,
        otherwise="as mae finetune",
    )


@dataclass(frozen=True)
class AblateOptimOptions(PretrainOptimOptions):
    """Several seeds in place of one, and a budget in place of minutes."""

    seed: int = hidden(0)
    minutes: float | None = hidden(None)


@dataclass(frozen=True)
class AblateOutputOptions(PretrainOutputOptions):
    """A folder of trainings in place of a run."""

    out: str | None = option(
        None,
        "Folder of the ablation: ablation.json and pictures. The same command resumes where it "
        "was stopped.",
        metavar="FOLDER",
        otherwise="runs/NAME-OF-DATA-ablation",
    )
    labelled: str | None = hidden(None)  # of mae pretrain; here features are measured at the end


@dataclass(frozen=True, kw_only=True)
class Ablate(Pretrain):
    """Rerun the paper's ablations, or a grid of your own, on any images: a pre-training for every
    point and seed, measured on labelled images.

    Flags are those of mae pretrain and hold for every training, but for what is varied.
    """

    labelled_data: str = argument(
        "labelled images, as mae finetune takes them", "LABELLED", images=True
    )
    ablation: AblationOptions = AblationOptions()
    measures: MeasureOptions = MeasureOptions()
    optim: AblateOptimOptions = AblateOptimOptions()
    output: AblateOutputOptions = AblateOutputOptions()


def parse_budget(text: str | None) -> tuple[str, float] | None:
    """`images=200000` to ("images", 200000.0)."""
    if text is None:
        return None
    kind, _, amount = text.partition("=")
    try:
        value = float(amount)
    except ValueError:
        value = 0.0
    if kind not in BUDGETS or not 0 < value < float("inf"):
        raise UserError(
            f"--budget {text}: images=N, flops=N or minutes=N, N above 0, such as images=200000"
        )
    return kind, value


def parse_part(text: str | None) -> tuple[int, int]:
    """`3/12` to (3, 12); (1, 1) for everything."""
    if text is None:
        return 1, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UserError(f"--part {text}: I/N with I from 1 to N, such as 3/12")
    return int(first), int(second)
