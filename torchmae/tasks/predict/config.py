"""The settings of `mae predict`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import (
    DeviceOptions,
    ListingOptions,
    RunDecodeOptions,
    SegmentTestOptions,
)
from torchmae.settings.options import SHARE, argument, option


@dataclass(frozen=True)
class Predict:
    """Write the class of every image with the probability of each class to a file, the class of
    every pixel to pictures, or the objects in images to COCO's and YOLO's files."""

    GROUP: ClassVar[str] = "output"

    run: str = argument(
        "a run folder that mae finetune, mae segment, mae detect or mae import made", "RUN"
    )
    data: tuple[str, ...] = argument(
        "images, as for mae pretrain; or one or more image files; no labels are needed",
        "DATA",
        images=True,
    )
    out: str | None = option(
        None,
        '.csv or .parquet (extra "parquet"); of a segmenter or a detector a new folder.',
        otherwise="predictions.csv; the folder predictions",
    )
    overlays: bool = option(
        True, "Of a segmenter or a detector: also the images under the colors of what is found."
    )
    min_score: float = option(
        0.5,
        "Of a detector: the score from which on an object is drawn, and written for YOLO; "
        "detections.json has all.",
        within=SHARE,
    )
    best: bool = option(
        False,
        "Take the weights of the epoch that was best on the validation images, not the last ones.",
    )
    listing: ListingOptions = ListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    test: SegmentTestOptions = SegmentTestOptions()
    runtime: DeviceOptions = DeviceOptions()
