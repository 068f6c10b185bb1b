"""Label maps in mask files: which mask belongs to which image, and what its values mean."""

import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int64, UInt8

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, Stored, image_extensions, inspect, stored_values
from torchmae.data.sources.files import Files, walk
from torchmae.data.sources.source import BadFile, Source, digest_of, read_file

IGNORE = 255  # in label maps: no class, neither learned nor measured
MOST_CLASSES = 255
GRAY = 0x010101  # times a gray value: that color

IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages"}
OTHER_FOLDERS = {"segmentationobject"}  # of PASCAL VOC: masks of another kind
MASK_FOLDERS = {"masks", "mask", "labels", "annotations", "segmentationclass", "gt"}
MASK_NAME = re.compile(r"[_-](mask|label|seg)s?([_-]?\d+)?$", re.IGNORECASE)
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)


class Pairs(NamedTuple):
    """The images of one part of a set, with the masks of each."""

    source: Source
    masks: "Masks"
    unpaired: list[BadFile]
    """Images without a mask and masks without an image; they are left out."""


def find(data: Path) -> dict[str, Pairs]:
    """The parts of a folder with images and masks, paired by their names.

    `images/a.jpg` has `masks/a.png`, `a.jpg` has `a_mask.png` (or `a_mask_0.png`, `a_mask_1.png`,
    ..., which are united) beside it; folders of single images have `images/` and `masks/` inside.

    Returns:
        "train" and "val" (or "test") as folders are called, else everything as "train"; nothing
        where no mask belongs to an image.
    """
    if not data.is_dir():
        return {}
    root = str(data.resolve())
    found, unusable, _ = walk(root, image_extensions())
    images: dict[str, int] = {}
    masks: list[tuple[str, int]] = []
    for i, name in enumerate(found.names):
        key, is_mask = key_of(name)
        if OTHER_FOLDERS & set(name.lower().split("/")):
            continue
        if is_mask:
            masks.append((key, i))
        elif key in images:
            unusable.append(BadFile(name, f"{found.names[images[key]]} has the same name"))
        else:
            images[key] = i
    files, strays = owners(images, masks)
    if not any(files.values()):
        return {}
    unpaired = [BadFile(found.names[i], "a mask without an image") for i in strays]
    source, listed = Files(root, found, unusable), listed_parts(data)
    members: dict[str, list[str]] = {}
    for key in images:
        part = listed.get(key) if listed else part_of(key)
        if part is not None:
            members.setdefault(part, []).append(key)
    pairs = {
        part: {key: (images[key], files[key]) for key in keys}
        for part, keys in members.items()
        if any(files[key] for key in keys)
    }
    return {part: pairs_of(source, found.sizes, one, unpaired) for part, one in pairs.items()}


def owners(
    images: Mapping[str, int], masks: Iterable[tuple[str, int]]
) -> tuple[dict[str, list[int]], list[int]]:
    """The masks of each image, and those of none, by what their names have in common.

    A mask belongs to the image of its name; else to that of the name of its folder; else to the
    only image of its folder.
    """
    counts = Counter(key.rpartition("/")[0] for key in images)
    of_folder = {key.rpartition("/")[0]: key for key in images}
    alone = {folder: key for folder, key in of_folder.items() if folder and counts[folder] == 1}
    files: dict[str, list[int]] = {key: [] for key in images}
    strays = []
    for key, i in masks:
        folder = key.rpartition("/")[0]
        owner = next((k for k in (key, folder, alone.get(folder)) if k in files), None)
        strays.append(i) if owner is None else files[owner].append(i)
    return files, strays


def listed_parts(data: Path) -> dict[str, str]:
    """The part of each image as PASCAL VOC lists them, here or in a folder below (VOCdevkit's
    VOC2012); empty where there are no such lists."""
    found: dict[str, str] = {}
    for lists in sorted(data.glob("**/ImageSets/Segmentation"))[:1]:
        place = lists.parent.parent.relative_to(data)
        for part in ("train", "val"):
            with suppress(OSError):
                names = (lists / f"{part}.txt").read_text().split()
                found |= {(place / name).as_posix(): part for name in names}
    return found


def key_of(name: str) -> tuple[str, bool]:
    """What the names of an image and of its masks have in common, and whether it is a mask's."""
    *folders, file = name.split("/")
    stem = os.path.splitext(file)[0]
    bare = MASK_NAME.sub("", stem)
    is_mask = bare != stem or any(folder.lower() in MASK_FOLDERS for folder in folders)
    kept = [f for f in folders if f.lower() not in IMAGE_FOLDERS | MASK_FOLDERS]
    return "/".join([*kept, bare if is_mask else stem]), is_mask


def part_of(key: str) -> str:
    """ "train", "val" or "test", as a folder of the name says; "" where none does."""
    folders = key.split("/")[:-1]
    return next((PARTS[f.lower()] for f in folders if f.lower() in PARTS), "")


def pairs_of(
    source: Files,
    sizes: Int64[np.ndarray, " N"],
    found: dict[str, tuple[int, list[int]]],
    unpaired: list[BadFile],
) -> Pairs:
    """The images that have masks."""
    with_masks = sorted((image, files) for image, files in found.values() if files)
    without = [
        BadFile(source.name(image), "an image without a mask")
        for image, files in found.values()
        if not files
    ]
    names = tuple(tuple(source.name(i) for i in sorted(files)) for _, files in with_masks)
    of_files = tuple(tuple(int(sizes[i]) for i in sorted(files)) for _, files in with_masks)
    images = source.select([image for image, _ in with_masks])
    return Pairs(images, MaskFiles(source.root, names, of_files), [*without, *unpaired])


@dataclass(frozen=True)
class Coding:
    """What the values of mask files mean.

    Args:
        kind: "values", "colors" (see `Stored.values`), or "objects": 0 is class 0 and everything
            else is class 1, whichever of several masks of an image it is in.
        values: that of each class.
        ignored: values that are no class.
    """

    kind: str
    values: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()

    def label_map(self, masks: Sequence[Stored]) -> UInt8[np.ndarray, "H W"]:
        """The classes of the masks of one image.

        Raises:
            BadImage: a value is neither a class nor ignored, or there are too many masks.
        """
        if self.kind == "objects":
            return np.any([one.values != 0 for one in masks], axis=0).astype(np.uint8)
        if len(masks) > 1:
            raise BadImage(f"{len(masks)} masks, where the others have one")
        values = masks[0].values
        if self.kind == "colors" and not masks[0].colored:
            values = values * GRAY
        known = np.array([*self.values, *self.ignored])
        numbers = np.array([*range(len(self.values)), *[IGNORE] * len(self.ignored)], np.uint8)
        order = np.argsort(known, kind="stable")
        place = order[np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)]
        unknown = known[place] != values
        if unknown.any():
            raise BadImage(self.unknown_values(values[unknown]))
        return numbers[place]

    def unknown_values(self, values: np.ndarray) -> str:
        """What is wrong with a mask that has these values."""
        found = [self.word(value) for value in np.unique(values).tolist()]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return (
            f"its mask has {', '.join(found[:3])}{more}, which is no class (--classes) and not "
            "ignored (--ignore)"
        )

    def unknown(self, pixels: Mapping[int, int]) -> set[int]:
        """The values of a mask that are neither a class nor ignored."""
        return set() if self.kind == "objects" else set(pixels) - {*self.values, *self.ignored}

    def word(self, value: int) -> str:
        """A value for people."""
        return f"color #{value:06x}" if self.kind == "colors" else f"value {value}"


@dataclass(frozen=True)
class MasksOfImage:
    """The masks of one image, not read yet.

    Args:
        readers: each reads one.
        coding: what their values mean.
    """

    readers: tuple[Callable[[], Stored], ...]
    coding: Coding

    def label_map(self, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
        """The class of each pixel of the image, or `IGNORE`.

        Args:
            height: of the image, in pixels.
            width: of the image.

        Raises:
            BadImage: a mask cannot be used.
        """
        return self.coding.label_map(self.read(height, width))

    def read(self, height: int, width: int) -> list[Stored]:
        """The values of each mask; arguments and errors as for `label_map`."""
        found = [read() for read in self.readers]
        for one in found:
            if one.values.shape != (height, width):
                had = f"{one.values.shape[1]} x {one.values.shape[0]}"
                raise BadImage(f"its mask has {had} pixels, the image {width} x {height}")
        return found


def read_mask(path: str, decode: DecodeOptions = DecodeOptions()) -> Stored:
    """The values of a mask file; `BadImage` where it cannot be used."""
    try:
        data = read_file(path, decode)
    except OSError as error:
        raise BadImage(f"its mask: {error.strerror or error}") from error
    try:
        stored = stored_values(data, decode)
    except BadImage as error:
        raise BadImage(f"its mask: {error}") from error
    if stored.format != "WEBP" or b"VP8L" not in data[:64]:
        refuse_lossy(stored.format)
    return stored


def refuse_lossy(format: str) -> None:
    """Raises BadImage for masks in a format of photographs."""
    if format in ("JPEG", "MPO", "WEBP"):
        raise BadImage(
            f"its mask is a {format}, whose compression changes the values at every edge: save "
            "masks as PNG"
        )


@dataclass(frozen=True, kw_only=True)
class Masks(Sequence[MasksOfImage]):
    """The masks of a set, image by image.

    Args:
        coding: what their values mean, once that is known.
    """

    coding: Coding = Coding("values")

    @abstractmethod
    def readers(self, i: int) -> tuple[Callable[[], Stored], ...]:
        """What reads each mask of an image."""

    @abstractmethod
    def select(self, ids: Sequence[int] | np.ndarray) -> "Masks":
        """Those of some of the images."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hex digest of what tells these masks from others, and of the coding."""

    @overload
    def __getitem__(self, i: int) -> MasksOfImage: ...
    @overload
    def __getitem__(self, i: slice) -> list[MasksOfImage]: ...
    def __getitem__(self, i: int | slice) -> MasksOfImage | list[MasksOfImage]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return MasksOfImage(self.readers(i), self.coding)


@dataclass(frozen=True)
class MaskFiles(Masks):
    """Masks in files.

    Args:
        root: the folder.
        names: the mask files of each image, below it.
        sizes: their bytes.
        decode: how large a file may be.
    """

    root: str
    names: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    decode: DecodeOptions = DecodeOptions()

    def __len__(self) -> int:
        return len(self.names)

    def readers(self, i: int) -> tuple[Callable[[], Stored], ...]:
        paths = [os.path.join(self.root, name) for name in self.names[i]]
        return tuple(partial(read_mask, path, self.decode) for path in paths)

    def select(self, ids: Sequence[int] | np.ndarray) -> "MaskFiles":
        chosen = np.asarray(ids).tolist()
        names, sizes = (tuple(some[i] for i in chosen) for some in (self.names, self.sizes))
        return replace(self, names=names, sizes=sizes)

    def fingerprint(self) -> str:
        """A hex digest of names, sizes and coding."""
        return digest_of(self.names, self.sizes, self.coding)


class Survey(NamedTuple):
    """What the masks of a set hold, before it is known what it means."""

    pixels: list[Mapping[int, int]]
    """Of each image: how many pixels have which value; empty where its mask is bad."""
    bad: list[BadFile]
    colored: bool
    several: bool
    """Whether an image has several masks."""
    palette: tuple[tuple[int, int, int], ...]

    @property
    def values(self) -> Counter[int]:
        """Pixels of all images by value."""
        total: Counter[int] = Counter()
        for one in self.pixels:
            total.update(one)
        return total


def survey(source: Source, masks: Masks) -> Survey:
    """Reads every mask, in threads."""

    def look(i: int) -> Looked:
        try:
            stored = masks[i].read(*size_of(source, i))
        except (BadImage, OSError) as error:
            return Looked(bad=BadFile(source.name(i), str(error)))
        values = stored[0].values
        if len(stored) > 1:
            values = np.any([one.values != 0 for one in stored], axis=0).astype(np.int32)
        found, counts = np.unique(values, return_counts=True)
        of_value = dict(zip(found.tolist(), counts.tolist()))
        return Looked(of_value, stored[0].colored, stored[0].palette, len(stored) > 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = list(pool.map(look, range(len(masks))))
    colored = any(one.colored for one in looked)
    return Survey(
        [
            {value * GRAY: count for value, count in one.pixels.items()}
            if colored and not one.colored
            else one.pixels
            for one in looked
        ],
        [one.bad for one in looked if one.bad is not None],
        colored,
        any(one.several for one in looked),
        next((one.palette for one in looked if one.palette), ()),
    )


class Looked(NamedTuple):
    """What the masks of one image hold, or what is wrong with them."""

    pixels: Mapping[int, int] = MappingProxyType({})
    colored: bool = False
    palette: tuple[tuple[int, int, int], ...] = ()
    several: bool = False
    bad: BadFile | None = None


def size_of(source: Source, i: int) -> tuple[int, int]:
    """Height and width of an image, from its header where it is a file."""
    data = source.read(i)
    return inspect(data, source.decode) if isinstance(data, bytes) else data.shape[:2]
