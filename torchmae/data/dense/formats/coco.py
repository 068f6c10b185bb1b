"""Objects in COCO's json: boxes, polygons, run-length encoded masks and crowds."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmae.data.dense.annotated import (
    Annotated,
    Findings,
    Found,
    Listed,
    Part,
    gather,
)
from torchmae.data.dense.objects import Mask, Rle, counts_of_text
from torchmae.disk import parse_json
from torchmae.errors import UserError

PART_NAMES = {"train": "train", "valid": "val", "val": "val", "test": "test"}  # of files, folders
LOOK = 50  # images that show where all are
PEEK = 1 << 16  # bytes at each end of a file that show what it is


def find(data: Path) -> dict[str, Part]:
    """The sets that a file, or a folder with one or several, holds.

    Returns:
        "train" and "val" as far as file names say which is which, else one set, "train"; nothing
        where there is no COCO json.
    """
    if data.is_file():
        return {"train": part_of(data)} if is_coco(data) else {}
    patterns = ("annotations/instances*.json", "annotations/*.json", "*/*.json", "*.json")
    for pattern in patterns:
        files = [path for path in sorted(data.glob(pattern)) if is_coco(path)]
        if files:
            named: dict[str, Path] = {}
            for path in files:
                part = part_in(path.relative_to(data).as_posix())
                if part in ("train", "val"):
                    named.setdefault(part, path)
            if "train" not in named:
                others = [path for path in files if path not in named.values()]
                named |= {"train": others[0]} if len(others) == 1 else {}
            if "train" not in named and len(files) > len(named):
                raise UserError(
                    f"{data} has several sets ({', '.join(path.name for path in files[:4])}), and "
                    "none is called train: name one of these files"
                )
            return {name: part_of(path) for name, path in named.items()}
    return {}


def is_coco(path: Path) -> bool:
    """Whether a .json begins or ends as a list of images and annotations does."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open("rb") as file:
            ends = file.read(PEEK)
            file.seek(max(0, path.stat().st_size - PEEK))
            ends += file.read()
    except OSError:
        return False
    return ends.lstrip().startswith(b"{") and any(
        re.search(rb'"%s"\s*:\s*\[' % key, ends) for key in (b"images", b"annotations")
    )


def part_of(path: Path) -> Part:
    """The set of a json; where its images are is found out when it is read."""
    return Part(path, path.parent)


def read(part: Part, classes: Sequence[str] | None = None) -> Annotated:
    """The images and objects of a json.

    Args:
        part: where they are.
        classes: those of the training set, for a validation set; None takes the json's.

    Raises:
        UserError: it is no COCO json, or none of its images is there.
    """
    path = part.annotations
    try:
        content = parse_json(path.read_bytes())
        images, annotations, categories = (
            [one for one in content.get(key) or [] if isinstance(one, dict)]
            for key in ("images", "annotations", "categories")
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is no COCO json: {reason}") from error
    findings = Findings()
    named = [one for one in images if isinstance(one.get("file_name"), str)]
    images = known_images(named, findings)
    if named and not images:
        raise UserError(f"{path}: every image has the id of another one")
    if not images or not categories:
        what = "images with a file_name" if not images else "categories"
        raise UserError(
            f"{path} names no {what}: a COCO json lists images, annotations, categories"
        )
    categories.sort(key=lambda one: (not isinstance(one.get("id"), int), one.get("id", 0)))
    names = {one.get("id"): str(one.get("name")) for one in categories}
    of_image = by_image(images, annotations, findings)
    for one in images:
        one["file_name"] = one["file_name"].replace("\\", "/")
    listed = describe(images, of_image, names, findings)
    own = tuple(dict.fromkeys(names.values()))
    folder = images_of(path, [one["file_name"] for one in images])
    return gather(folder, listed, own if classes is None else classes, findings)


def known_images(images: list[dict[str, Any]], findings: Findings) -> list[dict[str, Any]]:
    """The images without those that have the id of another one: whose the objects of that id are
    cannot be known, and an image without its objects teaches that they are background."""
    files: dict[Any, set[str]] = {}
    for image in images:
        files.setdefault(image.get("id"), set()).add(image["file_name"])
    known = []
    for image in images:
        if len(files[image.get("id")]) == 1:
            known.append(image)
            continue
        kind = "images with the id of another one, left out"
        findings.add(kind, image["file_name"], f"id {image.get('id')}")
    return known


def by_image(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], findings: Findings
) -> dict[Any, list[dict[str, Any]]]:
    """The annotations of each image, by its id."""
    of_image: dict[Any, list[dict[str, Any]]] = {image.get("id"): [] for image in images}
    ids: dict[Any, dict[str, Any]] = {}
    for one in annotations:
        own, where = one.get("id"), f"annotation {one.get('id')}"
        if own is not None and own in ids:
            if one == ids[own]:
                findings.add("annotations that are listed twice, one is used", where)
                continue
            findings.add("annotations with the id of another one, both are used", where)
        ids[own] = one
        if one.get("image_id") not in of_image:
            kind = "annotations of images that are not listed, left out"
            findings.add(kind, where, f"image {one.get('image_id')}")
            continue
        of_image[one["image_id"]].append(one)
    return of_image


def describe(
    images: list[dict[str, Any]],
    of_image: Mapping[Any, list[dict[str, Any]]],
    names: Mapping[Any, str],
    findings: Findings,
) -> Iterator[Listed]:
    """Each image with its objects."""
    for image in images:
        height, width = image.get("height"), image.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        found = []
        for one in of_image[image.get("id")]:
            where = f"annotation {one.get('id')}"
            crowd = bool(one.get("iscrowd"))
            try:
                mask = mask_of(one.get("segmentation"))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError):
                findings.add("masks that cannot be read, left out", image["file_name"], where)
                mask = None
            box = corners(one.get("bbox"))
            found.append(Found(where, names.get(one.get("category_id")), box, mask, crowd))
        yield Listed(image["file_name"], size, found)


def corners(box: Any) -> tuple[float, float, float, float] | None:
    """x y width height to x1 y1 x2 y2; None for anything else."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        return None
    return (x, y, x + width, y + height) if math.isfinite(x + y + width + height) else None


def mask_of(segmentation: Any) -> Mask:
    """Polygons, or runs (a list or COCO's string), as COCO's "segmentation" has them; None for
    nothing. `ValueError` and others for what is damaged."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        height, width = map(int, segmentation["size"])
        counts = segmentation["counts"]
        numbers = counts_of_text(counts) if isinstance(counts, str) else map(int, counts)
        return Rle(height, width, tuple(numbers))
    flat = [np.array(one, dtype=np.float32) for one in segmentation]
    return tuple(one[: len(one) // 2 * 2].reshape(-1, 2) for one in flat)


def images_of(path: Path, names: list[str]) -> Path:
    """The folder, near a json, that most of a sample of image names are relative to.

    Where several have them, as train/ and val/ with equal file names: the one that is called as the
    json is, else the folder of the json or its images/.

    Raises:
        UserError: none of them is anywhere, or nothing says which of several folders is meant.
    """
    near = path.parent
    sample = names[:: max(1, len(names) // LOOK)][:LOOK]
    folders: list[Path] = []
    counts = [0]
    for top in (near, near.parent):
        # What lies beside the folder of the json counts only where nothing is in the folder itself.
        if any(counts):
            break
        folders = [top, *(path for path in sorted(top.iterdir()) if path.is_dir())]
        pictures = [path for path in folders if path.name == "images"]
        folders += [one for path in pictures for one in sorted(path.iterdir()) if one.is_dir()]
        counts = [sum((folder / name).is_file() for name in sample) for folder in folders]
    if not max(counts):
        raise UserError(
            f"the images that the annotations in {near} name ({names[0]}, ...) are not there, nor "
            f"in {near.parent}, nor in a folder of these"
        )
    tied = [folder for folder, count in zip(folders, counts) if count == max(counts)]
    part = part_in(path.name)
    alike = [
        folder for folder in tied if part and part_in(folder.relative_to(top).as_posix()) == part
    ]
    plain = [folder for folder in tied if folder in (top, top / "images")]
    for some in (tied, alike, plain):
        if len(some) == 1:
            return some[0]
    raise UserError(
        f"the images that {path.name} names ({names[0]}, ...) are in several folders: "
        f"{', '.join(str(folder) for folder in tied[:3])}. Give the json and the folders of train "
        "and val the same words (train, val), or name the images by their paths"
    )


def part_in(name: str) -> str | None:
    """ "train", "val" or "test", where the name of a file or folder says so."""
    found = re.search("train|valid|val|test", name)
    return PART_NAMES[found[0]] if found else None
