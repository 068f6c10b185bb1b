"""The settings of `mae evaluate`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import DeviceOptions, LabelledListingOptions, RunDecodeOptions
from torchmae.settings.options import Range, argument, option


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, each class, calibration and confusion of a classifier on labelled images."""

    GROUP: ClassVar[str] = "classes"

    run: str = argument("a run folder that mae finetune or mae import made", "RUN")
    data: str = argument(
        "labelled images (with train/ and val/: those of val/); their classes may be some of the "
        "classifier's",
        "DATA",
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
    seed: int = option(
        0,
        "With --corrupt: seed of the noise and the like.",
        within=Range(at_least=0, below=1 << 62),
    )
    listing: LabelledListingOptions = LabelledListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()
