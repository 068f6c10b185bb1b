"""`mae embed`: the features of images, in a file. Nothing is ever masked here."""

import csv
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float

from torchmae.data.sources import open_source
from torchmae.errors import RunError, UserError, choose
from torchmae.eval.extract import collect, embedding
from torchmae.models.weights import load
from torchmae.report.tables import pyarrow, ready
from torchmae.tasks.embed.config import Embed
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Embed) -> Path:
    """Embeds all images and writes the file; images that cannot be read are named and left out."""
    out = Path(config.out)
    write = choose(WRITERS, out.suffix.lower(), "kind of file")
    ready(out)
    if out.suffix.lower() == ".parquet":
        pyarrow()
    if config.batch_size < 1:
        raise UserError(f"--batch-size {config.batch_size}: must be more than 0")
    encoder, source = load(config.run), open_source(config.data)
    device = find_device(config.device)
    embed = embedding(encoder, config.layer, config.pool, device)
    ids, (features,), bad = collect(source, encoder, config.run, [embed], device, config.batch_size)
    partial = out.with_name(f".partial-{out.name}")
    try:
        write(partial, [source.name(int(i)) for i in ids], features.numpy())
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    for name, reason in [*source.unusable, *bad]:
        logger.info(f"left out: {name}: {reason}")
    logger.info(
        f"{out}: {len(features)} images, {features.shape[1]} features each ({config.pool} of layer {config.layer or 'last'})"
    )
    return out


def write_npz(path: Path, names: list[str], features: Float[np.ndarray, "B F"]) -> None:
    with path.open("wb") as file:
        np.savez(file, paths=np.array(names), features=features)


def write_csv(path: Path, names: list[str], features: Float[np.ndarray, "B F"]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", *(f"f{i}" for i in range(features.shape[1]))])
        table.writerows(
            [name, *(f"{value:.9g}" for value in row)]
            for name, row in zip(names, features.tolist())
        )


def write_parquet(path: Path, names: list[str], features: Float[np.ndarray, "B F"]) -> None:
    arrow, parquet = pyarrow()
    column = arrow.FixedSizeListArray.from_arrays(arrow.array(features.ravel()), features.shape[1])
    parquet.write_table(arrow.table({"path": names, "features": column}), path)


WRITERS = {".npz": write_npz, ".csv": write_csv, ".parquet": write_parquet}
