"""The labelled images that a classifier is evaluated on, in its own classes."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import labelled, open_pair
from torchmae.data.sources.source import Source
from torchmae.disk import parse_json
from torchmae.errors import UserError
from torchmae.eval.intervals import few_images
from torchmae.runfolder import read_config
from torchmae.tasks.evaluate.config import Evaluate

logger = logging.getLogger(__name__)


def open_labelled(
    config: Evaluate, classes: Sequence[str], data: str
) -> tuple[Source, Int64[Tensor, " N"]]:
    """The images of a set that have labels, and the numbers of their classes.

    Args:
        config: how they are listed and decoded, and how their classes are called.
        classes: the names of the classifier's classes.
        data: the set; of one with a split, its validation part is taken.

    Raises:
        UserError: there are no labels, or the classifier does not know a class.
    """
    decode = decode_as_run(config.run, config.decode)
    listing = listing_as_run(config.listing, data, config.run)
    everything, held_out = open_pair(data, None, decode, listing)
    if held_out is not None:
        logger.info(f"{data} brings its own split: measured on its validation part")
    elif read_config(config.run)["config"].get("data") == data:
        logger.info(
            f"note: {config.run} was trained on images of {data}: "
            "its own training images are among these"
        )
    images, names = labelled(held_out or everything, data)
    if images.left_out:
        logger.info(images.left_out)
    if few := few_images(len(images)):
        logger.info(few)
    return images, numbers_of(rename_classes(names, config.class_map), classes)


def numbers_of(names: Sequence[str], classes: Sequence[str]) -> Int64[Tensor, " N"]:
    """The numbers of classes; UserError for a name that is none."""
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(names) - set(number))
    if unknown:
        raise UserError(
            f"class '{unknown[0]}' ({len(unknown)} in all) is not one of the classifier's "
            f"{len(number)}: {', '.join(classes[:5])}, ...; "
            "name the pairs in a JSON file for --class-map"
        )
    return torch.tensor([number[name] for name in names])


def among_of(labels: Int64[Tensor, " N"], count: int) -> Bool[Tensor, " classes"]:
    """Which of so many classes occur in labels."""
    found = torch.zeros(count, dtype=torch.bool)
    found[labels] = True
    return found


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
