"""The settings of `mae look`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.errors import UserError
from torchmae.settings.groups import OF_TIMM, DeviceOptions, RunDecodeOptions
from torchmae.settings.options import NOT_NEGATIVE, POSITIVE, WIDTH, argument, check_ranges, option


@dataclass(frozen=True)
class Look:
    """Draw what an encoder makes of images, patch by patch: principal components of the tokens as
    colors, norms, attention of the class token and of attentive queries, similarity to a patch."""

    GROUP: ClassVar[str] = "picture"

    run: str = argument(f"a run folder, or {OF_TIMM}", "RUN", encoder=True)
    images: tuple[str, ...] = argument(
        "image files of any size, or arrays (.npy, .npz: the first 8 images)",
        "IMAGE...",
        images=True,
    )
    out: str | None = option(
        None,
        "The folder for look.png, heads.png and queries.png.",
        metavar="FOLDER",
        otherwise="RUN/look",
    )
    layer: int | None = option(
        None,
        "Take the tokens after this block, 1 to depth.",
        within=POSITIVE,
        otherwise="after the last",
    )
    patch: tuple[int, int] | None = option(
        None,
        "Draw the similarity of all patches to this one of the first image: row and column, from "
        "0.",
        within=NOT_NEGATIVE,
        metavar="N",
    )
    point: tuple[float, float] | None = option(
        None,
        "The same of the patch at this place of the first image: pixels from the left and from "
        "the top.",
        within=NOT_NEGATIVE,
        metavar="PX",
    )
    short_side: int | None = option(
        None,
        "Pixels of the shorter side of images as the encoder gets them; more make finer maps.",
        within=WIDTH,
        otherwise="as long as that of the run's images",
    )
    crop: bool = option(
        False,
        "Only the central crop that mae embed sees, at the run's size, in place of whole images.",
    )
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()


def check(config: Look) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    check_ranges(config)
    if not config.images:
        raise UserError("name at least one image file: mae look RUN IMAGE...")
    if config.patch is not None and config.point is not None:
        raise UserError("--patch and --point name the same: leave one of them out")
    if config.crop and config.short_side is not None:
        raise UserError(
            "--crop has the size of the run's images: leave out --short-side, or --crop"
        )
