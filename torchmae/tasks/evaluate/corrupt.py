"""`mae evaluate --corrupt`: how much of a classifier's accuracy is left on corrupted images."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchmae.data.corruptions import CHANNELS, VARIANTS, Corrupted
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.eval.extract import (
    ImageBatches,
    classes_of,
    collect_batches,
    image_batches,
    of_variants,
    say_view,
)
from torchmae.eval.robustness import corrupted_scores
from torchmae.models.heads import Classifier
from torchmae.report.experiments.corruptions import (
    corruption_table,
    draw_corruptions,
    draw_examples,
)
from torchmae.runfolder import CORRUPTED, CORRUPTIONS
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.tasks.evaluate.images import among_of, open_labelled

logger = logging.getLogger(__name__)

LARGEST_ITEM = 32 << 20  # bytes: images with all their variants, which processes hand over


def measure_corrupted(config: Evaluate, model: Classifier, device: torch.device) -> dict[str, Any]:
    """The results of --corrupt; draws corruptions.png and corrupted.png."""
    channels = model.encoder.channels
    if channels not in CHANNELS:
        raise UserError(
            f"--corrupt: corruptions are defined for images of 1 or 3 channels, {config.run} takes "
            f"{channels}"
        )
    source, labels = open_labelled(config, model.classes, config.data)
    if source.dtype != "uint8":
        raise UserError(f"--corrupt: corruptions are defined for 8-bit images, not {source.dtype}")
    say_view(source, config.run)
    images = corrupted_batches(image_batches(source, model.encoder, config.run), config.seed)
    logger.info(f"{len(source):,} images, each in {len(VARIANTS)} variants")
    among = among_of(labels, len(model.classes)) if config.among else None
    functions = [of_variants(classes_of(model, device, among))]
    ids, (said,), bad = collect_batches(images, functions, device, "corrupted")
    for file in bad:
        logger.info(f"skipped: {file}")
    found = corrupted_scores(said, labels[ids])
    title = f"{Path(config.data).name}: {found['count']} images, {found['top1']:.1%} clean"
    scores, examples = (Path(config.run) / name for name in (CORRUPTIONS, CORRUPTED))
    draw_corruptions(found, scores, title)
    draw_examples(first_variants(images, ids[0]), examples, source.name(ids[0]))
    logger.info(
        f"{corruption_table(found)}\n{found['count']} images: clean {found['top1']:.1%} (95 % "
        f"interval {found['low']:.1%} to {found['high']:.1%}), corrupted "
        f"{found['mean_corrupted']:.1%} on average"
    )
    logger.info(f"Drawn: {scores}, {examples}")
    return found


def corrupted_batches(images: ImageBatches, seed: int) -> ImageBatches:
    """The same images in all variants, so many at a time that they fit into memory."""
    crop = images.transform
    assert isinstance(crop, CenterCropResize)
    each = len(VARIANTS) * images.source.channels * math.prod(crop.size)
    batch_size = max(1, min(images.batch_size, LARGEST_ITEM // each))
    return replace(images, transform=Corrupted(crop, seed), batch_size=batch_size)


def first_variants(images: ImageBatches, sample: int) -> torch.Tensor:
    """The variants of one image, by its number, [V, C, H, W]."""
    ((ids, made, _),) = replace(images, batch_size=1)[sample]
    assert ids == [sample]
    return made[0]
