"""What a model gets to see of images, and what not, in words for plans: further pages, the sides of
wide images, details that shrinking removes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int32, Shaped
from PIL import Image
from torch import Tensor

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, has_more_pages, inspect
from torchmae.data.loader import read_pixels
from torchmae.data.sources import Source, open_source
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.runfolder import read_config
from torchmae.settings.options import parse_size
from torchmae.settings.python_data import as_images

LOOKED_AT = 64  # images of a source: headers alone are read of files

LITTLE = 0.4  # a centered square of a 16:9 photograph shows more, also with crop_pct 0.875
MUCH = 4  # times smaller: a detail of 4 px becomes one
WORTH_SAYING = 0.05  # share of the images


class Glance(NamedTuple):
    """Some images: (height, width) of each, 0 where it is bad, and how many files have more pages
    than the first."""

    sizes: Int32[np.ndarray, "N 2"]
    stacks: int


def glance(source: Source) -> Glance:
    """Sizes and pages of up to `LOOKED_AT` evenly spaced images, without decoding any."""
    sizes = []
    stacks = 0
    for i in np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist():
        with suppress(BadImage, OSError):
            item = source.read(i)
            if isinstance(item, bytes):
                sizes.append(inspect(item, source.decode))
                stacks += has_more_pages(item, source.decode)
            else:
                sizes.append(item.shape[:2])
    return Glance(np.array(sizes, dtype=np.int32).reshape(-1, 2), stacks)


def view_notes(seen: Glance, size: tuple[int, int], crop_pct: float | None = None) -> list[str]:
    """A line for each way in which much of the images is lost.

    Args:
        seen: the images that were looked at.
        size: (height, width) of what the model takes.
        crop_pct: the share of the sides of a center crop; None for random crops, which come by
            every part of an image in time.
    """
    sizes = seen.sizes[seen.sizes[:, 0] > 0].astype(float)
    notes = [pages_note(seen)] if seen.stacks else []
    scale = (sizes / size).min(axis=1) * (1.0 if crop_pct is None else crop_pct)
    area = np.minimum(scale[:, None] * size, sizes).prod(axis=1) / sizes.prod(axis=1)
    narrow = np.flatnonzero(area < LITTLE)
    if crop_pct is not None and len(narrow) > WORTH_SAYING * len(sizes):
        which = middle(area, narrow)
        notes.append(
            f"the center crop shows little of {count(narrow, sizes)}: {area[which]:.0%} of one of "
            f"{pixels(sizes[which])}. Cut them into pieces, or pre-train with an --image-size of "
            "their shape"
        )
    large = np.flatnonzero(scale > MUCH)
    if len(large) > WORTH_SAYING * len(sizes):
        which = middle(scale, large)
        notes.append(
            f"{count(large, sizes)} {'is' if len(large) == 1 else 'are'} shrunk more than {MUCH} "
            f"times, {scale[which]:.1f} times from {pixels(sizes[which])} to {pixels(size)}: "
            "small details vanish. If they matter, cut the images into tiles"
        )
    return notes


def pages_note(seen: Glance) -> str:
    """How many files have pages that are not read."""
    files = f"{seen.stacks} of {len(seen.sizes)} files"
    return (
        f"{files} {'has' if seen.stacks == 1 else 'have'} more than one page or frame (TIFF, GIF, "
        "...): only the first is used. Save each page as a file to use them all"
    )


def pixels(size: Sequence[int] | np.ndarray) -> str:
    """(height, width) in words."""
    return f"{size[1]:.0f} x {size[0]:.0f} px"


def middle(values: np.ndarray, which: np.ndarray) -> int:
    """Of these, the one with the median value."""
    return int(which[np.argsort(values[which], kind="stable")[len(which) // 2]])


def count(which: np.ndarray, all_of: np.ndarray) -> str:
    """ "3 of 64 images"."""
    return f"{len(which)} of {len(all_of)} image{'s' * (len(all_of) != 1)}"


def center_crop(
    run: str | os.PathLike[str], size: tuple[int, int], own_shapes: bool = True
) -> CenterCropResize:
    """What a run's encoder sees of images: the share of its `crop_pct`, and of a run with `--aspect
    keep` that of its shapes which is nearest to the image's.

    Args:
        run: the run folder.
        size: (height, width) that the encoder takes; another than the run's has no shapes.
        own_shapes: False where all images need one shape.
    """
    config = read_config(run)["config"]
    names = (config.get("shapes") or ()) if own_shapes else ()
    same = bool(names) and parse_size(config["image_size"]) == tuple(size)
    shapes = tuple(sorted({parse_size(name) for name in names})) if same else ()
    return CenterCropResize((size[0], size[1]), config.get("crop_pct", 1.0), shapes)


@dataclass(frozen=True)
class AsSeen:
    """How images become batches for an encoder.

    Args:
        decode: as those of its run.
        crop: what it sees of each.
    """

    decode: DecodeOptions
    crop: CenterCropResize

    def __call__(
        self, images: Any, channels: int, size: tuple[int, int], batch_size: int
    ) -> Iterator[Shaped[Tensor, "B C h w"]]:
        """Batches of all images, in order, each of one shape.

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
        same = size == self.crop.size
        crop = self.crop if same else CenterCropResize(size, self.crop.share)
        for first in range(0, len(source), batch_size):
            some = range(first, min(len(source), first + batch_size))
            seen = (crop(readable(source, i))[0] for i in some)
            for _, alike in groupby(seen, key=lambda one: one.shape):
                yield torch.stack(list(alike))


def readable(source: Source, i: int) -> Shaped[Any, "H W C"]:
    """The pixels of an image; `UserError` with its name where it cannot be read."""
    try:
        return read_pixels(source, i)
    except BadImage as error:
        raise UserError(f"{source.name(i)} cannot be read: {error}") from error
