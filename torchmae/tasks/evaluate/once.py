"""`mae evaluate` on images as they are: accuracy, calibration, confusion."""

import logging
from pathlib import Path
from typing import Any

import torch

from torchmae.errors import printable
from torchmae.eval.baselines import not_above_commonest
from torchmae.eval.classification import Scores, scores
from torchmae.eval.extract import collect, logits_of, say_view
from torchmae.models.heads import Classifier
from torchmae.report.confusion import draw_confusion
from torchmae.report.mistakes import draw_mistakes
from torchmae.runfolder import CONFUSION, MISTAKES, add_classes
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.tasks.evaluate.images import among_of, open_labelled

logger = logging.getLogger(__name__)


def measure_once(config: Evaluate, model: Classifier, device: torch.device) -> dict[str, Any]:
    """The results on the images as they are; draws confusion.png and mistakes.png."""
    images, of_all = open_labelled(config, model.classes, config.data)
    say_view(images, config.run)
    ids, (logits,), bad = collect(
        images, model.encoder, config.run, [logits_of(model, device)], device
    )
    for file in bad:
        logger.info(f"skipped: {file}")
    labels = of_all[ids]
    if config.among:
        logits = logits.masked_fill(~among_of(of_all, len(model.classes)), -torch.inf)
    found = scores(logits, labels, model.classes)
    picture = Path(config.run) / CONFUSION
    title = f"{Path(config.data).name}: {found.count} images, {found.top1:.1%}"
    draw_confusion(found.confusion, model.classes, picture, title)
    logger.info(f"{describe(found, config.best)}{not_above_commonest(found.low, labels)}")
    size, mistakes = model.encoder.image_size, Path(config.run) / MISTAKES
    detail = found.detail(f"mae evaluate on {config.data}", model.classes)
    add_classes(Path(config.run), "evaluate", detail)
    wrong = draw_mistakes(images, ids, logits, labels, model.classes, size, mistakes)
    logger.info(f"Drawn: {picture}{f', {mistakes}' if wrong else ''}")
    return found.summary()


def describe(found: Scores, best: bool) -> str:
    """The scores as text; `best`: of the weights of the best epoch."""
    top5 = "" if found.top5 is None else f"top 5 {found.top5:.1%}, "
    worst = sorted(found.per_class.items(), key=lambda pair: pair[1])[:3]
    return (
        f"{found.count} images{', weights of the best epoch' if best else ''}: "
        f"top 1 {found.top1:.1%} (95 % interval {found.low:.1%} to {found.high:.1%}), "
        f"{top5}calibration error {found.calibration_error:.3f}\n"
        f"weakest classes: {', '.join(f'{printable(name)} {share:.1%}' for name, share in worst)}"
    )
