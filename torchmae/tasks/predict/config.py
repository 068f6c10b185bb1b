"""The settings of `mae predict`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import DeviceOptions, ListingOptions, RunDecodeOptions
from torchmae.settings.options import argument, option


@dataclass(frozen=True)
class Predict:
    """Write the predicted class of every image, and the probability of each class, to a file."""

    GROUP: ClassVar[str] = "output"

    run: str = argument("a run folder that mae finetune or mae import made", "RUN")
    data: tuple[str, ...] = argument(
        "images, as for mae pretrain; or one or more image files; no labels are needed", "DATA"
    )
    out: str = option("predictions.csv", '.csv or .parquet (extra "parquet").')
    best: bool = option(
        False,
        "Take the weights of the epoch that was best on the validation images, not the last ones.",
    )
    listing: ListingOptions = ListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()
