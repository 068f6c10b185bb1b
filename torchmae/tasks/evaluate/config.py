"""The settings of `mae evaluate`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torchmae.errors import UserError, choose
from torchmae.settings.groups import (
    DeviceOptions,
    LabelledListingOptions,
    PatternOptions,
    RunDecodeOptions,
    SegmentTestOptions,
)
from torchmae.settings.options import Range, argument, flatten, option, options_of


class Benchmark(NamedTuple):
    """A published set on which classifiers of ImageNet's 1,000 classes are compared.

    Attributes:
        classes: how many of the 1,000 it has.
        among: whether a classifier chooses among these alone.
        score: what is reported, in %.
        paper: that of the MAE paper (Table 13), by the size of the encoder.
    """

    classes: int
    among: bool
    score: str
    paper: dict[str, float]


SIZES = ("ViT-B", "ViT-L", "ViT-H", "ViT-H at 448 px")
IMAGENET_C = "imagenet-c"
BENCHMARKS = {
    IMAGENET_C: Benchmark(1000, False, "mCE", dict(zip(SIZES, (51.7, 41.8, 33.8, 36.8)))),
    "imagenet-a": Benchmark(200, True, "top 1", dict(zip(SIZES, (35.9, 57.1, 68.2, 76.7)))),
    "imagenet-r": Benchmark(200, True, "top 1", dict(zip(SIZES, (48.3, 59.9, 64.4, 66.5)))),
    "sketch": Benchmark(1000, False, "top 1", dict(zip(SIZES, (34.5, 45.3, 49.6, 50.9)))),
}


@dataclass(frozen=True)
class Evaluate:
    """How good a classifier, a segmenter or a detector is on labelled images: each class, with
    intervals."""

    GROUP: ClassVar[str] = "classes"

    run: str = argument(
        "a run folder that mae finetune, mae segment, mae detect or mae import made", "RUN"
    )
    data: str = argument(
        "labelled images (with train/ and val/: those of val/); their classes may be some of the "
        "classifier's; for a segmenter or a detector annotated images, as for mae segment and mae "
        "detect",
        "DATA",
        images=True,
    )
    class_map: str | None = option(
        None,
        "A JSON file {class name in the data: class name of the classifier}, where they differ.",
        metavar="FILE",
    )
    among: bool = option(
        False,
        "Let the classifier choose among the classes of the data only (as ImageNet-A and -R are "
        "scored).",
    )
    best: bool = option(
        False,
        "Take the weights of the epoch that was best on the validation images, not the last ones.",
    )
    corrupt: bool = option(
        False,
        "Measure with noise, blur, weather and digital damage: the 15 corruptions of ImageNet-C in "
        "5 strengths.",
    )
    benchmark: str | None = option(
        None,
        "DATA is one of these, as published: imagenet-c (folders of corruption/strength/class), "
        "imagenet-a, imagenet-r or sketch.",
        otherwise="DATA is a set like any other",
    )
    boundary: bool = option(
        False, "Of a segmenter: also the F score of boundaries, within 0.75 % of the diagonal."
    )
    seed: int = option(
        0,
        "With --corrupt: seed of the noise and the like.",
        within=Range(at_least=0, below=1 << 62),
    )
    listing: LabelledListingOptions = LabelledListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    test: SegmentTestOptions = SegmentTestOptions()
    runtime: DeviceOptions = DeviceOptions()

    def check(self) -> None:
        """Raises UserError for a benchmark that there is not, or is corrupted once more."""
        if self.benchmark is not None:
            choose(BENCHMARKS, self.benchmark, "--benchmark")
        if self.benchmark is not None and self.corrupt:
            raise UserError(
                f"--benchmark {self.benchmark} is measured as published: leave --corrupt out"
            )
        self.test.check()

    def refuse_flags_of_classifiers(self) -> None:
        """Raises UserError for what is named and has no meaning for pixels and objects."""
        listed = set(flatten(self.listing)) - set(flatten(PatternOptions()))
        own = ("class_map", "among", "corrupt", "benchmark", *sorted(listed))
        self.refuse(own, "classifiers")

    def refuse_flags_of_segmenters(self) -> None:
        """Raises UserError for what is named and has no meaning for objects."""
        self.refuse(("boundary", *flatten(self.test)), "segmenters")

    def refuse(self, names: Iterable[str], what: str) -> None:
        """Raises UserError for one of these settings that is named."""
        values, options = flatten(self), options_of(type(self))
        for name in names:
            setting = options[name]
            if values[name] != setting.default:
                raise UserError(f"{setting.flag} is for {what}, and {self.run} holds none")
