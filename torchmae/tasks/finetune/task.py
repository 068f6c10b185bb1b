"""The task of `mae finetune`: cross-entropy, and what of the encoder may change."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.data.loader import Batch
from torchmae.hashing import DROP, uniform
from torchmae.models.heads import Classifier, trainable
from torchmae.models.masking import noise
from torchmae.models.mixing import mix
from torchmae.tasks.finetune.config import ResolvedFinetune


class ClassifyTask(nn.Module):
    """Cross-entropy on smoothed, possibly mixed labels; only what `train` names is moved, the rest
    stays in eval mode."""

    exclude_from_grad_norm: frozenset[str] = frozenset()

    def __init__(self, model: Classifier, config: ResolvedFinetune):
        super().__init__()
        self.model = model
        self.regularization = config.regularization
        self.seed = config.optim.seed
        self.trained = set(trainable(model, config.model.train))
        for name, parameter in model.named_parameters():  # the positions too, as in the reference
            parameter.requires_grad_(name in self.trained)
        model.encoder.set_drop_path(config.regularization.drop_path)

    def layers(self) -> list[nn.Module]:
        return self.model.encoder.layers()

    def train(self, mode: bool = True) -> "ClassifyTask":
        super().train(mode)
        for name, module in self.model.encoder.named_modules():
            inside = [
                n for n in self.trained if n.startswith(f"encoder.{name}." if name else "encoder.")
            ]
            if not inside:
                module.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(batch.targets, Tensor)
        strong, count = self.regularization, len(self.model.classes)
        images = self.model.encoder.normalize(batch.images)
        smooth = strong.label_smoothing
        targets = F.one_hot(batch.targets, count).float() * (1 - smooth) + smooth / count
        mixed, targets = mix(images, targets, strong.mixup, strong.cutmix, self.seed, batch.step)
        loss = F.cross_entropy(self.model(mixed, self.draws(batch)).float(), targets)
        if strong.mae_weight:
            loss = torch.lerp(loss, self.mae_loss(images, batch), strong.mae_weight)
        return {"loss": loss}

    def mae_loss(self, images: Float[Tensor, "B C H W"], batch: Batch) -> Float[Tensor, ""]:
        """The loss of the run's decoder on the same crops, not mixed, and on those without labels;
        masks are a function of (seed, epoch, sample)."""
        encoder, beside = self.model.encoder, self.model.beside
        assert beside is not None
        epoch, sample = batch.epoch, batch.sample
        if batch.beside is not None:
            others = batch.beside
            images = torch.cat([images, encoder.normalize(others.images)])
            epoch, sample = torch.cat([epoch, others.epoch]), torch.cat([sample, others.sample])
        grid = encoder.grid
        scores = noise(self.seed, epoch, sample, math.prod(grid))
        return beside(encoder, images, beside.masks(scores, grid))

    def draws(self, batch: Batch) -> Float[Tensor, "B depth 2"]:
        """For stochastic depth: a function of (seed, epoch, sample), as all that is drawn."""
        places = torch.arange(2 * len(self.model.encoder.layers()), device=batch.sample.device)
        keys = (x.unsqueeze(1) for x in (batch.epoch, batch.sample))
        return uniform(self.seed, DROP, *keys, places).unflatten(1, (-1, 2))

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """With --mae-weight the part of the loss that is the MAE's."""
        if not self.regularization.mae_weight:
            return {}
        return {"mae loss": self.mae_loss(self.model.encoder.normalize(batch.images), batch)}

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""
