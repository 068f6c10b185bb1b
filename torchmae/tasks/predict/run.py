"""`mae predict`: the classes of images, with probabilities, in a file; of pixels in pictures;
objects in COCO's and YOLO's formats."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from torchmae.data.sources.source import distinct
from torchmae.errors import printable
from torchmae.eval.extract import collect, logits_of, say_view
from torchmae.models.weights import load_classifier
from torchmae.report.tables import Column, check_table, write_table
from torchmae.runfolder import kind_of, read_config
from torchmae.settings.options import check_ranges
from torchmae.tasks.predict.config import Predict
from torchmae.tasks.predict.detect import predict_objects
from torchmae.tasks.predict.images import open_data
from torchmae.tasks.predict.segment import predict_labels
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

MOST_SHOWN = 20  # images: of more, the file is what one looks at


def run(config: Predict) -> Path:
    """Writes what a model says of all readable images, and returns the file or folder."""
    check_ranges(config)
    return PREDICTIONS.get(kind_of(read_config(config.run)), predict_classes)(config)


# Of what a run folder holds; of anything else `load_classifier` says what is missing.
PREDICTIONS: dict[str, Callable[[Predict], Path]] = {
    "segmenter": predict_labels,
    "detector": predict_objects,
}


def predict_classes(config: Predict) -> Path:
    """Writes the classes of all readable images, and returns the file."""
    out = Path(config.out or "predictions.csv")
    check_table(out, (".csv", ".parquet"))
    model = load_classifier(config.run, config.best)
    device = find_device(config.runtime.device)
    source = open_data(config)
    if source.left_out:
        logger.info(source.left_out)
    say_view(source, config.run)
    ids, (logits,), bad = collect(
        source, model.encoder, config.run, [logits_of(model, device)], device
    )
    for file in [*source.unusable, *bad]:
        logger.info(f"skipped: {file}")
    replaced = " (in place of an earlier one)" if out.exists() else ""
    names = [source.name(i) for i in ids]
    columns = prediction_columns(names, logits.softmax(1).numpy(), distinct(model.classes))
    write_table(out, columns, digits=6)
    if len(names) <= MOST_SHOWN:
        logger.info("\n".join(shown(names, logits.softmax(1), distinct(model.classes))))
    logger.info(f"Written to {out}{replaced}: {len(ids)} images, {len(model.classes)} classes")
    return out


def shown(
    names: list[str], probabilities: Float[Tensor, "N classes"], classes: list[str]
) -> list[str]:
    """A line for each image: the most probable classes, up to three, in percent."""
    best = probabilities.topk(min(3, len(classes)), dim=1)
    return [
        f"{printable(name)}: "
        + ", ".join(f"{printable(classes[i])} {share:.1%}" for share, i in zip(shares, ids))
        for name, shares, ids in zip(names, best.values.tolist(), best.indices.tolist())
    ]


def prediction_columns(
    names: list[str], probabilities: Float[np.ndarray, "N classes"], classes: list[str]
) -> dict[str, Column]:
    """The columns path, class, probability, and the probability p_NAME of each class."""
    best = probabilities.argmax(1)
    return {
        "path": names,
        "class": [classes[i] for i in best],
        "probability": probabilities.max(1),
        **{f"p_{name}": column for name, column in zip(classes, probabilities.T.copy())},
    }
