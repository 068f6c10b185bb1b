"""The settings of `mae serve`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import (
    OF_TIMM,
    DeviceOptions,
    RunDecodeOptions,
    SegmentTestOptions,
)
from torchmae.settings.options import SHARE, Range, argument, option


@dataclass(frozen=True)
class Serve:
    """A page on this machine: drop an image, paint a mask, and see what the model makes of it.

    Of a fine-tuned run it shows classes, masks or boxes. Nothing leaves the machine; Ctrl-C ends
    it.
    """

    GROUP: ClassVar[str] = "page"

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    port: int | None = option(
        None,
        "Port on 127.0.0.1.",
        within=Range(at_least=0, at_most=65_535),
        otherwise="8000, or the next one that is free",
    )
    features: str | None = option(
        None,
        "The .npz file that mae embed wrote with this run: shows the nearest of its images.",
        metavar="FILE",
    )
    data: str | None = option(
        None,
        "With --features: the images they are of.",
        metavar="DATA",
        otherwise="those the run was trained on",
        images=True,
    )
    min_score: float = option(
        0.5, "Of a detector: the score from which on an object is shown.", within=SHARE
    )
    max_upload: float = option(
        32.0, "Megabytes of the largest upload.", within=Range(above=0, at_most=1024)
    )
    best: bool = option(
        False,
        "Take the weights of the epoch that was best on the validation images, not the last ones.",
    )
    decode: RunDecodeOptions = RunDecodeOptions()
    test: SegmentTestOptions = SegmentTestOptions()
    runtime: DeviceOptions = DeviceOptions()
