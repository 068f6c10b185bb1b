"""`mae evaluate` of a segmenter: IoU of each class, with intervals, and the worst images."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.dense.segmentation import Examples, open_labelled, stored_classes
from torchmae.errors import printable
from torchmae.eval.intervals import few_to_draw_from
from torchmae.eval.segmentation import Predictor, SegmentationScores, measure
from torchmae.models.weights import load_segmenter
from torchmae.report.confusion import draw_confusion
from torchmae.report.sheets.worst import draw_worst_maps
from torchmae.runfolder import CONFUSION, WORST, add_classes, read_config
from torchmae.settings.groups import test_as_run
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def measure_segmenter(config: Evaluate) -> dict[str, Any]:
    """The results on labelled images; draws confusion.png and worst.png."""
    config.refuse_flags_of_classifiers()
    stored = read_config(config.run)
    how = test_as_run(config.test, stored["config"])
    model = load_segmenter(config.run, config.best)
    device = find_device(config.runtime.device)
    decode = decode_as_run(config.run, config.decode)
    listing = listing_as_run(config.listing, config.data, config.run)
    images, note = open_labelled(config.data, decode, stored_classes(stored), listing)
    images = images.with_channels(model.encoder.channels)
    for line in filter(None, (note, images.source.left_out)):
        logger.info(line)
    if few := few_to_draw_from(len(images)):
        logger.info(few)
    predict: Predictor = partial(model.to(device).predict_sure, **how)
    examples = Examples(images.source, images.labels)
    found = measure(predict, examples, len(model.classes), device, config.boundary)
    for file in [*images.left_out, *found.bad]:
        logger.info(f"skipped: {file}")
    scores = found.tally.scores(model.classes)
    logger.info(table(scores, model.classes))
    title = f"{Path(config.data).name}: {scores.count} images, mIoU {scores.miou:.1%}"
    pictures = [Path(config.run) / name for name in (CONFUSION, WORST)]
    detail = scores.detail(f"mae evaluate on {config.data}", model.classes)
    add_classes(Path(config.run), "evaluate", detail)
    draw_confusion(scores.confusion, model.classes, pictures[0], title)
    draw_worst_maps(images, model, found.worst, len(found.ids), pictures[1])
    logger.info(f"Drawn: {', '.join(map(str, pictures))}")
    return {**how, **scores.summary()}


def table(scores: SegmentationScores, classes: tuple[str, ...]) -> str:
    """The scores for people: a line for each class, worst first, then all together."""
    width = max(len(printable(name)) for name in classes)
    share = np.array(scores.confusion).sum(1) / scores.pixels
    of_class = dict(zip(classes, share.tolist()))
    lines = [f"{'class':<{width}}    IoU   Dice  pixels"]
    for name, iou in sorted(scores.iou.items(), key=lambda pair: pair[1]):
        dice = scores.class_dice[name]
        lines.append(f"{printable(name):<{width}}  {iou:5.1%}  {dice:5.1%}  {of_class[name]:6.1%}")
    absent = [printable(name) for name in classes if name not in scores.iou]
    if absent:
        lines.append(f"neither labelled nor predicted: {', '.join(absent)}")
    boundary = (
        "" if scores.boundary_f is None else f", F score of boundaries {scores.boundary_f:.1%}"
    )
    lines.append(
        f"{scores.count} images: mIoU {scores.miou:.1%} (95 % interval {scores.low:.1%} to "
        f"{scores.high:.1%}, bootstrap over images), Dice {scores.dice:.1%}, pixel accuracy "
        f"{scores.pixel_accuracy:.1%}{boundary}, calibration error "
        f"{scores.calibration_error:.3f}"
    )
    return "\n".join(lines)
