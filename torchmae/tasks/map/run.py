"""`mae map`: the images of a set in two dimensions, as a page."""

import logging
from pathlib import Path

import numpy as np
import torch

from torchmae.data.decode import BadImage
from torchmae.data.loader import read_pixels
from torchmae.data.quality.texture import chosen
from torchmae.disk import write_text
from torchmae.errors import RunError, UserError, choose, library
from torchmae.eval.neighbors.layout import LAYOUTS, NEEDS
from torchmae.eval.neighbors.nearest import Space
from torchmae.eval.neighbors.stored import features_of_set, open_of_run
from torchmae.models.weights import load
from torchmae.report.html.map import PIXELS, map_page
from torchmae.report.html.thumbs import thumbnail
from torchmae.report.sheet import bands_note
from torchmae.settings.options import check_ranges
from torchmae.tasks.map.config import Map
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

LEAST = 3  # images: fewer are no map


def run(config: Map) -> Path:
    """Writes the page, and returns its path."""
    check_ranges(config)
    layout = choose(LAYOUTS, config.method, "method")
    if config.method in NEEDS:
        library(*NEEDS[config.method])
    out = Path(config.out)
    if out.suffix.lower() not in (".html", ".htm") or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: a .html file in a folder that exists")
    encoder = load(config.run)
    source = open_of_run(config.run, config.data, config.decode, config.listing)
    device = find_device(config.runtime.device)
    found = features_of_set(config.run, source, encoder, config.compared, device)
    if len(found.ids) < LEAST:
        raise UserError(f"{len(found.ids)} images are no map: at least {LEAST}")
    taken = chosen(np.arange(len(found.ids)), config.count, config.seed)
    rows = Space(found.rows).place(found.rows)[torch.as_tensor(taken)]
    made = layout(rows, config.seed)
    ids = [found.ids[i] for i in taken]

    def thumb(k: int) -> str:
        try:
            return thumbnail(read_pixels(source, ids[k]), PIXELS)
        except BadImage:  # it is gone, or was changed, since its features were made
            return ""

    count = f"{len(ids):,} images"
    if len(ids) < len(found.ids):
        count = f"{count} of {len(found.ids):,}, chosen by hash (--count)"
    pooled = f"features: {found.pool} of layer {found.layer}, standardized, of unit length"
    text, pictures = map_page(
        f"Map of {config.data}",
        [
            f"{Path(config.run).resolve().name}: {count}; {pooled}.",
            f"{made.meaning}.",
            *bands_note(source.channels),
        ],
        made.places,
        [source.name(i) for i in ids],
        [source.label(i) for i in ids],
        thumb,
    )
    try:
        write_text(out, text)
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    logger.info(
        f"{out}: {count}, {pictures:,} with thumbnails, by {config.method}; "
        f"{len(text.encode()) / 1e6:.1f} MB"
    )
    return out
