"""`mae evaluate`: how good a fine-tuned classifier is on labelled images."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from torchmae.data.labels import labelled, open_pair
from torchmae.errors import UserError
from torchmae.eval.classification import scores
from torchmae.eval.extract import collect, logits_of
from torchmae.models.weights import load_classifier
from torchmae.report.confusion import draw_confusion
from torchmae.runfolder import add_result, read_config
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Evaluate) -> dict[str, Any]:
    """Prints the scores, adds them to `results.json` of the run, draws `confusion.png`, and gives the scores."""
    model, device = load_classifier(config.run, config.best), find_device(config.device)
    whole, held_out = open_pair(config.data, None)
    if held_out is not None:
        logger.info(f"{config.data} brings its own split: measured on its validation part")
    elif read_config(config.run)["config"].get("data") == config.data:
        logger.info(
            f"note: {config.run} was trained on images of {config.data}: its own training images are among these"
        )
    images, names = labelled(held_out or whole, config.data)
    names = mapped(names, config.class_map)
    number = {name: i for i, name in enumerate(model.classes)}
    strange = sorted(set(names) - set(number))
    if strange:
        raise UserError(
            f"class '{strange[0]}' ({len(strange)} in all) is not one of the classifier's {len(number)}: "
            f"{', '.join(model.classes[:5])}, ...; name the pairs in a JSON file for --class-map"
        )
    ids, (logits,), bad = collect(
        images, model.encoder, config.run, [logits_of(model, device)], device
    )
    for name, reason in bad:
        logger.info(f"left out: {name}: {reason}")
    labels = torch.tensor([number[names[i]] for i in ids])
    if config.among:
        absent = torch.tensor([name not in set(names) for name in model.classes])
        logits = logits.masked_fill(absent, -torch.inf)
    found = scores(logits, labels, model.classes)
    out = Path(config.run)
    title = f"{Path(config.data).name}: {found.count} images, {found.top1:.1%}"
    draw_confusion(found.confusion, model.classes, out / "confusion.png", title)
    path = add_result(out, "evaluate", asdict(config), found.summary())
    worst = sorted(found.per_class.items(), key=lambda pair: pair[1])[:3]
    logger.info(
        f"{found.count} images{', weights of the best epoch' if config.best else ''}: top 1 {found.top1:.1%} "
        f"(95 % interval {found.low:.1%} to {found.high:.1%}), "
        f"top 5 {found.top5:.1%}, calibration error {found.calibration_error:.3f}\n"
        f"weakest classes: {', '.join(f'{name} {share:.1%}' for name, share in worst)}\n"
        f"Written to {path} and {out / 'confusion.png'}"
    )
    return {**asdict(config), **found.summary()}


def mapped(names: list[str], path: str | None) -> list[str]:
    """Class names of the data as those of the classifier."""
    if path is None:
        return names
    try:
        pairs = json.loads(Path(path).read_text())
        return [str(pairs.get(name, name)) for name in names]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--class-map {path}: a JSON object of names is needed ({error})"
        ) from error
