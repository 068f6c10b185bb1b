"""`mae embed`: the features of images, in a file. Nothing is masked."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from torchmae.data.large.stitch import write_feature_maps
from torchmae.data.sources.source import BadFile, Source
from torchmae.data.sources.tiles import Tiles
from torchmae.disk import refuse_full, whole_folder
from torchmae.errors import RunError, UserError, choose
from torchmae.eval.extract import (
    collect_batches,
    features_of,
    image_batches,
    patch_tokens_of,
    read_batches,
    say_view,
)
from torchmae.eval.neighbors.stored import about, open_of_run
from torchmae.models.encoders import Backbone
from torchmae.models.patches import POOLS
from torchmae.models.weights import load
from torchmae.report.arrays import HEADERS, rows_file
from torchmae.report.tables import WRITERS, check_table, write_table
from torchmae.settings.options import check_ranges
from torchmae.tasks.embed.config import Embed
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

TOKENS = "tokens"  # of --pool: no pooling


def run(config: Embed) -> Path:
    """Writes the features of all readable images, and returns the file.

    They are float32 [N, F]; with --pool tokens float16 [N, h, w, D], the tokens of the patches in
    their grid.
    """
    check_ranges(config)
    choose(dict.fromkeys([*POOLS, TOKENS]), config.pool, "pool")
    dense = config.pool == TOKENS
    out = Path(config.out or ("tokens.safetensors" if dense else "features.npz"))
    if config.listing.tile and not out.suffix and not dense:
        refuse_full(out)
    else:
        check_table(out, HEADERS if dense else WRITERS)
    encoder = load(config.run)
    source = open_of_run(config.run, config.data, config.decode, config.listing)
    replaced = " (in place of an earlier one)" if out.exists() else ""
    bad, said = (write_tokens if dense else write_features)(config, encoder, source, out)
    for file in [*source.unusable, *bad]:
        logger.info(f"skipped: {file}")
    layer = f"layer {config.layer}" if config.layer else "the last layer"
    logger.info(f"{out}{replaced}: {said} ({config.pool} of {layer})")
    return out


def write_features(
    config: Embed, encoder: Backbone, source: Source, out: Path
) -> tuple[list[BadFile], str]:
    """One row for each image; returns the unreadable files, and what was written."""
    device = find_device(config.runtime.device)
    function = features_of(encoder, config.layer, config.pool, device)
    say_view(source, config.run)
    images = image_batches(source, encoder, config.run, config.batch_size, own_shapes=True)
    ids, (features,), bad = collect_batches(images, [function], device)
    said = f"{len(features)} images, {features.shape[1]} features each"
    if isinstance(source, Tiles) and not out.suffix:
        with whole_folder(out) as folder:
            count = write_feature_maps(folder, source, ids, features.numpy())
        return bad, f"maps of {count} images, {said}"
    columns: dict[str, Any] = {
        "path": [source.name(i) for i in ids],
        "features": features.numpy(),
    }
    if out.suffix.lower() == ".npz":  # what later verbs read
        layer = config.layer or len(encoder.layers())
        columns["about"] = json.dumps(about(config.run, source, layer, config.pool))
    write_table(out, columns)
    return bad, said


@torch.no_grad()
def write_tokens(
    config: Embed, encoder: Backbone, source: Source, out: Path
) -> tuple[list[BadFile], str]:
    """The tokens of all patches of each image, a batch at a time."""
    device = find_device(config.runtime.device)
    function = patch_tokens_of(encoder, config.layer, device)
    say_view(source, config.run)
    images = image_batches(source, encoder, config.run, config.batch_size)
    shape = (*encoder.grid, encoder.embed_dim)
    names: list[str] = []
    bad: list[BadFile] = []
    every = [source.name(i) for i in range(len(source))]
    with rows_file(out, (len(source), *shape), every) as file:
        for ids, pixels, unreadable in read_batches(images, device, "embed"):
            bad += unreadable
            if ids:
                tokens = function(pixels)
                if not tokens.isfinite().all():
                    raise RunError(
                        f"tokens of {source.name(ids[0])} or after are too large for half "
                        "precision: another --layer, or a pooled feature"
                    )
                file.add(tokens.unflatten(1, encoder.grid))
                names += [every[i] for i in ids]
        if not names:
            raise UserError(f"none of the {len(source)} images can be read; the first: {bad[0]}")
        layer = config.layer or len(encoder.layers())
        file.finish(names, about(config.run, source, layer, TOKENS))
    return bad, f"{len(names)} images, {' x '.join(map(str, shape))} features each, float16"
