"""Images with label maps: what a segmenter is trained and validated on, and the crops of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from torchmae.data.augment import JITTERS, jittered
from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.decode import BadImage
from torchmae.data.dense.classes import Classes, decide, find_table, palette_color, read_table
from torchmae.data.dense.find import WITH_MASKS, Layout, Split, find_layout, hold_out_some
from torchmae.data.dense.masks import IGNORE, Coding, Masks, Pairs, Survey, size_of, survey
from torchmae.data.dense.placement import (
    ScaleJitterCrop,
    place_image,
    place_labels,
)
from torchmae.data.dense.select import select_parts
from torchmae.data.loader import read_pixels
from torchmae.data.sources.source import BadFile, Source, digest_of, with_decode
from torchmae.data.transforms import Pixels, as_tensor
from torchmae.errors import UserError, printable
from torchmae.hashing import PHOTOMETRIC, uniform

DRAWS = 10  # of a crop, before the last one is taken although nearly all of it is of one class
MOST_OF_ONE = 0.75  # the share of a crop's labelled pixels that one class may have
HUES = 0.05  # of the circle, either way, at strength 1


@runtime_checkable
class Labelled(Protocol):
    """What says the classes of an image's pixels: its mask files, or its objects."""

    def label_map(self, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
        """The class of each pixel of the image of these sides, or `IGNORE`."""


@dataclass(frozen=True)
class LabelledImages:
    """Images, and what says the classes of their pixels."""

    source: Source
    labels: Sequence[Any]
    """A `Labelled` for each image."""
    left_out: Sequence[BadFile] = ()
    """Images without a mask, masks without an image, missing images."""

    def __len__(self) -> int:
        return len(self.source)

    def select(self, ids: Sequence[int]) -> "LabelledImages":
        """Some of the images."""
        labels = self.labels
        chosen = labels.select(ids) if isinstance(labels, Masks) else [labels[i] for i in ids]
        return replace(self, source=self.source.select(ids), labels=chosen)

    def keep_findings(self, relevant: Callable[[BadFile], bool]) -> "LabelledImages":
        """The same images with only some of what is wrong with their labels."""
        return replace(self, left_out=list(filter(relevant, self.left_out)))

    def with_channels(self, channels: int) -> "LabelledImages":
        """The same images, gray or in color."""
        options = replace(self.source.decode, channels=channels)
        return replace(self, source=with_decode(self.source, options))

    def coded(self, coding: Coding) -> "LabelledImages":
        """With the values of mask files understood so."""
        if not isinstance(self.labels, Masks):
            return self
        return replace(self, labels=replace(self.labels, coding=coding))

    def fingerprint(self) -> str:
        """A hex digest of what says the classes."""
        if isinstance(self.labels, Masks):
            return self.labels.fingerprint()
        return digest_of(*map(repr_of, self.labels))


def repr_of(objects: Any) -> tuple[Any, ...]:
    """The objects of an image as plain values."""
    masks = [
        tuple(polygon.tobytes() for polygon in mask)
        if isinstance(mask, tuple) and not hasattr(mask, "counts")
        else mask
        for mask in objects.masks
    ]
    return objects.boxes.tobytes(), objects.classes.tobytes(), objects.crowd.tobytes(), masks


@dataclass(frozen=True)
class SegmentationSets:
    """What a segmenter is trained and validated on.

    Args:
        train: the images to train on.
        val: those to validate on.
        names, colors: of the classes, in the order of their numbers.
        coding: what the values of mask files mean.
        layout: what was found, in words.
    """

    train: LabelledImages
    val: LabelledImages
    layout: str
    names: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    coding: Coding = Coding("values")

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
        """Images without a mask, masks without an image, and what is wrong with objects."""
        return list(dict.fromkeys([*self.train.left_out, *self.val.left_out]))

    def fingerprint(self) -> str:
        """A hex digest of what says the classes of the pixels."""
        return digest_of(self.train.fingerprint(), self.val.fingerprint(), self.names)

    def with_decode(self, options: DecodeOptions) -> "SegmentationSets":
        """The same images decoded with other options."""
        train, val = (
            replace(part, source=with_decode(part.source, options))
            for part in (self.train, self.val)
        )
        return replace(self, train=train, val=val)

    def with_classes(self, classes: Classes) -> "SegmentationSets":
        """With what the values of the masks mean."""
        names, colors, coding = classes
        train, val = self.train.coded(coding), self.val.coded(coding)
        return replace(self, train=train, val=val, names=names, colors=colors, coding=coding)


def open_sets(
    data: str,
    val: str | None,
    decode: DecodeOptions,
    split: Split = Split(),
    listing: Listing = Listing(),
) -> SegmentationSets:
    """The images to train on and to validate on; what their masks hold is not looked at yet.

    Args:
        data: see `find_layout`.
        val: the images to validate on; None takes the val/ or test/ part of `data`, else a share.
        decode: how images are decoded.
        split: that share, and how many are trained on.
        listing: which images are taken, before any are held out.

    Raises:
        UserError: there are no images with labels.
    """
    layout = find_layout(data, WITH_MASKS)
    train, names = labelled_images(layout, layout.train, None)
    held = None
    if val is not None:
        other = find_layout(val, WITH_MASKS)
        held, _ = labelled_images(other, other.val or other.train, names)
    elif layout.val is not None:
        held, _ = labelled_images(layout, layout.val, names)
    train, *others = select_parts([train, *filter(None, [held])], listing, data)
    held = others[0] if others else None
    train_ids, val_ids = hold_out_some(len(train), split, held is not None, data)
    held = train.select(val_ids) if held is None or split.avoid else held
    train = train.select(train_ids)
    sets = SegmentationSets(train, held, layout.words)
    if names is not None:
        colors = tuple(map(palette_color, range(len(names) + 1)))
        sets = replace(sets, names=("background", *names), colors=colors)
    return sets.with_decode(decode)


def open_labelled(
    data: str, decode: DecodeOptions, classes: Classes, listing: Listing = Listing()
) -> tuple[LabelledImages, str | None]:
    """Images to measure on: of a set with a split its validation part, and a word of that.

    Args:
        data: see `find_layout`.
        decode: how images are decoded.
        classes: those of a run.
        listing: which images are taken.
    """
    layout = find_layout(data, WITH_MASKS)
    part = layout.train if layout.val is None else layout.val
    images, _ = labelled_images(layout, part, classes.names[1:])
    note = None
    if layout.val is not None:
        note = f"{data} brings its own split: measured on its validation part"
    (images,) = select_parts([images.coded(classes.coding)], listing, data)
    return replace(images, source=with_decode(images.source, decode)), note


def labelled_images(
    layout: Layout, part: Any, names: tuple[str, ...] | None
) -> tuple[LabelledImages, tuple[str, ...] | None]:
    """The images of one part of a set, and the names of the classes of its objects (None: masks).

    Args:
        layout: what the set is.
        part: as its reader's `find` returned it.
        names: of the classes of objects of the training set, for a validation set.
    """
    if isinstance(part, Pairs):
        return LabelledImages(part.source, part.masks, part.unpaired), None
    found = layout.read(part, names)
    if not any(len(one) for one in found.objects):
        wrong = "; ".join(found.findings.lines()[:2])
        raise UserError(
            f"{layout.data} has no objects that can be used{f' ({wrong})' if wrong else ''}"
        )
    if not found.has_masks:
        raise UserError(
            f"the objects of {layout.data} have boxes but no masks: a segmenter needs masks or "
            "polygons; mae detect is for boxes"
        )
    images = LabelledImages(found.source, found.objects, found.findings.files())
    return images, found.classes


class Look(NamedTuple):
    """What a look at every mask found.

    Attributes:
        classes: names, colors, coding.
        pixels: of each class, in the training images.
        bad: images whose masks cannot be used.
        notes: lines for the plan.
    """

    classes: Classes
    pixels: tuple[int, ...]
    bad: list[BadFile]
    notes: list[str]


def look(
    sets: SegmentationSets,
    table: str | None,
    names: Sequence[str],
    ignore: Sequence[str],
    data: str,
) -> Look:
    """Reads every mask of both sets.

    Args:
        sets: without classes, unless they are objects.
        table: a file with the classes; None looks for one in the folder of the data.
        names: of the classes, in the order of their values.
        ignore: see `decide`.
        data: what the set is called.

    Raises:
        UserError: what the masks mean cannot be known, or no pixel is labelled.
    """
    of_train, of_val = sets.train.labels, sets.val.labels
    if not isinstance(of_train, Masks) or not isinstance(of_val, Masks):
        return look_at_objects(sets)
    found = [survey(sets.train.source, of_train), survey(sets.val.source, of_val)]
    both = Survey(
        found[0].pixels + found[1].pixels,
        found[0].bad + found[1].bad,
        found[0].colored or found[1].colored,
        found[0].several or found[1].several,
        found[0].palette or found[1].palette,
    )
    place = Path(table) if table else find_table(Path(data).expanduser())
    entries = None if place is None else read_table(place)
    classes = decide(both, entries, names, ignore, data)
    counts = [class_pixels(part, classes.coding) for part in found]
    # Masks that cannot be used are named as such: they are no images without labels.
    readable = [np.array([bool(one) for one in part.pixels], dtype=bool) for part in found]
    notes = notes_of(classes.names, *(rows[some] for rows, some in zip(counts, readable)))
    if place is not None:
        notes.insert(0, f"classes of {place}")
    unknown = [
        BadFile(part.source.name(i), classes.coding.unknown_values(np.array(sorted(strange))))
        for part, one in zip((sets.train, sets.val), found)
        for i, strange in enumerate(map(classes.coding.unknown, one.pixels))
        if strange
    ]
    pixels = counts[0].sum(0)
    if not pixels.any():
        raise UserError(
            f"no pixel of the training images of {data} belongs to a class: every value is "
            "ignored or unknown (--classes, --ignore)"
        )
    return Look(classes, tuple(pixels.tolist()), [*both.bad, *unknown], notes)


def look_at_objects(sets: SegmentationSets) -> Look:
    """As `look`, where classes are those of objects: their names are known."""
    counts, bad = [], []
    for part in (sets.train, sets.val):
        sizes = [sides_of(part.source, i) for i in range(len(part))]
        counts.append(
            np.array(
                [
                    object_pixels(one, len(sets.names), height * width)
                    for one, (height, width) in zip(part.labels, sizes)
                ]
            )
        )
        wrong = [
            one.wrong_size(*size) if size[0] else None for one, size in zip(part.labels, sizes)
        ]
        bad += [
            BadFile(part.source.name(i), f"of another size than its annotations say: {words}")
            for i, words in enumerate(wrong)
            if words is not None
        ]
    notes = notes_of(sets.names, *counts)
    if not counts[0][:, 1:].any():
        raise UserError("no object of the training images has a mask: there is nothing to learn")
    classes = Classes(sets.names, sets.colors, Coding("values"))
    pixels = tuple(int(count) for count in counts[0].sum(0))
    return Look(classes, pixels, bad, notes)


def sides_of(source: Source, i: int) -> tuple[int, int]:
    """Height and width of an image; zeros where it cannot be read, which the scan says."""
    try:
        return size_of(source, i)
    except (BadImage, OSError):
        return 0, 0


def object_pixels(objects: Any, count: int, area: int) -> Int64[np.ndarray, " classes"]:
    """About how many pixels of an image of this area belong to each class: the areas of the boxes;
    of the background the rest, at least 1."""
    areas = np.zeros(count, dtype=np.int64)
    sides = np.maximum(objects.boxes[:, 2:] - objects.boxes[:, :2], 0)
    inside = np.bincount(objects.classes, weights=sides.prod(1), minlength=count - 1)
    areas[1:] = np.ceil(inside).astype(np.int64)
    areas[0] = max(1, area - int(areas.sum()))
    return areas


def class_pixels(found: Survey, coding: Coding) -> Int64[np.ndarray, "N classes"]:
    """How many pixels of each image belong to each class."""
    if coding.kind == "objects":
        rows = [
            (one.get(0, 0), sum(count for value, count in one.items() if value))
            for one in found.pixels
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 2)
    each = [[one.get(value, 0) for value in coding.values] for one in found.pixels]
    return np.array(each, dtype=np.int64).reshape(-1, len(coding.values))


def notes_of(
    names: Sequence[str],
    train: Int64[np.ndarray, "N classes"],
    val: Int64[np.ndarray, "M classes"],
) -> list[str]:
    """What is odd about the classes of training and validation images, a line each."""
    notes = []
    learned, asked = train.any(0), val.any(0)
    for words, which in (
        ("only in the validation images, and so never learned", asked & ~learned),
        ("only in the training images, and so never measured", learned & ~asked),
        ("in no image", ~learned & ~asked),
    ):
        found = [printable(names[i]) for i in np.flatnonzero(which).tolist()]
        if found:
            notes.append(f"{len(found)} class{'es' * (len(found) > 1)} {words}: {some(found)}")
    empty = int((~train.any(1)).sum()), int((~val.any(1)).sum())
    if any(empty):
        notes.append(f"{empty[0]} training and {empty[1]} validation images have no labelled pixel")
    return notes


def stored_classes(config: Mapping[str, Any]) -> Classes:
    """What the values of masks mean to a run.

    Args:
        config: its config.json.
    """
    model, settings = config["model"], config["config"]
    return Classes(
        tuple(model["classes"]),
        tuple((int(r), int(g), int(b)) for r, g, b in model["colors"]),
        Coding(
            settings.get("coding") or "values",
            tuple(settings.get("values") or ()),
            tuple(settings.get("ignored") or ()),
        ),
    )


def some(names: Sequence[str], count: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


@dataclass(frozen=True)
class SegmentationCrop:
    """A random crop of an image and its label map: scale, place, flip, colors.

    Args:
        place: draws scale, place and flip; drawn again, up to 10 times, while more than 3/4 of the
            labelled pixels are of one class (as mmsegmentation does).
        fill: of the padding, for each channel.
        photometric: 0 to 1: how much brightness, contrast, saturation and hue change, each in half
            of the images; 1 is factors of 0.5 to 1.5 and a twentieth of the circle of hues, about
            mmsegmentation's.
    """

    place: ScaleJitterCrop
    fill: tuple[float, ...]
    photometric: float = 1.0

    def __call__(
        self, image: Pixels, target: Labelled, epoch: int, sample: int
    ) -> tuple[Shaped[Tensor, "C h w"], Int64[Tensor, "h w"]]:
        """The crop of one sample.

        Raises:
            BadImage: its mask cannot be used.
        """
        height, width = image.shape[:2]
        labels = target.label_map(height, width)
        for draw in range(DRAWS):
            placement = self.place.placement(height, width, epoch, sample, draw)
            placed = place_labels(labels, placement, IGNORE)
            counts = torch.bincount(placed.flatten(), minlength=IGNORE + 1)[:IGNORE]
            if int(counts.max()) <= MOST_OF_ONE * int(counts.sum()):
                break
        pixels = place_image(image, placement, self.fill)
        return jittered(pixels, self.changes(epoch, sample)), placed

    def changes(self, epoch: int, sample: int) -> list[tuple[str, float]]:
        """The operations on the colors of one sample with their numbers, in their order."""
        if not self.photometric:
            return []
        count = len(JITTERS)
        drawn = [uniform(self.place.seed, PHOTOMETRIC, epoch, sample, i) for i in range(3 * count)]
        spans = [self.photometric * one for one in (0.5, 0.5, 0.5, HUES)]
        centres = (1.0, 1.0, 1.0, 0.0)
        found = [
            (drawn[2 * count + i], name, centres[i] + (2 * drawn[i] - 1) * spans[i])
            for i, name in enumerate(JITTERS)
            if drawn[count + i] < 0.5
        ]
        return [(name, number) for _, name, number in sorted(found)]


class Example(NamedTuple):
    """An image to predict or to measure on.

    Attributes:
        number: in its source.
        image: its pixels.
        labels: the class of each; None where there are none.
    """

    number: int
    image: Shaped[Tensor, "C H W"]
    labels: UInt8[Tensor, "H W"] | None


@dataclass(frozen=True)
class Examples:
    """Images one by one; an item is an `Example`, or a file that cannot be used.

    Args:
        source: the images.
        labels: what says their classes; None for none.
    """

    source: Source
    labels: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example | BadFile:
        try:
            image = read_pixels(self.source, i)
            labels = None if self.labels is None else self.labels[i].label_map(*image.shape[:2])
        except BadImage as error:
            return BadFile(self.source.name(i), str(error))
        return Example(i, as_tensor(image), None if labels is None else torch.from_numpy(labels))
