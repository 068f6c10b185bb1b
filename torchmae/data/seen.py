"""Images that are in Python as the encoder of a run sees them: decoded and cropped as by
`mae embed`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage
from torchmae.data.loader import read_pixels
from torchmae.data.sources import Source, open_source
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.settings.python_data import as_images


@dataclass(frozen=True)
class AsSeen:
    """How images become batches for an encoder.

    Args:
        decode: as those of its run.
        share: of the sides that the center crop shows (`crop_pct`).
    """

    decode: DecodeOptions
    share: float = 1.0

    def __call__(
        self, images: Any, channels: int, size: tuple[int, int], batch_size: int
    ) -> Iterator[Shaped[Tensor, "B C h w"]]:
        """Batches of all images, in order.

        Args:
            images: whatever a verb takes as DATA, or one PIL image.
            channels: that the encoder takes.
            size: (height, width) that the encoder takes.
            batch_size: images at a time.

        Raises:
            UserError: an image cannot be read; it names which.
        """
        several = [images] if isinstance(images, Image.Image) else images
        source = open_source(
            as_images(several, several=False, data_id=None), replace(self.decode, channels=channels)
        )
        crop = CenterCropResize(size, self.share)
        for first in range(0, len(source), batch_size):
            some = range(first, min(len(source), first + batch_size))
            yield torch.stack([crop(readable(source, i))[0] for i in some])


def readable(source: Source, i: int) -> Shaped[Any, "H W C"]:
    """The pixels of an image; `UserError` with its name where it cannot be read."""
    try:
        return read_pixels(source, i)
    except BadImage as error:
        raise UserError(f"{source.name(i)} cannot be read: {error}") from error
