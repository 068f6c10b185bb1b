"""Images with objects: what a detector is trained and validated on, and the crops of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.dense.annotated import Annotated
from torchmae.data.dense.find import WITH_BOXES, Layout, Split, find_layout, hold_out_some
from torchmae.data.dense.objects import Mask, Objects, Polygons, Rle, rasterize
from torchmae.data.dense.placement import (
    Placement,
    ScaleJitterCrop,
    place_boxes,
    place_image,
    place_points,
)
from torchmae.data.dense.segmentation import repr_of
from torchmae.data.dense.select import select_parts
from torchmae.data.scan import scan
from torchmae.data.sources.source import BadFile, Source, digest_of, with_decode
from torchmae.data.transforms import Pixels
from torchmae.errors import UserError, printable

SIDE = 112  # of the square that holds a mask: four points for each of the 28 x 28 cells of a head
LEAST = 1.0  # pixels: what is left of an object on the canvas is at least so high and wide
CUT = 1.0  # pixels that a box may lose at the edge before it is measured again


class Detections(NamedTuple):
    """What was found in one image, in its pixels.

    Attributes:
        boxes: x1 y1 x2 y2.
        scores: within 0..1.
        classes: their numbers.
        masks: run lengths of each; None where there are only boxes.
    """

    boxes: Float32[np.ndarray, "N 4"]
    scores: Float32[np.ndarray, " N"]
    classes: Int64[np.ndarray, " N"]
    masks: tuple[Rle, ...] | None = None


@dataclass(frozen=True)
class DetectionSets:
    """What a detector is trained and validated on.

    Args:
        train: images to train on, and their objects.
        val: those to validate on.
        layout: what was found, in words.
    """

    train: Annotated
    val: Annotated
    layout: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of objects."""
        return self.train.classes

    @property
    def train_source(self) -> Source:
        """The images to train on."""
        return self.train.source

    @property
    def val_source(self) -> Source:
        """The images to validate on."""
        return self.val.source

    @property
    def left_out(self) -> list[BadFile]:
        """Nothing: the scan names missing images, `findings` what is wrong with objects."""
        return []

    @property
    def findings(self) -> list[BadFile]:
        """Every object, image and annotation with which something is wrong."""
        return list(dict.fromkeys(one for part in self.parts for one in part.findings.files()))

    @property
    def parts(self) -> tuple[Annotated, Annotated]:
        """Both sets."""
        return self.train, self.val

    def lines(self) -> list[str]:
        """What is wrong, a line for each kind."""
        return list(dict.fromkeys(line for part in self.parts for line in part.findings.lines()))

    def fingerprint(self) -> str:
        """A hex digest of the objects."""
        return digest_of(
            self.classes, *(repr_of(one) for part in self.parts for one in part.objects)
        )

    def with_decode(self, options: DecodeOptions) -> "DetectionSets":
        """The same images decoded with other options."""
        train, val = (
            replace(part, source=with_decode(part.source, options)) for part in self.parts
        )
        return replace(self, train=train, val=val)

    def without(self, train: Sequence[int], val: Sequence[int]) -> "DetectionSets":
        """Without the images of these numbers."""
        parts = [
            part.select(sorted(set(range(len(part.objects))) - set(gone))) if gone else part
            for part, gone in zip(self.parts, (train, val))
        ]
        return replace(self, train=parts[0], val=parts[1])


def open_sets(
    data: str,
    val: str | None,
    decode: DecodeOptions,
    split: Split = Split(),
    listing: Listing = Listing(),
) -> DetectionSets:
    """The images to train on and to validate on, with their objects.

    Args:
        data: see `find_layout`.
        val: the images to validate on; None takes the val/ or test/ part of `data`, else a share.
        decode: how images are decoded.
        split: that share, and how many are trained on.
        listing: which images are taken, before any are held out.

    Raises:
        UserError: there are no images with annotations.
    """
    layout = find_layout(data, WITH_BOXES)
    train: Annotated = layout.read(layout.train, None)
    held: Annotated | None = None
    if val is not None:
        other = find_layout(val, WITH_BOXES)
        held = other.read(other.val or other.train, train.classes)
    elif layout.val is not None:
        held = layout.read(layout.val, train.classes)
    train, *others = select_parts([train, *filter(None, [held])], listing, data)
    held = others[0] if others else None
    train_ids, val_ids = hold_out_some(len(train.objects), split, held is not None, data)
    held = train.select(val_ids) if held is None or split.avoid else held
    return DetectionSets(train.select(train_ids), held, layout.words).with_decode(decode)


def open_annotated(
    data: str, decode: DecodeOptions, classes: tuple[str, ...], listing: Listing = Listing()
) -> tuple[Annotated, str | None]:
    """Images to measure on: of a set with a split its validation part, and a word of that.

    Args:
        data: see `find_layout`.
        decode: how images are decoded.
        classes: those of a run.
        listing: which images are taken.
    """
    layout: Layout = find_layout(data, WITH_BOXES)
    found = layout.read(layout.train if layout.val is None else layout.val, classes)
    note = None
    if layout.val is not None:
        note = f"{data} brings its own split: measured on its validation part"
    (found,) = select_parts([found], listing, data)
    return replace(found, source=with_decode(found.source, decode)), note


def other_sizes(part: Annotated) -> list[int]:
    """The images that are not of the size their annotations say; each is noted."""
    sizes = [(int(height), int(width)) for height, width in scan(part.source).sizes]
    return part.of_other_size(sizes)


def notes_of(sets: DetectionSets) -> list[str]:
    """What is odd about the objects of training and validation images, a line each.

    Raises:
        UserError: there is no object to train on, or none to validate on.
    """
    counts = [
        np.bincount(
            np.concatenate([one.classes[~one.crowd] for one in part.objects] or [[]]).astype(int),
            minlength=len(sets.classes),
        )
        for part in sets.parts
    ]
    for words, count, part in zip(("train", "validate"), counts, sets.parts):
        if not count.sum():
            wrong = "; ".join(part.findings.lines()[:2])
            raise UserError(
                f"none of the {len(part.objects)} images to {words} on has an object that can be "
                f"used{f' ({wrong})' if wrong else ''}: AP and a detector need some"
            )
    notes = sets.lines()
    for words, which in (
        ("only in the validation images, and so never learned", (counts[0] == 0) & (counts[1] > 0)),
        ("only in the training images, and so never measured", (counts[0] > 0) & (counts[1] == 0)),
        ("in no image", (counts[0] == 0) & (counts[1] == 0)),
    ):
        names = [printable(sets.classes[i]) for i in np.flatnonzero(which).tolist()]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            noun = "class" if len(names) == 1 else "classes"
            notes.append(f"{len(names)} {noun} {words}: {', '.join(names[:5])}{more}")
    empty = [sum(len(one) == 0 for one in part.objects) for part in sets.parts]
    if any(empty):
        notes.append(f"{empty[0]} training and {empty[1]} validation images have no objects")
    return notes


def object_sides(objects: Sequence[Objects]) -> Float32[np.ndarray, " N"]:
    """The root of the area of each box that is no crowd, in pixels."""
    boxes = np.concatenate([one.boxes[~one.crowd] for one in objects])
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))


@dataclass(frozen=True)
class DetectionCrop:
    """A random crop of an image and its objects: scale, place, flip.

    Args:
        place: draws them.
        fill: of the padding, for each channel.
        masks: whether masks are needed.
    """

    place: ScaleJitterCrop
    fill: tuple[float, ...]
    masks: bool = True

    def __call__(
        self, image: Pixels, target: Objects, epoch: int, sample: int
    ) -> tuple[Shaped[Tensor, "C h w"], dict[str, Tensor]]:
        """The crop of one sample; its objects as `place_objects` returns them."""
        height, width = image.shape[:2]
        placement = self.place.placement(height, width, epoch, sample)
        placed = place_objects(target, placement, height, width, self.masks)
        return place_image(image, placement, self.fill), placed


def place_objects(
    objects: Objects, placement: Placement, height: int, width: int, masks: bool
) -> dict[str, Tensor]:
    """The objects of an image of these sides that are on a canvas.

    A mask is a square of `SIDE` x `SIDE` points stretched over its box, never a whole image: of 375
    nuclei at 1,024 px it takes 5 MB in place of 400.

    Returns:
        "boxes" float32 [N 4], "labels" int64 [N] from 1, "crowds" float32 [M 4] of regions to be
        ignored; with `masks` "masks" uint8 [N SIDE SIDE] and "has_mask" bool [N].
    """
    boxes = place_boxes(objects.boxes, placement, height, width)
    crowds = boxes[objects.crowd]
    view = View(placement, height, width)
    kept, own, squares = [], [], []
    for i in np.flatnonzero(~objects.crowd).tolist():
        mask = objects.masks[i] if objects.masks else None
        box = view.visible(objects.boxes[i], boxes[i], mask)
        if box is None:
            continue
        kept.append(i)
        own.append(box)
        if masks:
            squares.append(view.square(mask, box) if mask is not None else EMPTY)
    found = {
        "boxes": torch.from_numpy(np.array(own, dtype=np.float32).reshape(-1, 4)),
        "labels": torch.from_numpy(objects.classes[kept] + 1),
        "crowds": torch.from_numpy(crowds[(crowds[:, 2:] > crowds[:, :2]).all(1)]),
    }
    if masks:
        whole = np.array(squares, dtype=np.uint8).reshape(-1, SIDE, SIDE)
        has = [bool(objects.masks) and objects.masks[i] is not None for i in kept]
        found |= {"masks": torch.from_numpy(whole), "has_mask": torch.tensor(has, dtype=torch.bool)}
    return found


EMPTY = np.zeros((SIDE, SIDE), dtype=bool)


@dataclass(frozen=True)
class View:
    """A canvas with a part of an image of these sides."""

    placement: Placement
    height: int
    width: int

    def visible(
        self, box: Float32[np.ndarray, " 4"], placed: Float32[np.ndarray, " 4"], mask: Mask
    ) -> Float32[np.ndarray, " 4"] | None:
        """The box of what is on the canvas of an object; None where that is nothing.

        Args:
            box: in the image.
            placed: on the canvas, clipped to it. Where an edge cuts an object, its mask says what
                is left of it (as detectron2 does).
            mask: in the image.
        """
        sides = placed[2:] - placed[:2]
        if (sides < LEAST).any():
            return None
        place = self.placement
        factors = np.array([place.width / self.width, place.height / self.height])
        if mask is None or (((box[2:] - box[:2]) * factors - sides) <= CUT).all():
            return placed
        there = self.square(mask, placed)
        columns, rows = np.flatnonzero(there.any(0)), np.flatnonzero(there.any(1))
        if not len(columns):
            return None
        ends = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SIDE
        found = (np.tile(placed[:2], 2) + ends * np.tile(sides, 2)).astype(np.float32)
        return None if (found[2:] - found[:2] < LEAST).any() else found

    def square(
        self, mask: Polygons | Rle, box: Float32[np.ndarray, " 4"]
    ) -> Bool[np.ndarray, "S S"]:
        """Whether the object is at each of `SIDE` x `SIDE` points of a box on the canvas."""
        if not isinstance(mask, Rle):
            factors = SIDE / (box[2:] - box[:2])
            placed = (place_points(one, self.placement, self.height, self.width) for one in mask)
            return rasterize([(one - box[:2]) * factors for one in placed], SIDE, SIDE)
        place, steps = self.placement, (np.arange(SIDE) + 0.5) / SIDE
        across = box[0] + steps * (box[2] - box[0]) + place.left
        down = box[1] + steps * (box[3] - box[1]) + place.top
        across = place.width - across if place.flip else across
        columns = pixels_at(across * self.width / place.width, self.width)
        rows = pixels_at(down * self.height / place.height, self.height)
        first = int(columns.min())
        part = rle_columns(mask, first, int(columns.max()) + 1)
        return part[rows[:, None], columns - first]


def pixels_at(places: np.ndarray, side: int) -> Int64[np.ndarray, " n"]:
    """The pixels that hold places along a side."""
    return np.clip(np.floor(places), 0, side - 1).astype(np.int64)


def rle_columns(rle: Rle, first: int, last: int) -> Bool[np.ndarray, "H w"]:
    """The columns `first` to `last - 1` of a mask, without the others."""
    ends = np.cumsum(np.array(rle.counts, dtype=np.int64))
    start, stop = first * rle.height, last * rle.height
    low, high = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
    runs: Int64[np.ndarray, " n"] = np.diff(
        np.clip(ends[low : high + 1], start, stop), prepend=start
    ).astype(np.int64)
    values = np.repeat(np.arange(low, low + len(runs)) % 2 == 1, runs)
    return values.reshape(last - first, rle.height).T


def mask_window(
    mask: Polygons | Rle, box: Float32[np.ndarray, " 4"], height: int, width: int
) -> tuple[Bool[np.ndarray, "h w"], int, int]:
    """The pixels of a mask in a window of an image of these sides that holds its box.

    Returns:
        The pixels, and where they begin: top, left.
    """
    left, top = (int(np.clip(np.floor(box[i]), 0, side)) for i, side in ((0, width), (1, height)))
    right, bottom = int(min(width, np.ceil(box[2]))), int(min(height, np.ceil(box[3])))
    sides = max(0, bottom - top), max(0, right - left)
    if not isinstance(mask, Rle):
        return rasterize([one - [left, top] for one in mask], *sides), top, left
    if not min(sides):
        return np.zeros(sides, dtype=bool), top, left
    return rle_columns(mask, left, right)[top:bottom], top, left
