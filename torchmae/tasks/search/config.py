"""The settings of `mae search`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.errors import UserError
from torchmae.settings.groups import (
    OF_TIMM,
    DeviceOptions,
    FeatureOptions,
    ListingOptions,
    RunDecodeOptions,
)
from torchmae.settings.options import Range, argument, check_ranges, option

NEAREST = 8


@dataclass(frozen=True)
class Search:
    """Find the images of a set that are nearest to others, or nearly the same as each other, by
    the features of a run."""

    GROUP: ClassVar[str] = "search"

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    data: str = argument("the images to search, as for mae pretrain", "DATA", images=True)
    query: tuple[str, ...] = option(
        (),
        "Image files: the nearest images of DATA to each.",
        metavar="IMAGE",
        several=True,
        images=True,
    )
    duplicates: bool = option(False, "Groups of images of DATA that are nearly the same.")
    k: int = option(NEAREST, "How many images for each --query.", within=Range(above=0))
    max_distance: float = option(
        0.02,
        "With --duplicates: the largest distance (1 - cosine) of a pair.",
        within=Range(at_least=0, below=1),
    )
    index: str = option(
        "exact",
        'exact (products with all features), or faiss (extra "faiss": approximate, for more than '
        "a million images).",
    )
    out: str | None = option(
        None,
        'The table (.csv, or .parquet: extra "parquet"); the sheet has its name with .png.',
        metavar="FILE",
        otherwise="search.csv or duplicates.csv",
    )
    compared: FeatureOptions = FeatureOptions()
    listing: ListingOptions = ListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()


def check(config: Search) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    check_ranges(config)
    if bool(config.query) == config.duplicates:
        raise UserError("mae search RUN DATA takes --query IMAGE... or --duplicates, one of them")
