"""`mae embed`: the features of images, in a file. Nothing is masked."""

import logging
from pathlib import Path

from torchmae.data.sources import open_source
from torchmae.errors import UserError
from torchmae.eval.extract import collect, features_of
from torchmae.models.weights import load
from torchmae.report.tables import WRITERS, check_table, write_table
from torchmae.tasks.embed.config import Embed
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Embed) -> Path:
    """Writes the features of all readable images, float32, and returns the file."""
    out = Path(config.out)
    check_table(out, WRITERS)
    if config.batch_size < 1:
        raise UserError(f"--batch-size {config.batch_size}: must be more than 0")
    encoder = load(config.run)
    source = open_source(config.data)
    device = find_device(config.device)
    function = features_of(encoder, config.layer, config.pool, device)
    ids, (features,), bad = collect(
        source, encoder, config.run, [function], device, config.batch_size
    )
    write_table(out, {"path": [source.name(i) for i in ids], "features": features.numpy()})
    for name, reason in [*source.unusable, *bad]:
        logger.info(f"skipped: {name}: {reason}")
    logger.info(
        f"{out}: {len(features)} images, {features.shape[1]} features each "
        f"({config.pool} of layer {config.layer or 'last'})"
    )
    return out
