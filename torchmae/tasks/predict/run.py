"""`mae predict`: the classes of images, with probabilities, in a file."""

import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.sources import open_source
from torchmae.data.sources.source import distinct
from torchmae.eval.extract import collect, logits_of, say_view
from torchmae.models.weights import load_classifier
from torchmae.report.tables import Column, check_table, write_table
from torchmae.settings.options import check_ranges
from torchmae.tasks.predict.config import Predict
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Predict) -> Path:
    """Writes the classes of all readable images, and returns the file."""
    check_ranges(config)
    out = Path(config.out)
    check_table(out, (".csv", ".parquet"))
    model = load_classifier(config.run, config.best)
    device = find_device(config.runtime.device)
    decode = config.decode
    source = open_source(
        config.data,
        decode_as_run(config.run, decode.max_megapixels, decode.white),
        listing_as_run(config.listing, config.data, config.run),
    )
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
    logger.info(f"Written to {out}{replaced}: {len(ids)} images, {len(model.classes)} classes")
    return out


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
