"""Images with the objects on them: what the readers of COCO, YOLO and VOC have in common.

A reader says what its files hold (`Listed`); `gather` looks for the images and checks every object.
What is wrong is counted and named, and what can be used of it is used.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchmae.data.dense.objects import Mask, Objects, Rle, decode_rle
from torchmae.data.sources.files import Files, Gathered
from torchmae.data.sources.source import BadFile, Source
from torchmae.errors import UserError, printable

OVERHANG = 1.0  # pixels that a box may reach over its image: rounding, and not worth a word


class Part(NamedTuple):
    """One annotated set, such as the training set of a folder, before it is read."""

    annotations: Path
    """A file, or the folder of the files."""
    images: Path
    """The folder that the names of images are relative to."""
    classes: tuple[str, ...] = ()
    """By number, where the annotations have only numbers."""
    names: tuple[str, ...] | None = None
    """Which images belong to it; None: all that are annotated."""


class Listed(NamedTuple):
    """An image of a set and its objects, as its annotations describe them."""

    name: str
    size: tuple[int, int] | None
    """Height and width in pixels; None where they are not known."""
    objects: "Sequence[Found]"


class Found(NamedTuple):
    """An object as its annotation describes it, in pixels."""

    where: str
    """Such as "annotation 17", for messages."""
    label: str | None
    """The name of its class; None for a number that stands for none."""
    box: tuple[float, float, float, float] | None
    """x1 y1 x2 y2; None: that of its mask."""
    mask: Mask = None
    crowd: bool = False
    difficult: bool = False


class Findings:
    """What is wrong with annotations: each is named, each kind is counted in one line."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[BadFile]] = {}

    def add(self, kind: str, name: str, where: str = "") -> None:
        """Notes that something of a kind ("empty boxes, left out") is wrong in a file."""
        self.kinds.setdefault(kind, []).append(
            BadFile(", ".join(filter(None, (name, where))), kind)
        )

    def lines(self) -> list[str]:
        """One line for each kind: how many, and the first."""
        return [
            f"{kind}: {len(found)}, such as {printable(found[0].name)}"
            for kind, found in self.kinds.items()
        ]

    def files(self) -> list[BadFile]:
        """Every finding with its file and place, for bad-files.jsonl."""
        return [one for found in self.kinds.values() for one in found]

    def select(self, relevant: Callable[[BadFile], bool]) -> "Findings":
        """Some of them."""
        chosen = Findings()
        for kind, found in self.kinds.items():
            if some := list(filter(relevant, found)):
                chosen.kinds[kind] = some
        return chosen


@dataclass(frozen=True)
class Annotated:
    """Images, and the objects on each."""

    source: Source
    objects: tuple[Objects, ...]
    classes: tuple[str, ...]
    findings: Findings

    @property
    def sizes(self) -> tuple[tuple[int, int] | None, ...]:
        """Height and width of each image as its annotations say; None where they do not."""
        return tuple(one.size for one in self.objects)

    @property
    def has_masks(self) -> bool:
        """Whether most objects that count have a mask."""
        masks = [mask is not None for one in self.objects for mask in one.masks]
        return bool(masks) and 2 * sum(masks) > len(masks)

    def select(self, ids: Sequence[int]) -> "Annotated":
        """Some of the images."""
        objects = tuple(self.objects[i] for i in ids)
        return replace(self, source=self.source.select(ids), objects=objects)

    def keep_findings(self, relevant: Callable[[BadFile], bool]) -> "Annotated":
        """The same images with only some of what is wrong with their objects."""
        return replace(self, findings=self.findings.select(relevant))

    def of_other_size(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """The images that are not of the size their annotations say; each is noted.

        Args:
            sizes: height and width of each image when it is decoded; zeros where it cannot be.
        """
        wrong = []
        for i, (found, one) in enumerate(zip(sizes, self.objects)):
            where = one.wrong_size(*found) if found[0] else None
            if where is not None:
                kind = "images of another size than their annotations say, left out"
                self.findings.add(kind, self.source.name(i), where)
                wrong.append(i)
        return wrong


def gather(
    folder: Path,
    listed: Iterable[Listed],
    classes: Sequence[str],
    findings: Findings,
) -> Annotated:
    """Looks for the images of a set, and checks their objects.

    Args:
        folder: what names are relative to.
        listed: the images; those without objects are kept.
        classes: names of the classes in their order; objects of others are left out.
        findings: what was found to be wrong so far; more is added.

    Raises:
        UserError: there is no image.
    """
    root = folder.resolve()
    files = Gathered()
    objects: list[Objects] = []
    missing: list[BadFile] = []
    numbers = {name: i for i, name in enumerate(classes)}
    seen: set[str] = set()
    for image in listed:
        if image.name in seen:
            findings.add("images that are listed twice, the first one is used", image.name)
            continue
        seen.add(image.name)
        try:
            facts = os.stat(root / image.name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            missing.append(BadFile(image.name, f"{reason}, but annotated"))
            continue
        files.add(image.name, facts)
        objects.append(checked(image, numbers, findings))
    if not objects:
        first = f"; the first: {missing[0]}" if missing else ""
        raise UserError(f"none of {len(missing)} annotated images is in {folder}{first}")
    source = Files(str(root), files.all(), missing)
    return Annotated(source, tuple(objects), tuple(classes), findings)


def checked(image: Listed, numbers: dict[str, int], findings: Findings) -> Objects:
    """The objects of an image that can be used; all others are noted."""
    kept = list(usable(image, numbers, findings))
    return Objects(
        boxes=np.array([box for box, _, _ in kept], dtype=np.float32).reshape(-1, 4),
        classes=np.array([number for _, number, _ in kept], dtype=np.int64),
        crowd=np.array([one.crowd for _, _, one in kept], dtype=bool),
        masks=tuple(one.mask for _, _, one in kept),
        difficult=np.array([one.difficult for _, _, one in kept], dtype=bool),
        size=image.size,
    )


def usable(
    image: Listed, numbers: dict[str, int], findings: Findings
) -> Iterator[tuple[np.ndarray, int, Found]]:
    """Box, number of the class, and the object, of those with a box inside the image."""
    for one in image.objects:
        place = (image.name, one.where)
        if one.label is None:
            findings.add("objects of a class that has no name, left out", *place)
            continue
        number = numbers.get(one.label)
        if number is None:
            kind = f"objects of the class {printable(one.label)}, not among the training set's"
            findings.add(f"{kind}, left out", *place)
            continue
        one = one._replace(mask=checked_mask(one.mask, image, place, findings))
        box = one.box or box_of(one.mask)
        if box is None or not np.isfinite(box).all():
            findings.add("objects without a box, left out", *place)
            continue
        inside = clipped(np.array(box, dtype=np.float64), image.size)
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            empty = box[2] <= box[0] or box[3] <= box[1]
            kind = "empty boxes" if empty else "boxes outside of their image"
            findings.add(f"{kind}, left out", *place)
            continue
        if np.abs(inside - box).max() > OVERHANG:
            findings.add("boxes that reach over their image, clipped", *place)
        yield inside, number, one


def clipped(box: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A box inside an image of this height and width."""
    if size is None:
        return np.maximum(box, 0)
    return np.clip(box, 0, [size[1], size[0], size[1], size[0]])


def checked_mask(mask: Mask, image: Listed, place: tuple[str, str], findings: Findings) -> Mask:
    """A mask that can be drawn; None, and a note, for one that cannot."""
    if isinstance(mask, Rle):
        size = image.size or (mask.height, mask.width)
        if size != (mask.height, mask.width) or sum(mask.counts) != size[0] * size[1]:
            findings.add("masks of another size than the image, left out", *place)
            return None
        return mask
    if mask is None:
        return None
    good = tuple(one for one in mask if len(one) >= 3 and np.isfinite(one).all())
    if len(good) < len(mask):
        findings.add("polygons with fewer than three points, left out", *place)
    return good or None


def box_of(mask: Mask) -> tuple[float, float, float, float] | None:
    """The smallest box around a mask, x1 y1 x2 y2; None where it is empty."""
    if isinstance(mask, Rle):
        rows, columns = np.nonzero(decode_rle(mask))
        if not len(rows):
            return None
        corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    elif mask:
        points = np.concatenate(mask)
        corners = (*points.min(0), *points.max(0))
    else:
        return None
    x1, y1, x2, y2 = map(float, corners)
    return x1, y1, x2, y2
