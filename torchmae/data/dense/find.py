"""What a set with annotations is: looked up in the folder, for every verb of dense prediction."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torchmae.data.dense import masks
from torchmae.data.dense.formats import coco, python, voc, yolo
from torchmae.data.labels import MOST_CHOSEN_ON, hold_out
from torchmae.data.sources.source import options_of
from torchmae.errors import UserError, nearest
from torchmae.hashing import SPLIT, hash32
from torchmae.runfolder import is_run
from torchmae.settings.python_data import PythonData

# How each of them looks, for messages.
LOOKS = {
    "images and mask files": "images/ and masks/ (below train/ and val/), name_mask.png beside "
    "name.jpg",
    "COCO json": "COCO json",
    "YOLO's data.yaml": "YOLO's data.yaml",
    "VOC xml": "VOC's xml",
}
# What a folder may hold, in the order in which it is looked for: words for the plan, and the module
# whose `find` names the parts of a set and whose `read` reads one.
KINDS: dict[str, ModuleType] = {
    "images and mask files": masks,
    "COCO json": coco,
    "YOLO's data.yaml": yolo,
    "VOC xml": voc,
}
CHOSEN_ON = 0.2  # the share of the images that settings are tried with on which they are chosen
WITH_MASKS = ("images and mask files", "COCO json", "YOLO's data.yaml")
WITH_BOXES = ("COCO json", "YOLO's data.yaml", "VOC xml")


class Layout(NamedTuple):
    """What a set is.

    Attributes:
        data: what it is called.
        words: what was found, for the plan.
        read: reads a part; not for mask files, which are parts by themselves.
        train: a part as its reader's `find` returned it.
        val: likewise; None where there is none.
    """

    data: str
    words: str
    read: Callable[..., Any]
    train: Any
    val: Any | None


class Split(NamedTuple):
    """How annotated images are split into those to train on and those to validate on.

    Attributes:
        val_fraction: the share that is held out where a set has no part to validate on.
        train_images: how many are trained on; None: all that are left.
        seed: of both draws.
        avoid: seeds, to choose settings between their trainings: a fifth of what none of them
            validates on is held out in place of the part to validate on.
    """

    val_fraction: float = 0.2
    train_images: int | None = None
    seed: int = 0
    avoid: tuple[int, ...] = ()


def find_layout(data: str, kinds: Sequence[str]) -> Layout:
    """What a set is.

    Args:
        data: a folder, COCO's .json, YOLO's data.yaml, torchvision:VOCSegmentation?root=..., or a
            `PythonData` of what is in Python.
        kinds: names in `KINDS`, in the order in which to look.

    Raises:
        UserError: there is no such set, or nothing that can be read.
    """
    if isinstance(data, PythonData):
        found = python.find(data, maps="images and mask files" in kinds)
        words = "label maps in Python" if isinstance(found, masks.Pairs) else "objects in Python"
        return Layout(data, words, python.read, found, None)
    path = Path(voc_folder(data) if data.startswith("torchvision:") else data).expanduser()
    if is_run(path):
        raise UserError(f"{data} is a run folder, not images: RUN comes first, then DATA")
    if not path.exists():
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        hint = f". Did you mean {path.parent / near}?" if near else ""
        raise UserError(f"no such folder or file: '{data}'{hint}")
    for kind in kinds:
        parts = KINDS[kind].find(path)
        if parts:
            train, val = train_and_val(parts, data)
            return Layout(data, kind, getattr(KINDS[kind], "read", no_reader), train, val)
    looks = ", ".join(LOOKS[kind] for kind in kinds)
    raise UserError(f"{data} has no annotations that this verb reads: {looks}")


def no_reader(part: Any, classes: Any = None) -> Any:
    """Of mask files."""
    raise AssertionError("mask files are read one by one")


def train_and_val(parts: Mapping[str, Any], data: str) -> tuple[Any, Any | None]:
    """Which part is trained on, and which is validated on."""
    if set(parts) == {"val"} or set(parts) == {"test"}:
        return next(iter(parts.values())), None  # a set that is measured on
    train = parts.get("train", parts.get(""))
    if train is None:
        raise UserError(f"{data} has the parts {', '.join(parts)}, but none is called train")
    return train, parts.get("val", parts.get("test"))


def voc_folder(data: str) -> str:
    """The folder of torchvision:VOCSegmentation?root=DIR&year=2012."""
    name, options = options_of(data.removeprefix("torchvision:"), ("root", "year", "download"))
    if name not in ("VOCSegmentation", "VOCDetection"):
        raise UserError(f"{data}: VOCSegmentation or VOCDetection")
    root, year = options.get("root", "."), options.get("year", "2012")
    if options.get("download", "").lower() in ("1", "true"):
        from torchmae.errors import library

        datasets = library("torchvision.datasets", "data")
        getattr(datasets, name)(root, year=year, download=True)
    return str(Path(root) / "VOCdevkit" / f"VOC{year}")


def hold_out_some(
    count: int, split: Split, has_val: bool, data: str
) -> tuple[list[int], list[int]]:
    """Which of so many images are trained on and which are held out.

    Args:
        count: how many there are.
        split: how they are split.
        has_val: whether there are others to validate on: nothing is held out then, unless
            settings are chosen.
        data: what the set is called, for messages.

    Raises:
        UserError: there are too few.
    """
    fraction, train_images, seed, avoid = split
    free = list(range(count))
    if avoid:  # a search for settings
        held = [hold_out(["all"] * count, fraction, other) for other in avoid if not has_val]
        free = [i for i in free if not any(out[i] for out in held)]
        fraction, has_val = CHOSEN_ON, False
    if not has_val and len(free) < 2:
        of_all = f" of {count} that no seed validates on" if avoid else ""
        raise UserError(
            f"{data} has {len(free)} annotated image{'s' * (len(free) != 1)}{of_all}: at least two "
            "are needed, one to validate on; or name others with --val"
        )
    out = [False] * len(free) if has_val else hold_out(["all"] * len(free), fraction, seed)
    left = [i for i, gone in zip(free, out) if not gone]
    if train_images is not None:
        if train_images > len(left) and not avoid:
            raise UserError(
                f"--train-images {train_images}: {data} has {len(left)} images to train on"
            )
        left = sorted(sorted(left, key=lambda i: hash32(seed, SPLIT, i))[:train_images])
    return left, [i for i, gone in zip(free, out) if gone][: MOST_CHOSEN_ON if avoid else None]
