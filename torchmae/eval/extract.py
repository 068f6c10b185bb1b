"""Frozen features and logits of all readable images of a source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from torchmae.data.decode import BadImage
from torchmae.data.loader import read, start_worker
from torchmae.data.sources.source import BadFile, Source
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError, choose
from torchmae.models.encoders import Backbone
from torchmae.models.heads import Classifier
from torchmae.runfolder import read_config
from torchmae.tasks.pretrain.config import workers

# Tokens and the number of prefix tokens (class token, registers) to features.
POOLS = {
    "mean": lambda tokens, prefix: tokens[:, prefix:].mean(1),
    "cls": lambda tokens, prefix: tokens[:, 0],
    "cls+mean": lambda tokens, prefix: torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1),
}


@dataclass(frozen=True)
class Images(Dataset[Any]):
    """The readable images of a source, whole, in batches; those that are not readable are named."""

    source: Source
    transform: CenterCropResize
    channels: int
    batch_size: int
    max_megapixels: float
    white: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, batch: int) -> tuple[list[int], UInt8[Tensor, "B C H W"], list[BadFile]]:
        ids, images, bad = (
            [],
            [torch.zeros(0, self.channels, *self.transform.size, dtype=torch.uint8)],
            [],
        )
        for i in range(
            batch * self.batch_size, min(len(self.source), (batch + 1) * self.batch_size)
        ):
            try:
                pixels = read(self.source, i, self.channels, self.max_megapixels, self.white)
            except BadImage as error:
                bad.append(BadFile(self.source.name(i), str(error)))
                continue
            ids.append(i)
            images.append(self.transform(pixels).unsqueeze(0))
        return ids, torch.cat(images), bad


Function = Callable[[UInt8[Tensor, "B C H W"]], Shaped[Tensor, "B ..."]]


def embedding(encoder: Backbone, layer: int | None, pool: str, device: torch.device) -> Function:
    """The function from uint8 images to the encoder's pooled features, float32 on the CPU."""
    pooled = choose(POOLS, pool, "pooling")
    blocks, prefix = len(encoder.layers()), encoder.num_prefix_tokens
    if layer is not None and not 1 <= layer <= blocks:
        raise UserError(f"--layer {layer}: 1 to {blocks}")
    encoder = encoder.eval().to(device)
    return lambda images: (
        pooled(encoder(encoder.normalize(images.to(device)), layer=layer), prefix).float().cpu()
    )


@torch.no_grad()
def collect(
    source: Source,
    like: Backbone,
    run: str,
    functions: Sequence[Function],
    device: torch.device,
    batch_size: int = 64,
) -> tuple[list[int], list[Shaped[Tensor, "N ..."]], list[BadFile]]:
    """Indices of the readable images, what each function makes of them, and the files that could not be read.

    Images come as the encoder `like` takes them, under the run's rules for large and 16-bit images.
    """
    rules = read_config(run)["config"]
    limits = rules.get("max_megapixels", 100.0), rules.get("white", 65535)
    images = Images(
        source,
        CenterCropResize(like.image_size, rules.get("crop_pct", 1.0)),
        like.channels,
        batch_size,
        *limits,
    )
    processes = workers(device, 1) if len(images) > 4 else 0
    loader = DataLoader(
        images,
        batch_size=None,
        num_workers=processes,
        worker_init_fn=start_worker if processes else None,
    )
    ids: list[int] = []
    bad: list[BadFile] = []
    rows: list[list[Tensor]] = [[] for _ in functions]
    for some_ids, some, some_bad in tqdm(
        loader, "embed", unit=" batches", disable=None, leave=False
    ):
        ids += some_ids
        bad += some_bad
        if some_ids:
            for made, function in zip(rows, functions):
                made.append(function(some))
    if not ids:
        raise UserError(
            f"none of the {len(source)} images can be read; the first: {bad[0].name}: {bad[0].reason}"
        )
    return ids, [torch.cat(made) for made in rows], bad


def logits_of(model: Classifier, device: torch.device) -> Function:
    """The function from uint8 images to logits, float32 on the CPU."""
    model = model.eval().to(device)
    return lambda images: model(model.encoder.normalize(images.to(device))).float().cpu()
