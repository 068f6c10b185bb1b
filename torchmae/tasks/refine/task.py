"""The task of `mae refine`: two crops of each image to the contrast's loss, and its queue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchmae.data.decode import Pixels
from torchmae.data.loader import Batch, Transform
from torchmae.eval.rank import rankme
from torchmae.models.heads import with_last_blocks
from torchmae.models.refine import Refined


@dataclass(frozen=True)
class TwoViews:
    """Two crops of each image: the second takes the place of a target.

    Args:
        crop: one of them. Those of an epoch are its crops of two epochs.
    """

    crop: Transform

    def __call__(
        self, image: Pixels, target: Any, epoch: int, sample: int
    ) -> tuple[Tensor, Tensor]:
        first, second = (self.crop(image, None, 2 * epoch + i, sample)[0] for i in (0, 1))
        return first, second


class RefineTask(nn.Module):
    """Nearest-neighbour contrast on the last blocks of an encoder (MAE-CT, Lehner et al. 2023;
    MIM-Refiner, Alkin et al. 2024).

    Args:
        model: the encoder with its contrast.
        blocks: how many of its last blocks are trained, with what follows them.
        share: images of a step in this process.
        gather: rows of this process to those of all of them, in the order of the batch.
    """

    exclude_from_grad_norm: frozenset[str] = frozenset()

    def __init__(self, model: Refined, blocks: int, share: int, gather: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model
        self.share = share
        self.gather = gather
        self.latest: list[Tensor] = []  # projections of the micro-batches of this step
        trained = set(with_last_blocks(model, model.encoder, str(blocks)))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)

    def layers(self) -> list[nn.Module]:
        return self.model.encoder.layers()

    def compile(self, *arguments: Any, **options: Any) -> None:
        """The encoder only: what fills the queue is outside of it."""
        assert isinstance(self.model.encoder, nn.Module)
        self.model.encoder.compile(*arguments, **options)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Those of the first and of the second crops."""
        assert isinstance(batch.targets, list)
        images = torch.cat([batch.images, torch.stack(batch.targets)])
        found = self.model.features(self.model.encoder.normalize(images))
        first, second = found.chunk(2)
        return first, second

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        loss, projections = self.model.contrast(*self.features(batch))
        if self.training:
            self.latest.append(projections)
        return {"loss": loss}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The effective rank of the queue: 1 if all images are alike to it."""
        queue = self.model.contrast.queue
        return {"queue rank": torch.tensor(rankme(queue), device=queue.device)}

    def after_step(self, step: int) -> None:
        """The projections of the whole batch take the places of the oldest."""
        rows = torch.cat(self.latest)[-self.share :]  # a search for what fits comes before
        self.latest = []
        self.model.contrast.push(self.gather(rows))
