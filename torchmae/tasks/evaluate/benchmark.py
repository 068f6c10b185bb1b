"""`mae evaluate --benchmark`: published sets, scored as published, beside the paper's numbers."""

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchmae.data.corruptions import CORRUPTIONS, STRENGTHS
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.eval.extract import classes_of, collect_batches, image_batches
from torchmae.eval.robustness import corruption_errors
from torchmae.models.heads import Classifier
from torchmae.report.experiments.corruptions import corruption_table, draw_corruptions
from torchmae.runfolder import CORRUPTIONS as PICTURE
from torchmae.settings.options import changed
from torchmae.tasks.evaluate.config import BENCHMARKS, IMAGENET_C, Evaluate
from torchmae.tasks.evaluate.images import among_of, numbers_of, open_labelled, rename_classes
from torchmae.tasks.evaluate.once import measure_once
from torchmae.train.speed import duration

logger = logging.getLogger(__name__)


def measure_benchmark(config: Evaluate, model: Classifier, device: torch.device) -> dict[str, Any]:
    """The results on the set that --benchmark names."""
    assert config.benchmark is not None
    benchmark = BENCHMARKS[config.benchmark]
    if config.benchmark == IMAGENET_C:
        found = measure_imagenet_c(config, model, device)
        score = f"mCE {100 * found['mce']:.1f}, mean error {found['mean_error']:.1%}"
    else:
        found = measure_once(changed(config, among=config.among or benchmark.among), model, device)
        score = f"top 1 {found['top1']:.1%}"
        there = len(found["per_class"])
        if there != benchmark.classes:
            logger.info(
                f"note: {config.benchmark} has {benchmark.classes:,} classes, {config.data} {there}"
            )
    paper = ", ".join(f"{size} {value}" for size, value in benchmark.paper.items())
    logger.info(
        f"{config.benchmark}: {score}. The MAE paper (Table 13) has {benchmark.score} in %: {paper}"
    )
    return found


def measure_imagenet_c(config: Evaluate, model: Classifier, device: torch.device) -> dict[str, Any]:
    """The errors on ImageNet-C, and that of AlexNet's; draws corruptions.png.

    The images of the set are center crops already: all of each is seen, whatever the run's
    crop_pct.
    """
    folders = corruption_folders(config.data)
    refuse_strange_classes(config, folders, model.classes)
    accuracies: dict[str, list[float]] = {name: [] for name in folders}
    count, began = 0, time.monotonic()
    for done, (name, folder) in enumerate(folders.items(), 1):
        for strength in STRENGTHS:
            source, labels = open_labelled(config, model.classes, str(folder / str(strength)))
            images = image_batches(source, model.encoder, config.run)
            images = replace(images, transform=CenterCropResize(model.encoder.image_size))
            among = among_of(labels, len(model.classes)) if config.among else None
            functions = [classes_of(model, device, among)]
            title = f"{name} {strength}"
            ids, (said,), bad = collect_batches(images, functions, device, title)
            for file in bad:
                logger.info(f"skipped: {name}/{strength}/{file}")
            accuracies[name].append(float((said == labels[ids]).double().mean()))
            count += len(ids)
        left = duration((time.monotonic() - began) / done * (len(folders) - done))
        logger.info(
            f"{name}: {sum(accuracies[name]) / len(STRENGTHS):.1%} ({done} of {len(folders)}"
            f"{f', about {left} left' * (done < len(folders))})"
        )
    found = {"count": count, **corruption_errors(accuracies)}
    picture = Path(config.run) / PICTURE
    draw_corruptions(found, picture, f"ImageNet-C: mCE {100 * found['mce']:.1f}")
    logger.info(f"{corruption_table(found)}\nDrawn: {picture}")
    return found


def corruption_folders(data: str) -> dict[str, Path]:
    """The folder of each corruption, below DATA or below a folder in it (as noise/, blur/, ...).

    Raises:
        UserError: some corruption or strength is not there.
    """
    root = Path(data).expanduser()
    found: dict[str, Path] = {}
    for name in CORRUPTIONS:
        places = [root / name, *sorted(root.glob(f"*/{name}"))]
        found[name] = next((place for place in places if place.is_dir()), root / name)
    missing = [
        f"{name}/{strength}"
        for name, folder in found.items()
        for strength in STRENGTHS
        if not (folder / str(strength)).is_dir()
    ]
    if missing:
        raise UserError(
            f"{data} has no folder {missing[0]} ({len(missing)} of "
            f"{len(CORRUPTIONS) * len(STRENGTHS)} are missing): --benchmark imagenet-c needs "
            "CORRUPTION/STRENGTH/CLASS/*.JPEG for all, as they are published (blur.tar, ...)"
        )
    return found


def refuse_strange_classes(
    config: Evaluate, folders: dict[str, Path], classes: tuple[str, ...]
) -> None:
    """Raises UserError for a class folder that the classifier does not know, before any image is
    read."""
    names: set[str] = set()
    for folder in folders.values():
        for strength in STRENGTHS:
            with os.scandir(folder / str(strength)) as entries:
                names |= {entry.name for entry in entries if entry.is_dir()}
    numbers_of(rename_classes(sorted(names), config.class_map), classes)
