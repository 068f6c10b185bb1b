"""`mae evaluate`: how good a fine-tuned classifier is on labelled images."""

import logging
from pathlib import Path
from typing import Any

from torchmae.models.weights import load_classifier
from torchmae.report.html.run import write_report
from torchmae.runfolder import add_result
from torchmae.settings.options import check_ranges, flatten
from torchmae.tasks.evaluate.benchmark import measure_benchmark
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.tasks.evaluate.corrupt import measure_corrupted
from torchmae.tasks.evaluate.once import measure_once
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Evaluate) -> dict[str, Any]:
    """Measures, adds the scores to results.json of the run, and draws them.

    Returns:
        The settings and the scores: "top1", "top5" (of more than 5 classes), "low", "high", ...;
        with --corrupt those of `torchmae.eval.robustness.corrupted_scores`, on ImageNet-C those of
        `corruption_errors` there.
    """
    check_ranges(config)
    config.check()
    model = load_classifier(config.run, config.best)
    device = find_device(config.runtime.device)
    if config.benchmark is not None:
        results = measure_benchmark(config, model, device)
    else:
        measure = measure_corrupted if config.corrupt else measure_once
        results = measure(config, model, device)
    path = add_result(Path(config.run), "evaluate", flatten(config), results)
    write_report(Path(config.run))
    logger.info(f"Written to {path}")
    return {**flatten(config), **results}
