"""The task of `mae tokenizer`: a batch of images to the loss of the discrete VAE."""

import math

import torch
from torch import Tensor, nn

from torchmae.data.loader import Batch
from torchmae.models.targets.tokenizer import (
    Relaxed,
    Tokenizer,
    gumbel,
    kl_to_uniform,
    perplexity,
)

TEMPERATURES = (1.0, 1 / 16)  # first and last, as in DALL-E (Ramesh et al. 2021, section 2.1)
KL_WARMUP = 0.1  # share of the steps in which the weight of the divergence rises from 0
DIAGNOSED = 64  # images of a batch that a log record looks at again


class TokenizerTask(nn.Module):
    """Mean squared error of the reconstruction, plus the divergence of the tokens' distributions
    from the uniform one; both in units of a pixel value.

    Squared errors of normalised pixels, and not a Laplace distribution on the logits of pixels as
    in DALL-E: they need no bounds, so that any channels and bit depths are alike, and they are what
    `mae pretrain` measures too.
    """

    exclude_from_grad_norm: frozenset[str] = frozenset()

    def __init__(self, model: Tokenizer, steps: int, kl_weight: float, seed: int):
        super().__init__()
        self.model = model
        self.steps = steps
        self.kl_weight = kl_weight
        self.seed = seed

    def layers(self) -> list[nn.Module]:
        return self.model.blocks()

    def temperature(self, step: int) -> float:
        """Of the Gumbel-softmax at a step: half a cosine from 1 to 1/16 over the training."""
        first, last = TEMPERATURES
        share = min(1.0, step / max(1, self.steps - 1))
        return last + (first - last) * (1 + math.cos(math.pi * share)) / 2

    def kl_weight_at(self, step: int) -> float:
        """Of the divergence at a step: rises linearly over the first tenth of the training."""
        return self.kl_weight * min(1.0, step / max(1.0, KL_WARMUP * self.steps))

    def relaxed(self, batch: Batch) -> tuple[Tensor, Relaxed]:
        """The normalised images, and what the model makes of them with the noise of their
        samples."""
        images = self.model.normalize(batch.images)
        patches = math.prod(self.model.grid(images))
        size = (patches, self.model.config.vocabulary)
        noise = gumbel(self.seed, batch.epoch, batch.sample, *size)
        return images, self.model(images, noise, self.temperature(batch.step))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, (reconstruction, logits) = self.relaxed(batch)
        error = mean_error(reconstruction, images, batch.images)
        values = math.prod(self.model.patch) * self.model.channels
        kl = kl_to_uniform(logits).mean() / values
        return {"loss": error + self.kl_weight_at(batch.step) * kl}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of the loss, and how many codes the batch uses, as the perplexity."""
        part = batch.chunks(-(-len(batch.images) // DIAGNOSED))[0]
        images, (reconstruction, logits) = self.relaxed(part)
        used = logits.argmax(dim=2).flatten().bincount(minlength=logits.shape[2])
        return {
            "reconstruction error": mean_error(reconstruction, images, part.images),
            "kl": kl_to_uniform(logits).mean(),
            "batch perplexity": perplexity(used.float()),
            "temperature": torch.tensor(self.temperature(batch.step), device=images.device),
        }

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""


def mean_error(reconstruction: Tensor, images: Tensor, pixels: Tensor) -> Tensor:
    """The mean squared error, of floats where there are values."""
    errors = (reconstruction - images).square()
    if not pixels.is_floating_point():
        return errors.mean()
    there = ~pixels.isnan()
    return (errors * there).sum() / there.sum().clamp(min=1)
