"""Labelled images: training and validation sets, class numbers, seeded subsets."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from torchmae.data.config import DecodeOptions
from torchmae.data.sources import open_source
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


def labelled_sets(
    data: str,
    val: str | None,
    val_fraction: float,
    labels_per_class: int | None,
    seed: int,
    decode: DecodeOptions = DecodeOptions(),
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

    Raises:
        UserError: there are no labels, or the classes of the two sets do not fit together.
    """
    train_source, val_source = open_pair(data, val, decode)
    train, names = labelled(train_source, data)
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise UserError(f"a classifier needs at least two classes, {data} has 1: '{classes[0]}'")
    if val_source is None:
        out = hold_out(names, val_fraction, seed)
        kept = np.flatnonzero(~out)
        held = np.flatnonzero(out)
        test = Subset(train, held)
        test_names = [names[i] for i in held]
        train, names = Subset(train, kept), [names[i] for i in kept]
    else:
        test, test_names = labelled(val_source, val or f"the validation part of {data}")
    strange = sorted(set(test_names) - set(classes))
    absent = sorted(set(classes) - set(test_names))
    if strange:
        raise UserError(
            f"class {_first(strange)} is in the validation images, but not in the training "
            "images: train on it too, or leave "
            "it out of both"
        )
    if absent and val_source is None:
        raise UserError(
            f"class {_first(absent)} has only one image, so that nothing of it is left to "
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


def tuning_sets(
    data: str,
    val: str | None,
    val_fraction: float,
    labels_per_class: int | None,
    seed: int,
    avoid: Collection[int],
) -> LabelledSets:
    """Training images on which settings can be chosen: none is validated on with another seed.

    Of each class at least a fifth (at most `MOST_CHOSEN_ON` in all) becomes the validation images
    here, on which to choose.

    Args:
        data: as for `labelled_sets`.
        val: as for `labelled_sets`.
        val_fraction: as for `labelled_sets`.
        labels_per_class: trains on so many images of each class, or as many as there are.
        seed: of both choices.
        avoid: the seeds whose validation images are left out, where they draw their own.

    Raises:
        UserError: fewer than two images of a class are left.
    """
    source, val_source = open_pair(data, val)
    images, names = labelled(source, data)
    free = np.ones(len(names), dtype=bool)
    for other in avoid if val_source is None else ():
        free &= ~hold_out(names, val_fraction, other)
    classes = tuple(sorted(set(names)))
    train: list[int] = []
    held: list[int] = []
    for name, members in by_class(names, seed):
        left = [i for i in members if free[i]]
        if len(left) < 2:
            raise UserError(
                f"{len(left)} training images of class '{name}' are left to choose settings on: "
                "give images to validate on (--val), fewer --seeds, or --trials 0"
            )
        count = min(labels_per_class or len(left), max(1, len(left) * 4 // 5))
        train += left[:count]
        held += left[count:][: max(1, MOST_CHOSEN_ON // len(classes))]
    number = {name: i for i, name in enumerate(classes)}
    parts = [sorted(part) for part in (train, held)]
    labels = [torch.tensor([number[names[i]] for i in part]) for part in parts]
    return LabelledSets(Subset(images, parts[0]), Subset(images, parts[1]), classes, *labels)


def _first(names: Sequence[str]) -> str:
    return f"'{names[0]}'" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def open_pair(
    data: str, test: str | None, decode: DecodeOptions = DecodeOptions()
) -> tuple[Source, Source | None]:
    """Training and test images.

    Args:
        data: may bring its own split (train/ and val/, splits of Hugging Face).
        test: images to test on, which win over the split of `data`.
        decode: how the images are decoded.

    Returns:
        The two sources; None for the second where there is none.
    """
    for spec in (data, test):
        if spec is not None and is_run(Path(spec).expanduser()):
            raise UserError(f"{spec} is a run folder, not images: RUN comes first, then DATA")
    given = open_source(test, decode) if test is not None else None
    specs = divided(data)
    if specs:
        return open_source(specs[0], decode), given or open_source(specs[1], decode)
    source = open_source(data, decode)
    own = tar_split(source, data) if isinstance(source, Tars) else None
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
    if not pairs:
        raise UserError(
            f"{what} has no labels: put the images of each class in a folder of its name, or list "
            "them in a CSV of path,label"
        )
    ids, labels = zip(*pairs)
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
    return Subset(source, ids), list(labels)


def empty_classes(source: Files, classes: Collection[str]) -> list[str]:
    """Folders (and broken links to some) of the root without images, unless hidden."""
    with os.scandir(source.root) as entries:
        folders = {entry.name for entry in entries if entry.is_dir()}
    folders |= {
        bad.name for bad in source.unusable if "/" not in bad.name and not suffix_of(bad.name)
    }
    return sorted(name for name in folders - set(classes) if not name.startswith("."))


def by_class(labels: Sequence[str], seed: int) -> Iterator[tuple[str, list[int]]]:
    """For each class, its images in a seeded order."""
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    for label in sorted(members):
        yield label, sorted(members[label], key=lambda i: hash32(seed, SPLIT, i))


def hold_out(labels: Sequence[str], fraction: float, seed: int) -> Bool[np.ndarray, " N"]:
    """True for the images held out: of each class the given share, at least one, but not all."""
    out = np.zeros(len(labels), dtype=bool)
    for _, members in by_class(labels, seed):
        out[members[: min(len(members) - 1, max(1, round(fraction * len(members))))]] = True
    if not out.any():
        raise UserError("every class has only one image: nothing is left to test on")
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
