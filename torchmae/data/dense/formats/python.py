"""Annotated images that are in Python: items of (image, label map) or (image, objects), or a list
of images and one of what is on them."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from torchmae.data.decode import BadImage, Stored, stored_values
from torchmae.data.dense.annotated import Annotated, Findings, Found, Listed, checked
from torchmae.data.dense.masks import IGNORE, Masks, Pairs, read_mask, refuse_lossy, size_of
from torchmae.data.dense.objects import encode_rle
from torchmae.data.sources import Source, open_source
from torchmae.data.sources.python import is_block, is_paths, is_table, name_of
from torchmae.data.sources.python.items import (
    PEEKED,
    Items,
    class_names,
    label_text,
    part,
    unread_file,
)
from torchmae.data.sources.source import digest_of
from torchmae.errors import UserError
from torchmae.settings.python_data import PythonData

# What items that are dictionaries call what is on their images.
TARGETS = ("mask", "label_map", "annotation", "segmentation", "objects", "target", "label")
XYXY, XYWH = "boxes", "bbox"  # the first as in torchvision, the second as in COCO
CLASSES = ("labels", "category", "category_id", "label")
BACKGROUND = (("__background__",), ("background",))  # number 0 in torchvision's lists of classes
SAMPLED = 64  # label maps, of which the fingerprint is
TAKEN = (
    "items of (image, label map [H, W]) or (image, {'boxes': [N, 4] as x1 y1 x2 y2, 'labels': [N], "
    "and maybe 'masks': [N, H, W]}), or (list of images, list of these)"
)


@dataclass(frozen=True)
class Targets:
    """What is on each image.

    Args:
        items: each is the target itself, or has it beside the image.
        alone: whether it is the target itself.
    """

    items: Items
    alone: bool

    def __getitem__(self, i: int) -> Any:
        """A label map, or a dictionary of objects; `BadImage` where the item raises something."""
        item = self.items.item(i)
        if self.alone or (isinstance(item, Mapping) and (XYXY in item or XYWH in item)):
            return item
        return part(item, TARGETS, 1)


class Part(NamedTuple):
    """Images with objects."""

    source: Source
    targets: Targets
    names: tuple[str, ...]
    """Of the classes by their numbers, where the data says them."""


def find(data: PythonData, maps: bool) -> Part | Pairs:
    """The images, and what is on them.

    Args:
        data: what the caller holds.
        maps: whether label maps are taken; else objects alone.

    Raises:
        UserError: there are no images, or nothing is on them.
    """
    held = data.data
    if is_table(held) or is_block(held) or is_paths(held):
        raise UserError(f"{data}: images alone; give {TAKEN}")
    if is_pair(held):
        source = open_source(PythonData.of(held[0], data.data_id))
        targets = Targets(Items(held[1], name_of(data), held=True), alone=True)
    else:
        source = open_source(data)
        own = source if isinstance(source, Items) else Items(held, name_of(data), held=True)
        targets = Targets(own, alone=False)
    found = first_of(targets, len(source))
    if isinstance(found, Mapping):
        return Part(source, targets, names_of(held))
    if not maps:
        raise UserError(f"{data}: {kind_of(found)} in place of objects; give {TAKEN}")
    return Pairs(source, HeldMaps(targets, tuple(range(len(source)))), [])


def is_pair(data: Any) -> bool:
    """A list or array of images, and one of what is on them: not two items."""
    both = isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple)
    return (
        both and all(isinstance(one, list) or is_block(one) for one in data) and same_length(data)
    )


def same_length(data: Sequence[Any]) -> bool:
    return len(data[0]) == len(data[1])


def first_of(targets: Targets, count: int) -> Any:
    """What is on the first image that can be read."""
    for i in range(min(PEEKED, count)):
        try:
            return targets[i]
        except BadImage:  # it will be named
            continue
    return None


def kind_of(target: Any) -> str:
    """What an object is, in words."""
    shape = getattr(target, "shape", None)
    return f"a {type(target).__name__}" + (f" {list(shape)}" if shape is not None else "")


@dataclass(frozen=True)
class HeldMaps(Masks):
    """Label maps that are in Python.

    Args:
        targets: what is on each image.
        ids: which of them.
    """

    targets: Targets
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def readers(self, i: int) -> tuple[partial[Stored]]:
        return (partial(read_map, self.targets, self.ids[i]),)

    def select(self, ids: Sequence[int] | np.ndarray) -> "HeldMaps":
        return replace(self, ids=tuple(self.ids[i] for i in np.asarray(ids).tolist()))

    def fingerprint(self) -> str:
        """A hex digest of some of the maps, of how many there are, and of the coding."""
        sums: list[bytes | None] = []
        for k in np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int)).tolist():
            try:
                sums.append(read_map(self.targets, self.ids[k]).values.tobytes())
            except BadImage:  # it is named
                sums.append(None)
        return digest_of(len(self), sums, self.coding)


def read_map(targets: Targets, i: int) -> Stored:
    """The values of a label map: an array or tensor [H, W] or [1, H, W] of whole numbers, a PIL
    image, or the path of a mask file.

    Raises:
        BadImage: it is none.
    """
    found = targets[i]
    if isinstance(found, str | os.PathLike):
        return read_mask(os.fspath(found))
    if isinstance(found, Image.Image):
        return values_of_pil(found)
    if isinstance(found, Tensor):
        found = found.detach().cpu().numpy()
    if not isinstance(found, np.ndarray):
        raise BadImage(f"a {type(found).__name__} is no mask: an array [H, W], or a PIL image")
    values = found[0] if found.ndim == 3 and len(found) == 1 else found
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise BadImage(
            f"{found.dtype} {list(found.shape)} is no mask: [H, W] of whole numbers, such as uint8"
        )
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << 16:
        raise BadImage(
            f"its mask has values of {values.min()} to {values.max()}, beyond 0 to 65535: what is "
            f"no class is {IGNORE}"
        )
    return Stored(values.astype(np.int32), "", colored=False)


def values_of_pil(image: Image.Image) -> Stored:
    """The values of a PIL image, as of its file."""
    file = unread_file(image)
    if file is not None:
        return read_mask(file)
    refuse_lossy(str(image.format))
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG", compress_level=0)
    except OSError as error:
        raise BadImage(f"a PIL image of mode {image.mode} is no mask") from error
    return stored_values(buffer.getvalue())


def read(found: Part, classes: Sequence[str] | None = None) -> Annotated:
    """The images with their objects; each item is read once for them.

    Args:
        found: as `find` returns it.
        classes: those of the training set, for a validation set; None takes those of the data.

    Raises:
        UserError: no item has objects that can be read.
    """
    source, targets, names = found
    findings = Findings()
    listed: dict[int, Listed] = {}
    for i in range(len(source)):
        name = source.name(i)
        try:
            size = size_of(source, i)
        except (BadImage, OSError):
            listed[i] = Listed(name, None, [])  # the scan will name it
            continue
        try:
            listed[i] = Listed(name, size, objects_of(targets[i], names))
        except BadImage as error:
            findings.add("images whose objects cannot be read, left out", name, str(error))
    if not listed:
        raise UserError(f"{findings.lines()[0]}; give {TAKEN}")
    found_here = {one.label for image in listed.values() for one in image.objects}
    own = names or in_order({name for name in found_here if name is not None})
    if own[:1] in BACKGROUND:
        own = own[1:]
    known = tuple(own if classes is None else classes)
    numbers = {name: i for i, name in enumerate(known)}
    objects = tuple(checked(one, numbers, findings) for one in listed.values())
    images = source if len(listed) == len(source) else source.select(list(listed))
    return Annotated(images, objects, known, findings)


def objects_of(target: Any, names: Sequence[str]) -> list[Found]:
    """The objects of an image, as a dictionary has them.

    Raises:
        BadImage: it is none, or its parts do not belong together.
    """
    if not isinstance(target, Mapping) or not (XYXY in target or XYWH in target):
        raise BadImage(f"{kind_of(target)} is no dictionary with {XYXY}")
    boxes = corners_of(target)
    labels = as_array(part(dict(target), CLASSES, 0), "labels")
    masks = None if target.get("masks") is None else as_array(target["masks"], "masks")
    crowd = as_array(target.get("iscrowd", np.zeros(len(boxes))), "iscrowd")
    counts = [len(one) for one in (boxes, labels, masks, crowd) if one is not None]
    flat = labels.ndim == crowd.ndim == 1 and (masks is None or masks.ndim == 3)
    if len(set(counts)) > 1 or not flat:
        raise BadImage(f"{len(boxes)} boxes, and not a label (and mask) for each")
    return [
        Found(
            f"object {k}",
            label_text(labels[k], names),
            (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            None if masks is None else encode_rle(masks[k] > 0),
            bool(crowd[k]),
        )
        for k, box in enumerate(boxes)
    ]


def corners_of(target: Mapping[str, Any]) -> np.ndarray:
    """The boxes [N, 4] as x1 y1 x2 y2."""
    boxes = target[XYXY] if XYXY in target else target[XYWH]
    form = getattr(getattr(boxes, "format", None), "name", "XYXY")  # torchvision's BoundingBoxes
    if form != "XYXY":
        raise BadImage(f"boxes of format {form}: convert them to XYXY")
    numbers = as_array(boxes, "boxes").astype(np.float64)
    if numbers.size and (numbers.ndim != 2 or numbers.shape[1] != 4):
        raise BadImage(f"boxes of shape {list(numbers.shape)}, not [N, 4]")
    numbers = numbers.reshape(-1, 4)
    if XYXY not in target:
        numbers[:, 2:] += numbers[:, :2]
    return numbers


def as_array(values: Any, what: str) -> np.ndarray:
    """Numbers or texts as an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        found = np.asarray([] if values is None else values)
    except ValueError as error:  # lists of unequal lengths
        raise BadImage(f"{what} that are no array") from error
    if found.dtype == object:
        raise BadImage(f"{what} that are no array")
    return found


def names_of(data: Any) -> tuple[str, ...]:
    """The names of classes by number: those of a set, or of a Hugging Face column of objects."""
    columns = getattr(data, "features", None)
    kinds: Any = columns.get("objects") if isinstance(columns, Mapping) else None
    kinds = getattr(kinds, "feature", kinds)  # of a sequence
    for name in CLASSES if isinstance(kinds, Mapping) else ():
        kind = kinds.get(name)
        names = getattr(getattr(kind, "feature", kind), "names", None)
        if names:
            return tuple(names)
    return tuple(class_names(data))


def in_order(names: set[str]) -> tuple[str, ...]:
    """Numbers by their size, texts by the alphabet."""
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), name.zfill(20), name)))
