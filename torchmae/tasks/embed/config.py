"""The settings of `mae embed`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import OF_TIMM, DeviceOptions, ListingOptions, RunDecodeOptions
from torchmae.settings.options import BATCH, POSITIVE, argument, option


@dataclass(frozen=True)
class Embed:
    """Write the paths and features of images to a file."""

    GROUP: ClassVar[str] = "features"

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    data: str = argument("images, as for mae pretrain", "DATA", images=True)
    out: str | None = option(
        None,
        '.npz (arrays "paths" and "features"), .csv or .parquet (extra "parquet"); with --pool '
        "tokens .safetensors or .npy. With --tile also a new folder: NAME.npy of each image, the "
        "features of its tiles in their grid, NaN where a tile is left out.",
        metavar="PATH",
        otherwise="features.npz, or tokens.safetensors",
    )
    layer: int | None = option(
        None,
        "Take the tokens after this block, 1 to depth.",
        within=POSITIVE,
        otherwise="after the last",
    )
    pool: str = option(
        "mean",
        "mean (of the patch tokens), cls (the class token) or cls+mean; tokens: those of all "
        "patches, in half precision.",
    )
    batch_size: int = option(64, "Images at a time.", within=BATCH)
    listing: ListingOptions = ListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()
