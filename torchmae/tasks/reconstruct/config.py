"""The settings of `mae reconstruct`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.errors import UserError
from torchmae.settings.groups import DeviceOptions, PatternOptions, RunDecodeOptions
from torchmae.settings.options import Range, argument, check_ranges, option

SHOWN = 8  # images of --sheet


@dataclass(frozen=True)
class Reconstruct:
    """Draw original, masked input, reconstruction and prediction of images side by side.

    With --sheet, of images of a whole set that are chosen by the hash, at several mask ratios, with
    errors, and with several masks of one image: the paper's Figures 2 to 4.
    """

    GROUP: ClassVar[str] = "picture"

    run: str = argument("a run folder", "RUN")
    images: tuple[str, ...] = argument(
        "image files, or arrays (.npy, .npz: the first 8 images); with --sheet a set as for mae "
        "pretrain",
        "IMAGE...",
        images=True,
    )
    sheet: bool = option(
        False, "Draw images of a whole set that --seed chooses, and the errors, at several ratios."
    )
    count: int = option(
        SHOWN, "With --sheet: how many images.", within=Range(at_least=1, at_most=16)
    )
    out: str = option("reconstruction.png", "The picture to write (.png or .jpg).")
    mask_ratio: float | None = option(
        None,
        "Share of hidden patches.",
        within=Range(above=0, below=1),
        otherwise="the run's; with --sheet 0.75, 0.85 and 0.95",
    )
    masking: str | None = option(None, "random, block or grid.", otherwise="the run's")
    mask: str | None = option(
        None,
        "A mask image of your own in place of masking and ratio: white is hidden, black is "
        "visible; any size.",
        metavar="IMAGE",
    )
    seed: int = option(
        0,
        "Seed of the masks, and of the images of --sheet.",
        within=Range(at_least=0, below=1 << 62),
    )
    true_statistics: bool = option(
        False,
        "With normalized targets: take each hidden patch's true mean and std (which leaks part of "
        "the answer).",
    )
    scale: int | None = option(
        None,
        "Enlarge images so many times, without smoothing.",
        within=Range(at_least=1, at_most=100),
        otherwise="so that a tile is at least about 150 px",
    )
    show: tuple[str, ...] | None = option(
        None,
        "Three bands that are red, green and blue: the run's --bands, or numbers from 1.",
        metavar="BANDS",
        several=True,
        otherwise="the first three",
    )
    listing: PatternOptions = PatternOptions()
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()


def check(config: Reconstruct) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    check_ranges(config)
    if not config.images:
        raise UserError("name at least one image file: mae reconstruct RUN IMAGE...")
    if not config.sheet and config.count != SHOWN:
        raise UserError(f"--count {config.count} belongs to --sheet: add it, or leave --count out")
    if not config.sheet and config.listing != PatternOptions():
        raise UserError("--include and --exclude choose among the images of a set: with --sheet")
    if config.sheet and config.mask is not None:
        raise UserError("--mask is a single mask, and --sheet draws several: leave one of them out")
    if config.sheet and len(config.images) > 1:
        raise UserError(
            f"--sheet takes one set of images, not {len(config.images)}: a folder, or a pattern in "
            "quotes ('photos/*.jpg')"
        )
