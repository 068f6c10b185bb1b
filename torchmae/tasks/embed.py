"""`mae embed`: the features of images, in a file. Nothing is ever masked here."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from torchmae.data.decode import BadImage
from torchmae.data.loader import read, start_worker
from torchmae.data.sources import BadFile, Source, open_source
from torchmae.data.transforms import Whole
from torchmae.errors import RunError, UserError, choose, missing_extra
from torchmae.models.vit import ViT
from torchmae.models.weights import load, read_config
from torchmae.tasks.settings import workers
from torchmae.train.distributed import find_device

POOLINGS = {
    "mean": lambda tokens: tokens[:, 1:].mean(1),
    "cls": lambda tokens: tokens[:, 0],
    "cls+mean": lambda tokens: torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1),
}


@dataclass(frozen=True)
class Embed:
    """Write the paths and features of images to a file."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images, as for mae pretrain."""
    out: str = "features.npz"
    """.npz (arrays "paths" and "features"), .csv or .parquet (extra "parquet")."""
    layer: int | None = None
    """Take the tokens after this block, 1 to depth. Default: after the last."""
    pooling: str = "mean"
    """mean (of the patch tokens), cls (the class token) or cls+mean."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


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
    embed = embedding(encoder, config.layer, config.pooling, device)
    ids, (features,), bad = collect(source, encoder, config.run, [embed], device, config.batch_size)
    partial = out.with_name(f".partial-{out.name}")
    try:
        write(partial, [source.name(int(i)) for i in ids], features.numpy())
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    for name, reason in [*source.unusable, *bad]:
        print(f"left out: {name}: {reason}")
    print(
        f"{out}: {len(features)} images, {features.shape[1]} features each ({config.pooling} of layer {config.layer or 'last'})"
    )
    return out


def ready(out: Path) -> None:
    """A `UserError`, before anything is computed, if the file cannot be written; its folder is made."""
    trial = out.with_name(f".partial-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}): name another file") from error
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")


@dataclass(frozen=True)
class Images(Dataset[Any]):
    """The readable images of a source, whole, in batches; those that are not readable are named."""

    source: Source
    transform: Whole
    channels: int
    batch_size: int
    max_megapixels: float
    white: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, batch: int) -> tuple[list[int], UInt8[Tensor, "B C H W"], list[BadFile]]:
        ids, images, bad = [], [torch.zeros(0, self.channels, *self.transform.size, dtype=torch.uint8)], []
        for i in range(batch * self.batch_size, min(len(self.source), (batch + 1) * self.batch_size)):
            try:
                pixels = read(self.source, i, self.channels, self.max_megapixels, self.white)
            except BadImage as error:
                bad.append(BadFile(self.source.name(i), str(error)))
                continue
            ids.append(i)
            images.append(self.transform(pixels).unsqueeze(0))
        return ids, torch.cat(images), bad


Function = Callable[[UInt8[Tensor, "B C H W"]], Shaped[Tensor, "B ..."]]


def embedding(encoder: ViT, layer: int | None, pooling: str, device: torch.device) -> Function:
    """The function from uint8 images to the encoder's pooled features, float32 on the CPU."""
    pool = choose(POOLINGS, pooling, "pooling")
    if layer is not None and not 1 <= layer <= len(encoder.blocks):
        raise UserError(f"--layer {layer}: 1 to {len(encoder.blocks)}")
    encoder = encoder.eval().to(device)
    return lambda images: pool(encoder(encoder.normalize(images.to(device)), layer=layer)).float().cpu()


@torch.no_grad()
def collect(
    source: Source, like: ViT, run: str, functions: Sequence[Function], device: torch.device, batch_size: int = 64
) -> tuple[list[int], list[Shaped[Tensor, "N ..."]], list[BadFile]]:
    """Indices of the readable images, what each function makes of them, and the files that could not be read.

    Images come as the encoder `like` takes them, under the run's rules for large and 16-bit images.
    """
    rules = read_config(run)["config"]
    limits = rules.get("max_megapixels", 100.0), rules.get("white", 65535)
    images = Images(source, Whole(like.image_size, rules.get("eval_crop", 1.0)), like.channels, batch_size, *limits)
    processes = workers(device, 1) if len(images) > 4 else 0
    loader = DataLoader(
        images, batch_size=None, num_workers=processes, worker_init_fn=start_worker if processes else None
    )
    ids: list[int] = []
    bad: list[BadFile] = []
    rows: list[list[Tensor]] = [[] for _ in functions]
    for some_ids, some, some_bad in tqdm(loader, "embed", unit=" batches", disable=None, leave=False):
        ids += some_ids
        bad += some_bad
        if some_ids:
            for made, function in zip(rows, functions):
                made.append(function(some))
    if not ids:
        raise UserError(f"none of the {len(source)} images can be read; the first: {bad[0].name}: {bad[0].reason}")
    return ids, [torch.cat(made) for made in rows], bad


def write_npz(path: Path, names: list[str], features: Float[np.ndarray, "B F"]) -> None:
    with path.open("wb") as file:
        np.savez(file, paths=np.array(names), features=features)


def write_csv(path: Path, names: list[str], features: Float[np.ndarray, "B F"]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", *(f"f{i}" for i in range(features.shape[1]))])
        table.writerows([name, *(f"{value:.9g}" for value in row)] for name, row in zip(names, features.tolist()))


def write_parquet(path: Path, names: list[str], features: Float[np.ndarray, "B F"]) -> None:
    arrow, parquet = pyarrow()
    column = arrow.FixedSizeListArray.from_arrays(arrow.array(features.ravel()), features.shape[1])
    parquet.write_table(arrow.table({"path": names, "features": column}), path)


def pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet") from error
    return pyarrow, pyarrow.parquet


WRITERS = {".npz": write_npz, ".csv": write_csv, ".parquet": write_parquet}
