"""Tiny annotated sets: rectangles and disks drawn on noise, as COCO, YOLO or VOC."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from torchmae.data.dense.objects import encode_rle, text_of_counts

CLASSES = ("box", "disk")


def draw(seed: int, height: int = 48, width: int = 64, most: int = 3, least: int = 0):
    """An image with some objects.

    Returns:
        Pixels uint8 [H, W, 3], and class, box (x1 y1 x2 y2), mask of each object.
    """
    random = np.random.default_rng(seed)
    image = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width] + 0.5
    found = []
    for _ in range(random.integers(least, most + 1)):
        w, h = random.integers(12, 24, 2)
        x, y = random.integers(0, width - w), random.integers(0, height - h)
        number = int(random.integers(2))
        mask = (rows > y) & (rows < y + h) & (columns > x) & (columns < x + w)
        if number:
            mask &= ((rows - y - h / 2) / h) ** 2 + ((columns - x - w / 2) / w) ** 2 < 0.25
        image[mask] = (200, 60, 60) if number else (60, 200, 60)
        found.append((number, (float(x), float(y), float(x + w), float(y + h)), mask))
    return image, found


def coco_set(folder: Path, counts: dict[str, int], masks: str = "rle", **sizes) -> Path:
    """A folder with annotations/instances_{train,val}.json and images/.

    Args:
        folder: made here.
        counts: how many images each set has.
        masks: "rle", "polygons" (the box's corners) or "" for none.
        sizes: arguments of `draw`.
    """
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    seed = 0
    for name, count in counts.items():
        images, annotations = [], []
        for _ in range(count):
            seed += 1
            image, objects = draw(seed, **sizes)
            Image.fromarray(image).save(folder / "images" / f"{seed:03d}.png")
            height, width = image.shape[:2]
            images.append(dict(id=seed, file_name=f"{seed:03d}.png", height=height, width=width))
            for number, (x1, y1, x2, y2), mask in objects:
                one = dict(
                    id=len(annotations) + 1,
                    image_id=seed,
                    category_id=10 * number + 1,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=float(mask.sum()) if masks else (x2 - x1) * (y2 - y1),
                    iscrowd=0,
                )
                if masks == "rle":
                    rle = encode_rle(mask)
                    text = text_of_counts(rle.counts)
                    one["segmentation"] = dict(size=[height, width], counts=text)
                elif masks:
                    one["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
                annotations.append(one)
        write_coco(folder / "annotations" / f"instances_{name}.json", images, annotations)
    return folder


def write_coco(path: Path, images: list, annotations: list, classes=CLASSES) -> Path:
    """A json with the classes' ids 1, 11, 21, ..."""
    categories = [dict(id=10 * i + 1, name=name) for i, name in enumerate(classes)]
    content = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(content))
    return path


def yolo_set(folder: Path, counts: dict[str, int], **sizes) -> Path:
    """A folder with data.yaml, images/{train,val} and labels/{train,val}: boxes."""
    seed = 0
    for name, count in counts.items():
        (folder / "images" / name).mkdir(parents=True)
        (folder / "labels" / name).mkdir(parents=True)
        for _ in range(count):
            seed += 1
            image, objects = draw(seed, **sizes)
            Image.fromarray(image).save(folder / "images" / name / f"{seed:03d}.png")
            height, width = image.shape[:2]
            lines = [
                f"{number} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
                f"{(x2 - x1) / width} {(y2 - y1) / height}"
                for number, (x1, y1, x2, y2), _ in objects
            ]
            (folder / "labels" / name / f"{seed:03d}.txt").write_text("\n".join(lines))
    entries = "\n".join(f"{name}: images/{name}" for name in counts)
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"{entries}\nnames:\n{names}\n")
    return folder
