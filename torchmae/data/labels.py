"""Labelled images: training and validation sets, class numbers, seeded subsets."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.sources import open_sources
from torchmae.data.sources.files import Files
from torchmae.data.sources.hubs import hf_splits
from torchmae.data.sources.source import Source, Subset, suffix_of, with_decode
from torchmae.data.sources.tars import Tars
from torchmae.errors import UserError
from torchmae.hashing import SPLIT, hash32
from torchmae.runfolder import is_run


class LabelledSets(NamedTuple):
    """What a classifier is trained and validated on; labels are indices into `classes`."""

    train: Source
    val: Source
    classes: tuple[str, ...]
    train_labels: Int64[Tensor, " N"]
    val_labels: Int64[Tensor, " M"]

    def with_decode(self, options: DecodeOptions) -> "LabelledSets":
        """The same images decoded with other options."""
        train, val = (with_decode(part, options) for part in (self.train, self.val))
        return self._replace(train=train, val=val)


# What folders of label maps beside those of images are called.
IMAGES, MASKS = {"images", "imgs", "jpegimages"}, {"masks", "labels", "segmentationclass"}


def refuse_masks(classes: Sequence[str], data: str) -> None:
    """Raises UserError for images with masks in two folders, which are no classes."""
    found = {name.lower() for name in classes}
    if len(found) == 2 and found & IMAGES and found & MASKS:
        raise UserError(
            f"{data} has images and masks, not classes: mae segment and mae compare segment are "
            "for these"
        )


def labelled_sets(  # noqa: PLR0913 - the settings of every labelled verb
    data: str,
    val: str | None,
    val_fraction: float,
    labels_per_class: int | None,
    seed: int,
    decode: DecodeOptions = DecodeOptions(),
    listing: Listing = Listing(),
) -> LabelledSets:
    """The labelled images to train on and to validate on.

    Args:
        data: the images to train on.
        val: those to validate on; None takes the val/ or test/ part of `data`, else a seeded share.
        val_fraction: that share, of each class.
        labels_per_class: keeps so many training images of each class. The validation images stay
            the same, so that all such subsets are comparable.
        seed: of both choices.
        decode: how the images are decoded.
        listing: which images are taken.

    Raises:
        UserError: there are no labels, or the classes of the two sets do not fit together.
    """
    train_source, val_source = open_pair(data, val, decode, listing)
    train, names = labelled(train_source, data)
    classes = tuple(sorted(set(names)))
    refuse_masks(classes, data)
    if len(classes) < 2:
        raise UserError(f"a classifier needs at least two classes, {data} has 1: '{classes[0]}'")
    if val_source is None:
        train, names, test, test_names = split_off(train, names, val_fraction, seed, data)
    else:
        test, test_names = labelled(val_source, val or f"the validation part of {data}")
        refuse_shared_groups(train, test)
    strange = sorted(set(test_names) - set(classes))
    absent = sorted(set(classes) - set(test_names))
    if strange:
        raise UserError(
            f"class {_first(strange)} is in the validation images, but not in the training "
            "images: train on it too, or leave "
            "it out of both"
        )
    if absent and val_source is None:
        of = "image" if listing.group_column is None else f"group ({listing.group_column})"
        raise UserError(
            f"class {_first(absent)} has only one {of}, so that nothing of it is left to "
            "validate on: add images, leave it "
            "out, or name other images with --val"
        )
    if absent:
        raise UserError(
            f"class {_first(absent)} is in the training images, but not in the validation images: "
            "leave it out, or give "
            "images of it to validate on (mae evaluate measures on some of the classes)"
        )
    if labels_per_class is not None:
        ids = few(names, labels_per_class, seed)
        train, names = Subset(train, ids), [names[i] for i in ids]
    number = {name: i for i, name in enumerate(classes)}
    train_labels, val_labels = (
        torch.tensor([number[name] for name in some]) for some in (names, test_names)
    )
    return LabelledSets(train, test, classes, train_labels, val_labels)


MOST_CHOSEN_ON = 1000  # images on which settings are chosen: more would cost more than they tell


def tuning_sets(  # noqa: PLR0913 - as `labelled_sets`
    data: str,
    val: str | None,
    val_fraction: float,
    labels_per_class: int | None,
    seed: int,
    avoid: Collection[int],
    listing: Listing = Listing(),
) -> LabelledSets:
    """Training images on which settings can be chosen: none is validated on with another seed.

    Of each class at least a fifth (at most `MOST_CHOSEN_ON` in all) becomes the validation images
    here, on which to choose; a group that is trained on is not among them.

    Args:
        data: as for `labelled_sets`.
        val: as for `labelled_sets`.
        val_fraction: as for `labelled_sets`.
        labels_per_class: trains on so many images of each class, or as many as there are.
        seed: of both choices.
        avoid: the seeds whose validation images are left out, where they draw their own.
        listing: as for `labelled_sets`.

    Raises:
        UserError: nothing of a class is left to train on or to choose on.
    """
    source, val_source = open_pair(data, val, listing=listing)
    images, names = labelled(source, data)
    groups = groups_of(images)
    free = np.ones(len(names), dtype=bool)
    for other in avoid if val_source is None else ():
        free &= ~hold_out(names, val_fraction, other, groups)
    classes = tuple(sorted(set(names)))
    ids = np.flatnonzero(free).tolist()
    inside = groups and [groups[i] for i in ids]
    held = hold_out([names[i] for i in ids], 0.2, seed, inside)
    learnable = set(ids) - {i for i, out in zip(ids, held) if out}
    order = {name: [i for i in members if free[i]] for name, members in by_class(names, seed)}
    train = [
        i
        for members in order.values()
        for i in [i for i in members if i in learnable][:labels_per_class]
    ]
    of = groups or [str(i) for i in range(len(names))]
    used = {of[i] for i in train}
    most = max(1, MOST_CHOSEN_ON // len(classes))
    chosen_on = {
        name: [i for i in members if of[i] not in used][:most] for name, members in order.items()
    }
    for name, members in order.items():
        if not chosen_on[name] or not learnable & set(members):
            raise UserError(
                f"too few training images of class '{name}' are left to choose settings on: give "
                "images to validate on (--val), fewer --seeds, or --trials 0"
            )
    number = {name: i for i, name in enumerate(classes)}
    parts = [sorted(train), sorted(i for members in chosen_on.values() for i in members)]
    labels = [torch.tensor([number[names[i]] for i in part]) for part in parts]
    return LabelledSets(Subset(images, parts[0]), Subset(images, parts[1]), classes, *labels)


def _first(names: Sequence[str]) -> str:
    return f"'{names[0]}'" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def open_pair(
    data: str,
    test: str | None,
    decode: DecodeOptions = DecodeOptions(),
    listing: Listing = Listing(),
) -> tuple[Source, Source | None]:
    """Training and test images.

    Args:
        data: may bring its own split (train/ and val/, splits of Hugging Face).
        test: images to test on, which win over the split of `data`.
        decode: how the images are decoded.
        listing: which of them are taken, of both.

    Returns:
        The two sources; None for the second where there is none.
    """
    for spec in (data, test):
        if spec is not None and is_run(Path(spec).expanduser()):
            raise UserError(f"{spec} is a run folder, not images: RUN comes first, then DATA")
    parts = divided(data)
    first, second = parts or (data, None)
    second = test if test is not None else second
    opened = open_sources([first] if second is None else [first, second], decode, listing)
    source, given = opened[0], opened[1] if second is not None else None
    own = tar_split(source, data) if isinstance(source, Tars) and parts is None else None
    return (own[0], given or own[1]) if own else (source, given)


def divided(data: str) -> tuple[str, str] | None:
    """What to open for training and validation: train/ and val/, splits of Hugging Face."""
    folder = Path(data).expanduser()
    if folder.is_dir():
        there = [part for part in PARTS if (folder / part).is_dir()]
        before = f"{folder}/"
    elif data.startswith("hf:"):
        there = hf_splits(data.removeprefix("hf:"))
        before = f"{data}{'&' if '?' in data else '?'}split="
    else:
        return None
    found = train_and_val(there)
    return (before + found[0], before + found[1]) if found else None


PARTS = ("train", "val", "validation", "valid", "test")


def train_and_val(there: Collection[str]) -> tuple[str, str] | None:
    """Of the parts that exist: which to train and which to validate on."""
    held = [part for part in PARTS[1:] if part in there]
    return ("train", held[0]) if "train" in there and held else None


def tar_split(source: Tars, data: str) -> tuple[Source, Source] | None:
    """The images below train/ and val/, if every image of the tars is in such a folder."""
    members: dict[str, list[int]] = {}
    for i in range(len(source)):
        part = next(
            (folder for folder in source.member(i).split("/")[:-1] if folder in PARTS), None
        )
        if part is None:
            return None
        members.setdefault(part, []).append(i)
    found = train_and_val(members)
    if found is None:
        return None
    for part in found:
        if {source.label(i) for i in members[part]} == {part}:
            raise UserError(
                f"{data} has no labels in {part}/: give each image a folder of its class, or a "
                ".cls member"
            )
    return Subset(source, members[found[0]]), Subset(source, members[found[1]])


def labelled(source: Source, what: str) -> tuple[Subset, list[str]]:
    """The images of a source that have labels, and these.

    A set of images may be what is found; a labelled set is what somebody says it is, and a class or
    a file that is missing would silently make it another one.

    Raises:
        UserError: no image has a label, or some labelled images or classes are not there.
    """
    pairs = [(i, label) for i in range(len(source)) if (label := source.label(i)) is not None]
    columns = source.columns if isinstance(source, Files) else ()
    if not pairs and columns:
        raise UserError(
            f"{what} has no column of labels with a usual name; --label-column names the one that "
            f"has the classes: {', '.join(columns)} (texts and numbers that differ from image to "
            "image are no classes)"
        )
    if not pairs:
        raise UserError(
            f"{what} has no labels: put the images of each class in a folder of its name, or list "
            "them in a CSV of path,label"
        )
    ids, labels = zip(*pairs)
    refuse_no_classes(source, labels, what)
    if isinstance(source, Files):
        if source.labels and source.unusable:
            name, reason = source.unusable[0]
            raise UserError(
                f"{len(source.unusable)} of the images that {what} labels cannot be read, the "
                f"first: '{name}' ({reason}); "
                f"correct or remove these lines (paths are relative to '{source.root}')"
            )
        empty = [] if source.labels else empty_classes(source, set(labels))
        if empty:
            raise UserError(
                f"class folder {_first(empty)} of {what} has no image of its own: fill it, or "
                "remove it if it is no class"
            )
    found = Subset(source, ids)
    if len(ids) < len(source):
        loose = f"{len(source) - len(ids)} without a label"
        found.left_out = ", ".join(filter(None, (source.left_out, loose)))
    return found, list(labels)


def refuse_no_classes(source: Source, labels: Sequence[str], what: str) -> None:
    """Raises UserError for labels that are no classes: texts of a table, parts of a data set."""
    classes = sorted(set(labels))
    listed = isinstance(source, Files) and source.labels is not None
    if listed and len(classes) > max(10, len(labels) / 2):
        short = classes[0] if len(classes[0]) < 60 else f"{classes[0][:60]}..."
        columns = source.columns if isinstance(source, Files) else ()
        way_out = f" ({', '.join(columns)})" if columns else ""
        raise UserError(
            f"the labels of {what} have {len(classes)} different values in {len(labels)} images, "
            f"such as '{short}': captions, measurements or names are no classes; --label-column "
            f"names a column that repeats itself{way_out}"
        )
    parts = [name for name in classes if PART.fullmatch(name.lower())]
    if not listed and len(classes) > 1 and parts == classes:
        train = next((name for name in parts if name.lower().startswith("train")), parts[0])
        val = next(name for name in reversed(parts) if name != train)
        way_out = ""
        if isinstance(source, Files):
            base = what.rstrip("/") if os.path.isdir(what) else source.root
            way_out = (
                f"If there are class folders in them: {base}/{train} --val {base}/{val}; else "
            )
        raise UserError(
            f"the classes of {what} would be {', '.join(classes)}: these are parts of a data set, "
            f"no classes. {way_out}list the images in a CSV of path,label"
        )


# A folder that is a part of a data set: train2017, val, Testing, test-set, unlabeled, ...
PART = re.compile(
    r"(train|val|valid|test|dev|eval|unlabell?ed)(ing|idation|uation)?[-_ ]?(set|images|data)?"
    r"[-_ ]?\d*"
)


def empty_classes(source: Files, classes: Collection[str]) -> list[str]:
    """Folders (and broken links to some) of the root without images, unless hidden."""
    with os.scandir(source.root) as entries:
        folders = {entry.name for entry in entries if entry.is_dir()}
    folders |= {
        bad.name for bad in source.unusable if "/" not in bad.name and not suffix_of(bad.name)
    }
    missing = folders - set(classes) - source.emptied
    return sorted(name for name in missing if not name.startswith("."))


def by_class(labels: Sequence[str], seed: int) -> Iterator[tuple[str, list[int]]]:
    """For each class, its images in a seeded order."""
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    for label in sorted(members):
        yield label, sorted(members[label], key=lambda i: hash32(seed, SPLIT, i))


def groups_of(source: Source, ids: Sequence[int] | None = None) -> list[str] | None:
    """The group of each image (of some, by their numbers), one that has none being its own; None
    where no image has one."""
    groups = [source.group(i) for i in (range(len(source)) if ids is None else ids)]
    if not any(groups):
        return None
    return [f"\0{i}" if group is None else group for i, group in enumerate(groups)]


def split_off(
    images: Subset, names: Sequence[str], fraction: float, seed: int, data: str
) -> tuple[Subset, list[str], Subset, list[str]]:
    """Training images and their classes, held out images and theirs; groups stay whole."""
    out = hold_out(names, fraction, seed, groups_of(images))
    if not out.any():
        single = len(set(names)) == len(names)
        one = f"image, as if each of the {len(names)} were a class" if single else "group"
        raise UserError(
            f"every class has only one {one}: nothing of {data} is left to test on. Name other "
            "images with --val, or give folders (or a column) of real classes"
        )
    parts = [np.flatnonzero(~out), np.flatnonzero(out)]
    train, test = (Subset(images, ids) for ids in parts)
    train.left_out = images.left_out
    kept, held = ([names[i] for i in ids.tolist()] for ids in parts)
    return train, kept, test, held


def refuse_shared_groups(train: Source, test: Source) -> None:
    """Raises UserError where a group, such as a patient, is in both of two given sets."""
    one, other = ({s.group(i) for i in range(len(s))} - {None} for s in (train, test))
    shared = sorted(str(group) for group in one & other)
    if shared:
        raise UserError(
            f"{len(shared)} of {len(other)} groups of the validation images are in the training "
            f"images too, such as '{shared[0]}': leave --val out and a share of the groups is held "
            "out, or give images of other groups"
        )


def hold_out(
    labels: Sequence[str], fraction: float, seed: int, groups: Sequence[str] | None = None
) -> Bool[np.ndarray, " N"]:
    """True for the images held out: of each class the given share, at least one, but not all.

    Args:
        labels: the class of each image.
        fraction: the share.
        seed: of the choice.
        groups: the group of each image; a group is held out as a whole or not at all, so that the
            shares are near the given one, and none of a class that has a single group.
    """
    if groups is not None:
        return hold_out_groups(labels, fraction, seed, groups)
    out = np.zeros(len(labels), dtype=bool)
    for _, members in by_class(labels, seed):
        out[members[: min(len(members) - 1, max(1, round(fraction * len(members))))]] = True
    return out


def hold_out_groups(
    labels: Sequence[str], fraction: float, seed: int, groups: Sequence[str]
) -> Bool[np.ndarray, " N"]:
    """As `hold_out`: groups in a seeded order, each that brings the shares nearer to the given
    one, and then the smallest one of each class that has none yet."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = sorted(members, key=lambda group: hash32(seed, SPLIT, members[group][0]))
    inside = {group: Counter(labels[i] for i in ids) for group, ids in members.items()}
    left, held = Counter(labels), Counter[str]()
    wanted = {label: max(1, round(fraction * count)) for label, count in left.items()}
    out = np.zeros(len(labels), dtype=bool)

    def hold(group: str) -> None:
        if any(count >= left[label] for label, count in inside[group].items()):
            return  # nothing of the class would be left to train on
        out[members[group]] = True
        left.subtract(inside[group])
        held.update(inside[group])

    for group in order:
        useful = sum(
            min(count, max(0, wanted[label] - held[label]))
            for label, count in inside[group].items()
        )
        if 2 * useful > inside[group].total():
            hold(group)
    for label in sorted(wanted):
        for group in sorted(order, key=lambda group: len(members[group])):
            if label in inside[group] and not held[label]:
                hold(group)
    return out


def few(labels: Sequence[str], per_class: int, seed: int) -> list[int]:
    """`per_class` images of each class; `UserError` for a class that has fewer."""
    chosen: list[int] = []
    for label, members in by_class(labels, seed):
        if len(members) < per_class:
            raise UserError(
                f"--labels-per-class {per_class}: class '{label}' has only {len(members)} images "
                "to train on"
            )
        chosen += members[:per_class]
    return sorted(chosen)
