"""`mae evaluate`: how good a fine-tuned classifier is on labelled images."""

import logging
from pathlib import Path
from typing import Any

import torch

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import labelled, open_pair
from torchmae.disk import parse_json
from torchmae.errors import UserError, printable
from torchmae.eval.baselines import not_above_commonest
from torchmae.eval.classification import Scores, scores
from torchmae.eval.extract import collect, logits_of, say_view
from torchmae.models.weights import load_classifier
from torchmae.report.confusion import draw_confusion
from torchmae.runfolder import CONFUSION, add_result, read_config
from torchmae.settings.options import check_ranges, flatten
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Evaluate) -> dict[str, Any]:
    """Measures, adds the scores to results.json of the run, and draws confusion.png.

    Returns:
        The settings and the scores: "top1", "top5" (of more than 5 classes), "low", "high", ...
    """
    check_ranges(config)
    model = load_classifier(config.run, config.best)
    device = find_device(config.runtime.device)
    decode = decode_as_run(config.run, config.decode.max_megapixels, config.decode.white)
    listing = listing_as_run(config.listing, config.data, config.run)
    everything, held_out = open_pair(config.data, None, decode, listing)
    if held_out is not None:
        logger.info(f"{config.data} brings its own split: measured on its validation part")
    elif read_config(config.run)["config"].get("data") == config.data:
        logger.info(
            f"note: {config.run} was trained on images of {config.data}: "
            "its own training images are among these"
        )
    images, names = labelled(held_out or everything, config.data)
    if images.left_out:
        logger.info(images.left_out)
    names = rename_classes(names, config.class_map)
    number = {name: i for i, name in enumerate(model.classes)}
    unknown = sorted(set(names) - set(number))
    if unknown:
        raise UserError(
            f"class '{unknown[0]}' ({len(unknown)} in all) is not one of the classifier's "
            f"{len(number)}: {', '.join(model.classes[:5])}, ...; "
            "name the pairs in a JSON file for --class-map"
        )
    say_view(images, config.run)
    ids, (logits,), bad = collect(
        images, model.encoder, config.run, [logits_of(model, device)], device
    )
    for file in bad:
        logger.info(f"skipped: {file}")
    labels = torch.tensor([number[names[i]] for i in ids])
    if config.among:
        absent = torch.tensor([name not in set(names) for name in model.classes])
        logits = logits.masked_fill(absent, -torch.inf)
    found = scores(logits, labels, model.classes)
    picture = Path(config.run) / CONFUSION
    title = f"{Path(config.data).name}: {found.count} images, {found.top1:.1%}"
    draw_confusion(found.confusion, model.classes, picture, title)
    path = add_result(Path(config.run), "evaluate", flatten(config), found.summary())
    logger.info(f"{describe(found, config.best)}{not_above_commonest(found.low, labels)}")
    logger.info(f"Written to {path} and {picture}")
    return {**flatten(config), **found.summary()}


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


def rename_classes(names: list[str], path: str | None) -> list[str]:
    """Class names of the data as those of the classifier, by the JSON file of --class-map."""
    if path is None:
        return names
    try:
        pairs = parse_json(Path(path).read_text())
        return [str(pairs.get(name, name)) for name in names]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--class-map {path}: a JSON object of names is needed ({error})"
        ) from error
