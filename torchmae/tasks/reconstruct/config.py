"""The settings of `mae reconstruct`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import DeviceOptions, RunDecodeOptions
from torchmae.settings.options import Range, argument, option


@dataclass(frozen=True)
class Reconstruct:
    """Draw original, masked input, reconstruction and prediction of images side by side."""

    GROUP: ClassVar[str] = "picture"

    run: str = argument("a run folder", "RUN")
    images: tuple[str, ...] = argument(
        "image files, or arrays (.npy, .npz: the first 8 images)", "IMAGE..."
    )
    out: str = option("reconstruction.png", "The picture to write (.png or .jpg).")
    mask_ratio: float | None = option(
        None, "Share of hidden patches.", within=Range(above=0, below=1), otherwise="the run's"
    )
    masking: str | None = option(None, "random, block or grid.", otherwise="the run's")
    mask: str | None = option(
        None,
        "A mask image of your own in place of masking and ratio: white is hidden, black is "
        "visible; any size.",
        metavar="IMAGE",
    )
    seed: int = option(0, "Seed of the masks.", within=Range(at_least=0, below=1 << 62))
    true_statistics: bool = option(
        False,
        "With normalised targets: take each hidden patch's true mean and std (which leaks part of "
        "the answer).",
    )
    scale: int | None = option(
        None,
        "Enlarge images so many times, without smoothing.",
        within=Range(at_least=1, at_most=100),
        otherwise="so that a tile is at least about 150 px",
    )
    decode: RunDecodeOptions = RunDecodeOptions()
    runtime: DeviceOptions = DeviceOptions()
