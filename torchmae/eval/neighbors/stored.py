"""Features of a set: computed, or read from a file of `mae embed` that belongs to the same run."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.sources import open_source
from torchmae.data.sources.arrays import ARRAY_ERRORS
from torchmae.data.sources.source import Source
from torchmae.errors import UserError
from torchmae.eval.extract import collect_batches, features_of, image_batches, say_view
from torchmae.manifest import content_of
from torchmae.models.encoders import Backbone
from torchmae.runfolder import MODEL, identity, is_unknown, same_data
from torchmae.settings.groups import FeatureOptions, ListingOptions, RunDecodeOptions
from torchmae.version import __version__

logger = logging.getLogger(__name__)


class Features(NamedTuple):
    """Features of the readable images of a source: `ids` are their numbers there, `rows` float32
    on the CPU; of which block and pooling they are."""

    ids: list[int]
    rows: Float[Tensor, "N F"]
    layer: int
    pool: str


def about(run: str, source: Source, layer: int, pool: str) -> dict[str, Any]:
    """What features depend on, for the file that holds them."""
    return {
        "torchmae": __version__,
        "run": Path(run).resolve().name,
        "weights": content_of(Path(run) / MODEL).sha256,
        "images": identity(source),
        "layer": layer,
        "pool": pool,
    }


def open_of_run(run: str, data: str, decode: RunDecodeOptions, listing: ListingOptions) -> Source:
    """The images of DATA, decoded and chosen as those of the run were unless told otherwise; what
    was left out is said."""
    options = decode_as_run(run, decode)
    source = open_source(data, options, listing_as_run(listing, data, run))
    if source.left_out:
        logger.info(source.left_out)
    return source


def features_of_set(
    run: str, source: Source, encoder: Backbone, options: FeatureOptions, device: torch.device
) -> Features:
    """The features of all readable images of a source, read from `options.features` or computed.

    Files that cannot be read are said.

    Raises:
        UserError: the file does not hold features of this run and these images, or no image can be
            read.
    """
    depth = len(encoder.layers())
    if options.features is not None:
        found = read_features(Path(options.features), run, source, options)
        said = f"{len(found.ids):,} features of {options.features}"
        logger.info(f"{said}: {found.pool} of layer {found.layer} of {depth}")
        return found
    pool = options.pool or "mean"
    function = features_of(encoder, options.layer, pool, device)
    say_view(source, run)
    images = image_batches(source, encoder, run, options.batch_size, own_shapes=True)
    ids, (rows,), bad = collect_batches(images, [function], device)
    for file in [*source.unusable, *bad]:
        logger.info(f"skipped: {file}")
    return Features(ids, rows, options.layer or depth, pool)


def read_features(path: Path, run: str, source: Source, options: FeatureOptions) -> Features:
    """The features that `mae embed` wrote to a .npz file.

    Raises:
        UserError: it is no such file, or of other weights, images, another layer or pooling.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "about" not in arrays:
                raise UserError(
                    f"{path} does not say which run it is of: write it again with mae embed"
                )
            known = json.loads(str(arrays["about"]))
            names, rows = arrays["paths"].tolist(), torch.from_numpy(arrays["features"])
        facts = {name: known[name] for name in ("run", "weights", "images", "layer", "pool")}
    except UserError:
        raise
    except (*ARRAY_ERRORS, AttributeError) as error:
        raise UserError(
            f"--features {path} is no file of features ({type(error).__name__}: {error}): name a "
            ".npz that mae embed wrote"
        ) from error
    again = f"mae embed {run} DATA --out {path} writes them again"
    if facts["weights"] != content_of(Path(run) / MODEL).sha256:
        raise UserError(
            f"--features {path} are of other weights ({facts['run']}), not of {run}'s: {again}"
        )
    images = identity(source)
    if not same_data(facts["images"], images):
        both = (facts["images"], images)
        unknown = any(is_unknown(one) or one.get("data_id") for one in both)
        named = "of a Dataset in Python its data_id" if unknown else "names or sizes"
        raise UserError(
            f"--features {path} are of other images ({named} differ{'s' * unknown}): name the "
            f"DATA, --include and --exclude that they were made with; or {again}"
        )
    for name in ("layer", "pool"):
        wanted = getattr(options, name)
        if wanted is not None and wanted != facts[name]:
            raise UserError(f"--{name} {wanted}: --features {path} are of {name} {facts[name]}")
    numbers = {source.name(i): i for i in range(len(source))}
    if (
        rows.ndim != 2
        or rows.dtype != torch.float32
        or len(names) != len(rows)
        or not len(rows)
        or not all(name in numbers for name in names)
        or not rows.isfinite().all()
    ):
        raise UserError(f"--features {path} are damaged: {again}")
    return Features([numbers[name] for name in names], rows, facts["layer"], facts["pool"])
