"""worst.png: the images that a segmenter or a detector gets most wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from torchmae.data.decode import BadImage
from torchmae.data.dense.annotated import Annotated
from torchmae.data.dense.detection import Detections
from torchmae.data.dense.masks import IGNORE
from torchmae.data.dense.objects import Objects
from torchmae.data.dense.segmentation import Example, Examples, LabelledImages
from torchmae.data.loader import read_pixels
from torchmae.data.transforms import as_tensor
from torchmae.models.detection.detector import Detector
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.report.detection import draw_found, draw_objects
from torchmae.report.segmentation import colored, draw_sheet, overlay
from torchmae.report.sheet import three_bands


def draw_worst_maps(
    images: LabelledImages,
    model: Segmenter,
    worst: Sequence[tuple[float, int, UInt8[Tensor, "_H _W"]]],
    count: int,
    path: Path,
) -> None:
    """Draws images, their labels, predictions and errors.

    Args:
        images: the set.
        model: it has the colors.
        worst: mean IoU, number in the set and prediction of each.
        count: images that were measured on.
        path: the picture.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in ("image", "labels", "predicted", "wrong")}
    names, examples = [], Examples(images.source, images.labels)
    for score, number, predicted in worst:
        example = examples[number]
        if not isinstance(example, Example) or example.labels is None:
            continue  # it was there a moment ago
        image, labels = example.image, example.labels
        wrong = (labels != predicted).to(torch.uint8).masked_fill(labels == IGNORE, IGNORE)
        rows["image"].append(three_bands(image))
        rows["labels"].append(colored(labels, model.colors))
        rows["predicted"].append(colored(predicted, model.colors))
        rows["wrong"].append(overlay(image, wrong, [(0, 0, 0), (230, 30, 30)], clear=(0,)))
        names.append(f"{score:.0%} {Path(images.source.name(number)).name}")
    notes = ["Mean IoU of each image over its classes. White: ignored."]
    draw(rows, names, notes, count, path)


def draw_worst_objects(
    images: Annotated,
    model: Detector,
    worst: Sequence[tuple[float, int, Objects, Detections]],
    sure: float,
    count: int,
    path: Path,
) -> None:
    """Draws what is on images and what was found there.

    Args:
        images: the set.
        model: it has the classes.
        worst: F score, number in the set, objects and detections of each.
        sure: the score from which on a detection counts.
        count: images that were measured on.
        path: the picture.
    """
    rows: dict[str, list[Tensor]] = {"objects": [], "found": []}
    names = []
    for score, number, objects, found in worst:
        try:
            image = as_tensor(np.array(read_pixels(images.source, number)))
        except BadImage:  # it was there a moment ago
            continue
        captions = [model.classes[k] for k in objects.classes.tolist()]
        masks = objects.masks if model.has_masks else ()
        own = len(model.classes) == 1
        drawn = draw_objects(image, objects.boxes, objects.classes, captions, masks, own)
        rows["objects"].append(drawn)
        rows["found"].append(draw_found(image, found, model.classes, sure))
        names.append(f"{score:.0%} {Path(images.source.name(number)).name}")
    notes = [
        f"F score of each image: objects found at an overlap of 50 % by detections with a score of "
        f"{sure:g} and more. Of one class, colors tell objects apart."
    ]
    draw(rows, names, notes, count, path)


def draw(
    rows: dict[str, list[Tensor]], names: list[str], notes: list[str], count: int, path: Path
) -> None:
    """Draws the rows; an earlier picture goes where there is nothing to draw."""
    if names:
        draw_sheet(rows, f"The worst {len(names)} of {count} images", names, notes, path)
    else:
        path.unlink(missing_ok=True)
