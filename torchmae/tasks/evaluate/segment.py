"""`mae evaluate` of a segmenter: IoU of each class, with intervals, and the worst images."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.dense.masks import IGNORE
from torchmae.data.dense.segmentation import (
    Example,
    Examples,
    LabelledImages,
    open_labelled,
    stored_classes,
)
from torchmae.errors import printable
from torchmae.eval.intervals import few_to_draw_from
from torchmae.eval.segmentation import Measured, Predictor, SegmentationScores, measure, overlaps
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.models.weights import load_segmenter
from torchmae.report.confusion import draw_confusion
from torchmae.report.segmentation import colored, draw_sheet, overlay
from torchmae.report.sheet import three_bands
from torchmae.runfolder import CONFUSION, WORST, add_classes, read_config
from torchmae.settings.groups import test_as_run
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

SHOWN = 8  # of the worst images


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
    draw_worst(model, images, found, predict, pictures[1])
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


def draw_worst(
    model: Segmenter, images: LabelledImages, found: Measured, predict: Predictor, path: Path
) -> None:
    """Draws the images with the lowest mean IoU: image, labels, prediction, errors."""
    iou, _ = overlaps(np.stack(found.tally.areas))
    labelled = np.array([one[2].sum() > 0 for one in found.tally.areas])
    score = np.where(labelled, np.nan_to_num(np.nanmean(np.where(labelled[:, None], iou, 0), 1)), 2)
    order = [i for i in np.argsort(score, kind="stable").tolist() if labelled[i]][:SHOWN]
    device = next(model.parameters()).device
    rows: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("image", "labels", "predicted", "wrong")
    }
    examples = Examples(images.source, images.labels)
    for i in order:
        example = examples[found.ids[i]]
        assert isinstance(example, Example) and example.labels is not None  # it was measured
        predicted = predict(example.image.unsqueeze(0).to(device))[0][0].cpu()
        labels = example.labels
        wrong = (labels != predicted).to(torch.uint8).masked_fill(labels == IGNORE, IGNORE)
        image = example.image
        rows["image"].append(three_bands(image))
        rows["labels"].append(colored(labels, model.colors))
        rows["predicted"].append(colored(predicted, model.colors))
        rows["wrong"].append(overlay(image, wrong, [(0, 0, 0), (230, 30, 30)], clear=(0,)))
    names = [f"{score[i]:.0%} {Path(images.source.name(found.ids[i])).name}" for i in order]
    notes = ["Mean IoU of each image over its classes. White: ignored."]
    draw_sheet(rows, f"The worst {len(order)} of {len(found.ids)} images", names, notes, path)
