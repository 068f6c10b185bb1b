"""`mae predict`: the classes of images, with probabilities, in a file."""

import csv
import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from torchmae.data.sources import open_source
from torchmae.data.sources.source import distinct
from torchmae.errors import RunError, choose
from torchmae.eval.extract import collect, logits_of
from torchmae.models.weights import load_classifier
from torchmae.report.tables import pyarrow, ready
from torchmae.tasks.predict.config import Predict
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Predict) -> Path:
    """Classifies all images and writes the file; images that cannot be read are named and left out."""
    out = Path(config.out)
    write = choose(WRITERS, out.suffix.lower(), "kind of file")
    if out.suffix.lower() == ".parquet":
        pyarrow()
    ready(out)
    model, device, source = (
        load_classifier(config.run, config.best),
        find_device(config.device),
        open_source(config.data),
    )
    ids, (logits,), bad = collect(
        source, model.encoder, config.run, [logits_of(model, device)], device
    )
    for name, reason in [*source.unusable, *bad]:
        logger.info(f"left out: {name}: {reason}")
    partial = out.with_name(f".partial-{out.name}")
    try:
        before = out.exists()
        write(partial, [source.name(i) for i in ids], logits.softmax(1), distinct(model.classes))
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    logger.info(
        f"Written to {out}{' (in place of an earlier one)' if before else ''}: {len(ids)} images, {len(model.classes)} classes"
    )
    return out


def write_csv(
    path: Path, names: list[str], shares: Float[Tensor, "N classes"], classes: list[str]
) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", "class", "probability", *(f"p_{name}" for name in classes)])
        for name, row in zip(names, shares.tolist()):
            best = max(range(len(row)), key=row.__getitem__)
            table.writerow(
                [name, classes[best], f"{row[best]:.6g}", *(f"{value:.6g}" for value in row)]
            )


def write_parquet(
    path: Path, names: list[str], shares: Float[Tensor, "N classes"], classes: list[str]
) -> None:
    arrow, parquet = pyarrow()
    top, best = torch.max(shares, dim=1)
    columns = {
        "path": names,
        "class": [classes[i] for i in best.tolist()],
        "probability": top.numpy(),
    }
    each = dict(zip((f"p_{name}" for name in classes), shares.T.contiguous().numpy()))
    parquet.write_table(arrow.table({**columns, **each}), path)


WRITERS = {".csv": write_csv, ".parquet": write_parquet}
