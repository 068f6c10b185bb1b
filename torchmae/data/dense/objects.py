"""The objects of an image: boxes, classes, and masks as polygons or run lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from torchmae.data.decode import BadImage
from torchmae.errors import UserError

Polygon = Float32[np.ndarray, "K 2"]


class Rle(NamedTuple):
    """A mask as COCO's run lengths: column by column, first how many pixels are outside."""

    height: int
    width: int
    counts: tuple[int, ...]


Polygons = tuple[np.ndarray, ...]
Mask = Polygons | Rle | None
"""Of one object: polygons, united; run lengths; or none."""


@dataclass(frozen=True)
class Objects:
    """The annotations of one image, in its pixels; the first pixel covers 0 to 1.

    Args:
        boxes: x1, y1, x2, y2.
        classes: their numbers.
        crowd: regions that are neither objects nor background (COCO's iscrowd).
        masks: one for each box.
        difficult: objects that evaluation leaves out of account (VOC).
        size: height and width of the image as its annotations say; None where they do not.
    """

    boxes: Float32[np.ndarray, "N 4"]
    classes: Int64[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    masks: tuple[Mask, ...] = ()
    difficult: Bool[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return len(self.masks) == len(self) and all(mask is not None for mask in self.masks)

    def wrong_size(self, height: int, width: int) -> str | None:
        """What is wrong where an image of these sides is of another size than its annotations
        say."""
        if self.size is None or self.size == (height, width):
            return None
        turned = " (a photograph turned by EXIF?)" if self.size == (width, height) else ""
        return f"{width} x {height}, not {self.size[1]} x {self.size[0]}{turned}"

    def mask(self, i: int, height: int, width: int) -> Bool[np.ndarray, "H W"]:
        """The pixels of object `i` in the image of these sides; of one without a mask its box."""
        mask = self.masks[i] if self.masks else None
        if mask is None:
            x1, y1, x2, y2 = self.boxes[i]
            mask = (np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float32),)
        return to_bitmap(mask, height, width)

    def label_map(self, height: int, width: int, ignore: int = 255) -> UInt8[np.ndarray, "H W"]:
        """One label a pixel for semantic segmentation: 0 is the background, class k is k + 1,
        crowds are ignored; where objects overlap, the smaller one is in front.

        Raises:
            UserError: there are more classes than labels.
            BadImage: the image is of another size than its annotations say.
        """
        wrong = self.wrong_size(height, width)
        if wrong is not None:
            raise BadImage(wrong)
        if len(self) and int(self.classes.max()) + 1 >= ignore:
            raise UserError(f"class {int(self.classes.max())} of a label map: at most {ignore - 2}")
        labels = np.zeros((height, width), dtype=np.uint8)
        bitmaps = [self.mask(i, height, width) for i in range(len(self))]
        for i in np.argsort([-bitmap.sum() for bitmap in bitmaps], kind="stable"):
            labels[bitmaps[i]] = ignore if self.crowd[i] else self.classes[i] + 1
        return labels


def to_bitmap(mask: Polygons | Rle, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """A mask in an image of these sides.

    Raises:
        UserError: run lengths are of an image of other sides.
    """
    if not isinstance(mask, Rle):
        return rasterize(mask, height, width)
    if (mask.height, mask.width) != (height, width):
        raise UserError(
            f"a mask of {mask.width}x{mask.height} pixels in an image of {width}x{height}"
        )
    return decode_rle(mask)


def rasterize(polygons: Sequence[np.ndarray], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """The pixels whose centres are inside at least one polygon (even-odd rule for each).

    Args:
        polygons: corners (x, y); the last is joined to the first.
        height: of the result.
        width: of the result.
    """
    united = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        # Each edge flips all pixels to the right of where it crosses the middle of a row.
        flips = np.zeros((height, width + 1), dtype=np.int32)
        ends = polygon.astype(np.float64)
        for (x0, y0), (x1, y1) in zip(ends, np.roll(ends, -1, axis=0)):
            first, last = np.clip(np.ceil(np.sort([y0, y1]) - 0.5), 0, height).astype(int)
            rows = np.arange(first, last)
            if len(rows):
                xs = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                columns = np.clip(np.ceil(xs - 0.5), 0, width).astype(int)
                flips[rows, columns] += 1  # one column for each row: no row comes twice
        united |= flips[:, :width].cumsum(axis=1) % 2 == 1
    return united


def decode_rle(rle: Rle) -> Bool[np.ndarray, "H W"]:
    """The mask of run lengths.

    Raises:
        UserError: they do not add up to the pixels of the image.
    """
    counts = np.array(rle.counts, dtype=np.int64)
    if (counts < 0).any() or counts.sum() != rle.height * rle.width:
        raise UserError(
            f"run lengths of {int(counts.sum())} pixels for a mask of {rle.width}x{rle.height}"
        )
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(values.reshape(rle.width, rle.height).T)


def encode_rle(mask: Bool[np.ndarray, "H W"]) -> Rle:
    """The run lengths of a mask."""
    values = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(values[1:] != values[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    height, width = mask.shape
    return Rle(height, width, tuple(counts.tolist()))


def counts_of_text(text: str) -> tuple[int, ...]:
    """COCO's compressed run lengths: signed numbers in groups of 5 bits, from the third on as
    differences to the one before the last.

    Raises:
        UserError: the text ends inside a number, or has another character.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode():
        bits = character - 48
        if not 0 <= bits < 64:
            raise UserError(f"run lengths with the character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("run lengths that end inside a number")
    return tuple(counts)


def text_of_counts(counts: Sequence[int]) -> str:
    """The inverse of `counts_of_text`."""
    text = bytearray()
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append((bits | 32 * more) + 48)
    return text.decode()
