"""The task of `mae pretrain`: a batch of images to the MAE's loss."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchmae.data.loader import Batch
from torchmae.eval.rank import rankme
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, MaskGenerator, gaussian, noise
from torchmae.models.patches import grid_of, patchify
from torchmae.train.optim import ema_decay_at

TARGET_STD = "target std"
WATCHED = 512  # patches
# Of a target that follows the encoder, at the most: a tenth of the steps so far is its window
# (`ema_decay_at`), so that it is right for trainings of any length; data2vec 2.0's for ViT-B is
# 0.9998 to 0.99999 over 500,000 steps (Baevski et al. 2023, appendix).
TEACHER_DECAY = 0.9998


class PretrainTask(nn.Module):
    """A batch of images to the MAE's loss; the mask and the noise of a sample are a function of
    (seed, epoch, sample).

    Args:
        model: the MAE.
        masks: what chooses the hidden patches.
        seed: of masks and noise.
        noise_std: of Gaussian noise on the normalised images that the encoder gets.
        views: masks of each image of a batch; the loss is the mean over all of them.
        complementary: whether the views of an image see different patches.
    """

    def __init__(
        self,
        model: MAE,
        masks: MaskGenerator,
        seed: int,
        noise_std: float = 0.0,
        views: int = 1,
        complementary: bool = False,
    ):
        super().__init__()
        self.model = model
        self.masks = masks
        self.seed = seed
        self.noise_std = noise_std
        self.views = views
        self.complementary = complementary
        self.exclude_from_grad_norm = frozenset(
            n for n, _ in model.named_parameters() if n.startswith("decoder.statistics.")
        )

    def compile(self, *arguments: Any, **options: Any) -> None:
        """As for every module. Masks of several ratios are drawn outside of what is compiled, which
        is then one program for each number of tokens: the step's number would be part of it."""
        if self.masks.ratios:
            self.mask = torch.compiler.disable(self.mask)  # type: ignore[method-assign]
            options["dynamic"] = False
        super().compile(*arguments, **options)

    def layers(self) -> list[nn.Module]:
        return [*self.model.encoder.layers(), *self.model.decoder.blocks]

    def mask(self, batch: Batch) -> Mask:
        """The masks of all images for the first view, then for the next."""
        found = [self.mask_of_view(batch, view) for view in range(self.views)]
        return found[0] if len(found) == 1 else type(found[0])(*map(torch.cat, zip(*found)))

    def mask_of_view(self, batch: Batch, view: int) -> Mask:
        grid = grid_of(tuple(batch.images.shape[2:]), self.model.encoder.patch)
        masks = self.masks.at(self.seed, batch.step)
        if self.complementary:
            scores = noise(self.seed, batch.epoch, batch.sample, math.prod(grid))
            return masks(scores, grid, view)
        # As if the image were shown once in each of so many epochs.
        epoch = batch.epoch * self.views + view
        return masks(noise(self.seed, epoch, batch.sample, math.prod(grid)), grid)

    def inputs(self, batch: Batch) -> tuple[Tensor, Mask, Tensor, Tensor | None]:
        """Normalised images, once for each view, their masks, the images as the encoder gets them,
        and the patches that count: all of whose pixels have a value."""
        # Channels last, as in a patch: on a CPU patches are cut twice as fast.
        images = self.model.encoder.normalize(batch.images).contiguous(
            memory_format=torch.channels_last
        )
        seen = images
        if self.noise_std:
            size = tuple(images.shape[1:])
            seen = images + self.noise_std * gaussian(self.seed, batch.epoch, batch.sample, size)
        counted = None
        if batch.images.is_floating_point():
            missing = patchify(batch.images.isnan(), self.model.encoder.patch)
            counted = ~missing.any(dim=2)
        if self.views > 1:
            images, seen = torch.cat([images] * self.views), torch.cat([seen] * self.views)
            counted = None if counted is None else torch.cat([counted] * self.views)
        return images, self.mask(batch), seen, counted

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.model(*self.inputs(batch))
        loss = output.loss
        if (
            output.statistics_loss is not None
        ):  # adds the head's gradient, and nothing to the value that is logged
            loss = loss + (output.statistics_loss - output.statistics_loss.detach())
        return {"loss": loss}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of predictors that have learned nothing, on the same images, masks and
        target."""
        images, mask, seen, counted = self.inputs(batch)
        some = () if counted is None else (counted,)  # targets of plugins need not know of it
        losses = self.model.target.trivial_losses(images, mask, seen, *some)
        found = {f"loss of {name}": loss for name, loss in losses.items()}
        return found | (watched(self.model, images) if self.model.target.follows_encoder else {})

    def after_step(self, step: int) -> None:
        """A target that is made of the encoder follows its weights."""
        if self.model.target.follows_encoder:
            self.model.target.follow(self.model.encoder, ema_decay_at(step, TEACHER_DECAY))


def watched(model: MAE, images: Tensor) -> dict[str, Tensor]:
    """Whether the truth about images still says something of them, for targets that could collapse.

    Returns:
        Under `TARGET_STD` the std over the images of each value of the target at a place, mean:
        near 1 where images differ, 0 where all have the same target. "target rank": RankMe of the
        targets of up to 512 patches.
    """
    count = math.prod(grid_of(tuple(images.shape[2:]), model.encoder.patch))
    images = images[: max(1, WATCHED // count)]
    ids = torch.arange(count, device=images.device).expand(len(images), -1)
    truth = model.target(images, ids).float()
    rows = truth.flatten(0, 1)[:WATCHED]
    found = {"target rank": torch.tensor(rankme(rows), device=images.device)}
    if len(images) > 1:
        found[TARGET_STD] = truth.std(dim=0, correction=0).mean()
    return found
