"""Objects in YOLO's folders: data.yaml, and a .txt for each image with boxes or polygons in shares
of its sides."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmae.data.decode import BadImage, image_extensions, inspect
from torchmae.data.dense.annotated import (
    Annotated,
    Findings,
    Found,
    Listed,
    Part,
    gather,
)
from torchmae.errors import UserError, library

BOX = 5  # numbers of a line: class, centre x and y, width, height; more are a polygon


def find(data: Path) -> dict[str, Part]:
    """The sets that a data.yaml, or the folder that holds it, names: "train" and "val"; nothing
    where there is none."""
    files = [data] if data.is_file() else sorted(data.glob("*.y*ml")) if data.is_dir() else []
    for path in files:
        if path.suffix.lower() not in (".yaml", ".yml"):
            continue
        content = read_yaml(path)
        if "names" in content and "train" in content:
            classes = class_names(content["names"], path)
            return {
                name: part_of(path, content, key, classes)
                for name, keys in (("train", ("train",)), ("val", ("val", "valid")))
                for key in [next((key for key in keys if content.get(key)), None)]
                if key is not None
            }
    return {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a .yaml; none where it holds something else."""
    yaml = library("yaml", "detection")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}") from error
    return content if isinstance(content, dict) else {}


def class_names(names: Any, path: Path) -> tuple[str, ...]:
    """Of a list, or of a mapping from 0, 1, ..."""
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{path}: names has to number its classes 0, 1, ..., not {list(names)}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} names no classes: names is a list, or a mapping from 0, 1, ...")
    return tuple(map(str, names))


def part_of(path: Path, content: dict[str, Any], key: str, classes: tuple[str, ...]) -> Part:
    """The set that an entry of a data.yaml names: a folder, a list of images, or several."""
    bases = (path.parent / str(content.get("path") or ""), path.parent)
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    images: list[str] = []
    for entry in map(str, entries):
        # Exports of Roboflow say ../train/images for a folder beside the file.
        places = [base / some for some in (entry, entry.removeprefix("../")) for base in bases]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(f"{path}: {key} is {entry}, which is not there")
        images += listed_images(place)
    if not images:
        raise UserError(f"{path}: there are no images in {key}, {', '.join(map(str, entries))}")
    root = os.path.commonpath([os.path.dirname(image) for image in images])
    return Part(path, Path(root), classes, tuple(os.path.relpath(one, root) for one in images))


def listed_images(place: Path) -> list[str]:
    """Absolute paths of the images in a folder, or of those that a .txt lists."""
    if place.is_dir():
        wanted = image_extensions()
        found = (one for one in sorted(place.rglob("*")) if one.suffix.lower() in wanted)
        return [os.path.abspath(one) for one in found]
    lines = place.read_text(encoding="utf-8-sig").splitlines()
    return [os.path.abspath(place.parent / line.strip()) for line in lines if line.strip()]


def labels_of(image: str) -> Path:
    """The .txt of an image: in the folder labels/ for images/, or beside it."""
    folder, slash, name = image.rpartition("/images/")
    beside = Path(image).with_suffix(".txt")
    if not slash or beside.is_file():
        return beside
    return (Path(folder) / "labels" / name).with_suffix(".txt")


def read(part: Part, classes: Sequence[str] | None = None) -> Annotated:
    """The images and objects of a set.

    Args:
        part: where they are.
        classes: those of the training set, for a validation set; None takes the set's.

    Raises:
        UserError: no image is there, or none has a file of labels.
    """
    findings = Findings()
    names = part.names or ()
    without = [name for name in names if not labels_of(str(part.images / name)).is_file()]
    if len(without) == len(names):
        place = labels_of(str(part.images / names[0]))
        raise UserError(
            f"none of the {len(names)} images that {part.annotations} names has labels: such as "
            f"{place}, which is not there"
        )
    for name in without:
        findings.add("images without a file of labels, used as images without objects", name)
    own = part.classes if classes is None else classes
    return gather(part.images, describe(part, names, findings), own, findings)


def describe(part: Part, names: Sequence[str], findings: Findings) -> Iterator[Listed]:
    """Each image with its objects; one whose sides cannot be read is not described: it is bad."""
    for name in names:
        path = part.images / name
        try:
            height, width = inspect(path.read_bytes())
        except (BadImage, OSError):
            yield Listed(name, None, [])  # the scan names it
            continue
        labels = labels_of(str(path))
        found = []
        if labels.is_file():
            text = labels.read_text(encoding="utf-8-sig", errors="replace")
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    where = f"line {number} of its labels"
                    one = object_of(line.split(), where, part.classes, (height, width))
                    if one is None:
                        findings.add("lines that are no labels, left out", name, where)
                    else:
                        found.append(one)
        yield Listed(name, (height, width), found)


def object_of(
    words: list[str], where: str, classes: tuple[str, ...], size: tuple[int, int]
) -> Found | None:
    """The object of a line; None where it is no box and no polygon of finite numbers."""
    try:
        number, *values = (float(word) for word in words)
        label = classes[int(number)] if 0 <= number < len(classes) else None
    except ValueError:
        return None
    sides = np.array([size[1], size[0]])
    if not np.isfinite(values).all() or len(values) < BOX - 1 or len(values) % 2:
        return None
    points = np.array(values).reshape(-1, 2) * sides
    if len(words) > BOX:
        return Found(where, label, None, (points.astype(np.float32),))
    low, high = points[0] - points[1] / 2, points[0] + points[1] / 2
    return Found(where, label, (low[0], low[1], high[0], high[1]))
