"""`mae embed`: the features of images, in a file. Nothing is masked."""

import logging
from pathlib import Path

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.sources import open_source
from torchmae.eval.extract import collect, features_of, say_view
from torchmae.models.weights import load
from torchmae.report.tables import WRITERS, check_table, write_table
from torchmae.settings.options import check_ranges
from torchmae.tasks.embed.config import Embed
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Embed) -> Path:
    """Writes the features of all readable images, float32, and returns the file."""
    check_ranges(config)
    out = Path(config.out)
    check_table(out, WRITERS)
    encoder = load(config.run)
    decode = config.decode
    source = open_source(
        config.data,
        decode_as_run(config.run, decode),
        listing_as_run(config.listing, config.data, config.run),
    )
    if source.left_out:
        logger.info(source.left_out)
    device = find_device(config.runtime.device)
    function = features_of(encoder, config.layer, config.pool, device)
    say_view(source, config.run)
    ids, (features,), bad = collect(
        source, encoder, config.run, [function], device, config.batch_size
    )
    replaced = " (in place of an earlier one)" if out.exists() else ""
    write_table(out, {"path": [source.name(i) for i in ids], "features": features.numpy()})
    for file in [*source.unusable, *bad]:
        logger.info(f"skipped: {file}")
    logger.info(
        f"{out}{replaced}: {len(features)} images, {features.shape[1]} features each "
        f"({config.pool} of {f'layer {config.layer}' if config.layer else 'the last layer'})"
    )
    return out
