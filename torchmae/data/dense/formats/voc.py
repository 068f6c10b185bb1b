"""Objects in the XML files of PASCAL VOC, one for each image, as labelImg writes them too."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchmae.data.decode import image_extensions
from torchmae.data.dense.annotated import (
    Annotated,
    Findings,
    Found,
    Listed,
    Part,
    gather,
)

FOLDERS = {"train": ("train",), "val": ("val", "valid")}
LARGEST = 1 << 24  # bytes of one .xml


def find(data: Path) -> dict[str, Part]:
    """The sets of a folder: those that ImageSets/Main lists, or train/ and val/ (valid/), or all
    that lies in Annotations/ or beside the images; nothing where there is no .xml of objects."""
    if not data.is_dir():
        return {}
    inner = [path for path in sorted(data.glob("**/Annotations"))[:1] if path.is_dir()]
    annotations = inner[0] if inner else data
    lists = annotations.parent / "ImageSets" / "Main"
    if has_objects(annotations) and (lists / "train.txt").is_file():
        images = images_beside(annotations)
        return {
            name: Part(annotations, images, names=stems(lists / f"{name}.txt"))
            for name in ("train", "val")
            if (lists / f"{name}.txt").is_file()
        }
    parts = {}
    for name, folders in FOLDERS.items():
        for folder in (data / one for one in folders):
            place = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
            if has_objects(place):
                parts[name] = Part(place, images_beside(place))
    if "train" not in parts and has_objects(annotations):
        parts["train"] = Part(annotations, images_beside(annotations))
    return parts if "train" in parts else {}


def has_objects(folder: Path) -> bool:
    """Whether the first .xml of a folder is an annotation."""
    first = next(iter(sorted(folder.glob("*.xml"))), None)
    return first is not None and b"<annotation" in first.read_bytes()[:1024]


def images_beside(annotations: Path) -> Path:
    """The folder of the images that Annotations/ belongs to; another folder holds both."""
    names = ("JPEGImages", "images", "Images")
    beside = (annotations.parent / name for name in names)
    return next((path for path in beside if path.is_dir()), annotations)


def stems(path: Path) -> tuple[str, ...]:
    """The names, without endings, that a list of ImageSets/Main has in its first column."""
    return tuple(line.split()[0] for line in path.read_text().splitlines() if line.strip())


def read(part: Part, classes: Sequence[str] | None = None) -> Annotated:
    """The images and objects of a set.

    Args:
        part: where they are.
        classes: those of the training set, for a validation set; None takes what is there, sorted.

    Raises:
        UserError: no image is there.
    """
    findings = Findings()
    names = part.names
    if names is None:
        names = tuple(path.stem for path in sorted(part.annotations.glob("*.xml")))
    listed = list(describe(part, names, findings))
    if classes is None:
        classes = sorted({one.label for image in listed for one in image.objects if one.label})
    return gather(part.images, listed, classes, findings)


def describe(part: Part, names: Sequence[str], findings: Findings) -> Iterator[Listed]:
    """Each image with its objects."""
    wanted = image_extensions()
    there = {p.stem: p.name for p in sorted(part.images.iterdir()) if p.suffix.lower() in wanted}
    for stem in names:
        path = part.annotations / f"{stem}.xml"
        try:
            root = parse(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            findings.add(
                f"annotations that cannot be read ({reason}), with their image left out", path.name
            )
            continue
        name = root.findtext("filename") or f"{stem}.jpg"
        size = tuple(number(root.find("size"), side) for side in ("height", "width"))
        objects = [object_of(one, f"object {i}") for i, one in enumerate(root.iter("object"), 1)]
        known = all(side is not None and side > 0 for side in size)
        sides = (int(size[0] or 0), int(size[1] or 0)) if known else None
        yield Listed(there.get(stem, name), sides, objects)


def parse(path: Path) -> ElementTree.Element:
    """The tree of an .xml; ValueError for what is none, or defines entities, which may grow without
    end."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST or b"<!ENTITY" in data:
        raise ValueError("too large, or with entities")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError("no XML") from error


def object_of(element: ElementTree.Element, where: str) -> Found:
    """An object; its box is in pixels from 1 to the side, both included."""
    box = element.find("bndbox")
    x1, y1, x2, y2 = (number(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    label = (element.findtext("name") or "").strip() or None
    corners = None
    if x1 is not None and y1 is not None and x2 is not None and y2 is not None:
        corners = (x1 - 1, y1 - 1, x2, y2)
    difficult = number(element, "difficult") == 1
    return Found(where, label, corners, difficult=difficult)


def number(element: ElementTree.Element | None, key: str) -> float | None:
    """The number in an element's child; None where there is none."""
    try:
        return float((element.findtext(key) if element is not None else None) or "")
    except ValueError:
        return None
