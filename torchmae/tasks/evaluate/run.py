"""`mae evaluate`: how good a classifier, a segmenter or a detector is on labelled images."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchmae.models.weights import load_classifier
from torchmae.report.html.run import write_report
from torchmae.runfolder import add_result, kind_of, read_config
from torchmae.settings.options import check_ranges, flatten
from torchmae.tasks.evaluate.benchmark import measure_benchmark
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.tasks.evaluate.corrupt import measure_corrupted
from torchmae.tasks.evaluate.detect import measure_detector
from torchmae.tasks.evaluate.once import measure_once
from torchmae.tasks.evaluate.segment import measure_segmenter
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

# Of what a run folder holds; of anything else `load_classifier` says what is missing.
MEASURES: dict[str, Callable[[Evaluate], dict[str, Any]]] = {
    "segmenter": measure_segmenter,
    "detector": measure_detector,
}


def run(config: Evaluate) -> dict[str, Any]:
    """Measures, adds the scores to results.json of the run, and draws them.

    Returns:
        The settings and the scores: "top1", "top5" (of more than 5 classes), "low", "high", ...;
        of a segmenter "miou", "low", "high", "iou", ...; of a detector those of "boxes" and
        "masks", each with "ap", "low", "high", ...; with --corrupt those of
        `torchmae.eval.robustness.corrupted_scores`, on ImageNet-C those of `corruption_errors`
        there.
    """
    check_ranges(config)
    config.check()
    measure = MEASURES.get(kind_of(read_config(config.run)), measure_classifier)
    results = measure(config)
    path = add_result(Path(config.run), "evaluate", flatten(config), results)
    write_report(Path(config.run))
    logger.info(f"Written to {path}")
    return {**flatten(config), **results}


def measure_classifier(config: Evaluate) -> dict[str, Any]:
    """The results of a classifier."""
    model = load_classifier(config.run, config.best)
    device = find_device(config.runtime.device)
    if config.benchmark is not None:
        return measure_benchmark(config, model, device)
    measure = measure_corrupted if config.corrupt else measure_once
    return measure(config, model, device)
