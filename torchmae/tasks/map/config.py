"""The settings of `mae map`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import (
    OF_TIMM,
    DeviceOptions,
    FeatureOptions,
    LabelledListingOptions,
    RunDecodeOptions,
)
from torchmae.settings.options import Range, argument, option

MOST_IMAGES = 10_000  # of a page of at most 5 MB


@dataclass(frozen=True)
class Map:
    """Draw the images of a set as a map: who is near whom in the features of a run. One file that
    opens from disk, without script or network."""

    GROUP: ClassVar[str] = "map"

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    data: str = argument("images, as for mae pretrain; labels give colors", "DATA", images=True)
    method: str = option(
        "pca",
        'pca, umap (extra "umap") or tsne (scikit-learn, extra "demo").',
    )
    count: int = option(
        5000,
        "How many images at most; of more the hash chooses.",
        within=Range(at_least=3, at_most=MOST_IMAGES),
    )
    seed: int = option(
        0,
        "Seed of the images that are chosen, of umap and tsne.",
        within=Range(at_least=0, below=1 << 31),
    )
    out: str = option("map.html", "The page to write (.html).", metavar="FILE")
    compared: FeatureOptions = FeatureOptions()
    listing: LabelledListingOptions = LabelledListingOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()
