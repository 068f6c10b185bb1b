"""The settings of `mae knn`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import (
    OF_TIMM,
    DeviceOptions,
    LabelledSourceOptions,
    RunDecodeOptions,
    SplitListingOptions,
)
from torchmae.settings.options import POSITIVE, Range, argument, option


@dataclass(frozen=True, kw_only=True)
class Knn:
    """How good are the features? k-NN accuracy on labelled images, beside raw pixels and an
    untrained encoder."""

    GROUP: ClassVar[str] = "features"

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    source: LabelledSourceOptions
    listing: SplitListingOptions = SplitListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    k: int = option(
        20, "Neighbors that vote, each with the weight exp(similarity / 0.07).", within=POSITIVE
    )
    layer: int | str | None = option(
        None,
        "Take the tokens after this block, 1 to depth; all: each of them, with a picture.",
        within=POSITIVE,
        metavar="BLOCK",
        otherwise="after the last",
    )
    pool: str = option("mean", "mean (of the patch tokens), cls (the class token) or cls+mean.")
    val_fraction: float = option(
        0.2,
        "Without --val: the share of every class that is held out, drawn by the seed.",
        within=Range(above=0, below=1),
    )
    seed: int = option(
        0,
        "Seed of the split and of the untrained encoder.",
        within=Range(at_least=0, below=1 << 62),
    )
    runtime: DeviceOptions = DeviceOptions()
