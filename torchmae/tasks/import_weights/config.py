"""The settings of `mae import`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Import:
    """Pull weights of other libraries into a run folder. What a file does not say is chosen, and printed."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A .pth/.pt/.bin or .safetensors file, a folder of transformers or timm, timm:NAME, timm:NAME?checkpoint=FILE, hf:NAME."""
    out: str
    """Run folder to make."""
    image_size: str | int | None = None
    """What the position table is for: side in pixels, or HEIGHTxWIDTH. Default: the source's, else square."""
    heads: int | None = None
    """Heads of the encoder. Default: the source's, else those of the named size of this width."""
    decoder_heads: int | None = None
    """Heads of the decoder. Default: the source's, else 32 wide, as in the paper."""
    target: str | None = None
    """What the decoder predicts: norm-pixels or pixels. Default: the source's, else a guess that is printed."""
    mean: tuple[float, ...] | None = None
    """Of each channel, for pixels 0..1. Default: the source's, else ImageNet's, as in the reference."""
    std: tuple[float, ...] | None = None
    """As mean."""
    classes: str | None = None
    """A file with a classifier's class names, one a line. Default: the source's, else 0, 1, ..."""
    crop_pct: float | None = None
    """Share of an image's sides that evaluation sees. Default: the source's, else as the reference measures, else 1."""
