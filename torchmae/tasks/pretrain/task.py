"""The task of `mae pretrain`: a batch of images to the MAE's loss."""

import math

from torch import Tensor, nn

from torchmae.data.loader import Batch
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, masking, noise


class PretrainTask(nn.Module):
    """A batch of images to the MAE's loss; the mask of a sample is a function of (seed, epoch,
    sample)."""

    def __init__(self, model: MAE, masking_name: str, mask_ratio: float, seed: int):
        super().__init__()
        self.model = model
        self.masking = masking(masking_name)
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.exclude_from_grad_norm = frozenset(
            n for n, _ in model.named_parameters() if n.startswith("decoder.statistics.")
        )

    def layers(self) -> list[nn.Module]:
        return [*self.model.encoder.layers(), *self.model.decoder.blocks]

    def mask(self, batch: Batch) -> Mask:
        grid = self.model.encoder.grid
        scores = noise(self.seed, batch.epoch, batch.sample, math.prod(grid))
        return self.masking(scores, grid, self.mask_ratio)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.model(self.model.encoder.normalize(batch.images), self.mask(batch))
        loss = output.loss
        if (
            output.statistics_loss is not None
        ):  # adds the head's gradient, and nothing to the value that is logged
            loss = loss + (output.statistics_loss - output.statistics_loss.detach())
        return {"loss": loss}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of predictors that have learned nothing, on the same images, masks and
        target."""
        images = self.model.encoder.normalize(batch.images)
        losses = self.model.target.trivial_losses(images, self.mask(batch))
        return {f"loss of {name}": loss for name, loss in losses.items()}

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""
