"""`mae evaluate` of a detector: AP of each class and size, with intervals, and the worst images."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.dense.detection import open_annotated, other_sizes
from torchmae.data.sources.source import with_decode
from torchmae.errors import UserError, library, printable
from torchmae.eval.detection import (
    SURE,
    DetectionScores,
    all_scores,
    detail,
    measure,
    worst_images,
)
from torchmae.eval.intervals import few_to_draw_from
from torchmae.models.weights import load_detector
from torchmae.report.sheets.worst import draw_worst_objects
from torchmae.runfolder import WORST, add_classes
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def measure_detector(config: Evaluate) -> dict[str, Any]:
    """The results on annotated images; draws worst.png."""
    config.refuse_flags_of_classifiers()
    config.refuse_flags_of_segmenters()
    library("faster_coco_eval", "detection")
    model = load_detector(config.run, config.best)
    device = find_device(config.runtime.device)
    decode = decode_as_run(config.run, config.decode)
    listing = listing_as_run(config.listing, config.data, config.run)
    images, note = open_annotated(config.data, decode, model.classes, listing)
    decode = replace(images.source.decode, channels=model.encoder.channels)
    images = replace(images, source=with_decode(images.source, decode))
    for line in filter(None, (note, images.source.left_out)):
        logger.info(line)
    unfit = set(other_sizes(images))
    fit = [i for i in range(len(images.objects)) if i not in unfit]
    if not fit:
        raise UserError(f"no image of {config.data} is of the size that its annotations say")
    images = images.select(fit) if unfit else images
    if few := few_to_draw_from(len(fit)):
        logger.info(few)
    found = measure(model.to(device).predict, images, device)
    for line in images.findings.lines():
        logger.info(line)
    for file in [*images.source.unusable, *found.bad]:
        logger.info(f"skipped: {file}")
    masks = model.has_masks and images.has_masks
    scores = all_scores(found, model.classes, masks, model.max_detections)
    logger.info(table(scores, model.classes))
    add_classes(Path(config.run), "evaluate", detail(scores, f"mae evaluate on {config.data}"))
    path = Path(config.run) / WORST
    worst = worst_images(found, len(model.classes), SURE)
    draw_worst_objects(images, model, worst, SURE, len(found.ids), path)
    logger.info(f"Drawn: {path}")
    return {kind: one.summary() for kind, one in scores.items()}


def table(scores: dict[str, DetectionScores], classes: tuple[str, ...]) -> str:
    """The scores for people: a line for each class, worst first, then sizes, then all together."""
    first = next(iter(scores.values()))
    width = max(len(printable(name)) for name in (*classes, "medium"))
    lines = [f"{'class':<{width}}" + "".join(f"  AP {kind:<6}" for kind in scores)]
    for name in sorted(first.by_class, key=lambda one: first.by_class[one]):
        row = "".join(f"  {one.by_class[name]:9.1%}" for one in scores.values())
        lines.append(f"{printable(name):<{width}}{row}")
    for name in first.by_size:
        row = "".join(f"  {one.by_size[name]:9.1%}" for one in scores.values())
        lines.append(f"{name:<{width}}{row}")
    absent = [printable(name) for name in classes if name not in first.by_class]
    if absent:
        lines.append(f"no object of: {', '.join(absent)}")
    for kind, one in scores.items():
        lines.append(
            f"{one.images} images, {one.objects} objects, {kind}: AP {one.ap:.1%} (95 % interval "
            f"{one.low:.1%} to {one.high:.1%}, bootstrap over images), AP50 {one.ap50:.1%}, AP75 "
            f"{one.ap75:.1%}, AR {one.recall:.1%}; {one.max_detections} detections an image"
        )
    return "\n".join(lines)
