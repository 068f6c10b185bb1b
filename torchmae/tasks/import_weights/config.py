"""The settings of `mae import`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.options import POSITIVE, REQUIRED, Range, argument, option


@dataclass(frozen=True)
class Import:
    """Read weights of other libraries into a run folder. What a file does not say is chosen, and
    printed."""

    GROUP: ClassVar[str] = "model"

    source: str = argument(
        "a .pth/.pt/.bin or .safetensors file, a folder of transformers or timm, timm:NAME, "
        "timm:NAME?checkpoint=FILE, hf:NAME",
        "SOURCE",
    )
    out: str = option(REQUIRED, "Run folder to make.", metavar="FOLDER")
    image_size: str | int | None = option(
        None,
        "What the position table is for: side in pixels, or HEIGHTxWIDTH.",
        metavar="SIZE",
        otherwise="the source's, else square",
    )
    heads: int | None = option(
        None,
        "Heads of the encoder.",
        within=POSITIVE,
        otherwise="the source's, else those of the named size of this width",
    )
    decoder_heads: int | None = option(
        None,
        "Heads of the decoder.",
        within=POSITIVE,
        otherwise="the source's, else of 32 dimensions each",
    )
    target: str | None = option(
        None,
        "What the decoder predicts: norm-pixels or pixels.",
        otherwise="the source's, else a guess that is printed",
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Of each channel, for pixels 0..1.",
        otherwise="the source's, else ImageNet's, as in the reference",
    )
    std: tuple[float, ...] | None = option(None, "As mean.", otherwise="as mean")
    classes: str | None = option(
        None,
        "A file with a classifier's class names, one a line.",
        metavar="FILE",
        otherwise="the source's, else 0, 1, ...",
    )
    crop_pct: float | None = option(
        None,
        "Share of an image's sides that evaluation sees.",
        within=Range(above=0, at_most=1),
        otherwise="the source's, else as the reference measures, else 1",
    )
