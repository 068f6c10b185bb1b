"""The settings of `mae compare segment` and `mae compare detect`: those of mae segment and mae
detect, of which they vary some."""

from dataclasses import dataclass

from torchmae.settings.groups import OF_TIMM
from torchmae.settings.options import POSITIVE, Range, argument, hidden, option
from torchmae.tasks.dense.config import (
    DenseModelOptions,
    DenseOptimOptions,
    DenseOutputOptions,
    DenseSplitOptions,
)
from torchmae.tasks.dense.detect.config import Detect
from torchmae.tasks.dense.segment.config import Segment

RUNS = (
    "a run folder, which is compared with the same encoder from scratch; or several: run folders, "
    f"none (the encoder of the first run from scratch), and {OF_TIMM}"
)


@dataclass(frozen=True)
class CompareSplitOptions(DenseSplitOptions):
    """Several numbers of images in place of one."""

    train_images: tuple[int, ...] = option(  # type: ignore[assignment]
        (),
        "Numbers of training images, one comparison each.",
        within=POSITIVE,
        otherwise="all images",
    )


@dataclass(frozen=True)
class CompareModelOptions(DenseModelOptions):
    """From scratch, model and patch size are the first run's."""

    model: str | None = hidden(None)
    patch_size: int | None = hidden(None)


@dataclass(frozen=True)
class CompareOptimOptions(DenseOptimOptions):
    """Several seeds in place of one."""

    seeds: tuple[int, ...] = option(
        (0, 1, 2),
        "Seed of split, subset, head, order and crops: a training of each encoder each.",
        within=Range(at_least=0, below=1 << 62),
    )
    lr_sweep: int | None = option(
        None,
        "Try so many learning rates (2: x1, x3; 3: x1/3 too) of each encoder on training images "
        "that no seed validates on, and take the best.",
        within=Range(at_least=2, at_most=3),
        otherwise="that of the recipe",
    )
    seed: int = hidden(0)
    minutes: float | None = hidden(None)  # each training would be timed, and have its own length


@dataclass(frozen=True)
class CompareOutputOptions(DenseOutputOptions):
    """A folder of runs in place of one."""

    out: str | None = option(
        None,
        "Folder of the comparison: a run folder for each training, a table and a picture.",
        metavar="FOLDER",
        otherwise="RUN-compare-segment, RUN-compare-detect",
    )


@dataclass(frozen=True, kw_only=True)
class CompareSegment(Segment):
    """Compare a run with the same encoder from scratch, or any number of encoders with the first
    of them, as segmenters: same images, crops, steps and seeds.

    Flags are those of mae segment and hold for all; what is left open follows each one's own
    recipe.
    """

    run: tuple[str, ...] = argument(RUNS, "RUN...", encoder=True)  # type: ignore[assignment]
    split: CompareSplitOptions = CompareSplitOptions()
    model: CompareModelOptions = CompareModelOptions()
    optim: CompareOptimOptions = CompareOptimOptions()
    output: CompareOutputOptions = CompareOutputOptions()


@dataclass(frozen=True, kw_only=True)
class CompareDetect(Detect):
    """Compare a run with the same encoder from scratch, or any number of encoders with the first
    of them, as detectors: same images, crops, steps and seeds.

    Flags are those of mae detect and hold for all; what is left open follows each one's own
    recipe.
    """

    run: tuple[str, ...] = argument(RUNS, "RUN...", encoder=True)  # type: ignore[assignment]
    split: CompareSplitOptions = CompareSplitOptions()
    model: CompareModelOptions = CompareModelOptions()
    optim: CompareOptimOptions = CompareOptimOptions()
    output: CompareOutputOptions = CompareOutputOptions()
