"""The task of `mae segment`: the losses of both heads."""

import torch
from torch import Tensor

from torchmae.data.loader import Batch
from torchmae.models.segmentation.losses import dice_loss, pixel_cross_entropy
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.tasks.dense.segment.config import ResolvedSegment
from torchmae.tasks.dense.task import DenseTask


class SegmentTask(DenseTask):
    """Cross-entropy over all pixels, and what is added to it."""

    def __init__(self, model: Segmenter, config: ResolvedSegment):
        optim, own = config.optim, config.segment
        super().__init__(model, config.model.train, optim.drop_path, optim.seed)
        self.auxiliary = own.auxiliary
        self.dice = own.dice
        weights = None if own.weights is None else torch.tensor(own.weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        assert isinstance(model, Segmenter) and isinstance(batch.targets, list)
        labels = torch.stack(batch.targets)
        images = self.encoder.normalize(batch.images)
        after = 2 * len(self.layers())  # draws of stochastic depth
        drops = self.uniform(batch, after, model.dropped)
        main, *others = model.outputs(images, self.draws(batch), drops)
        loss = self.loss(main, labels)
        for other in others:
            loss = loss + self.auxiliary * self.loss(other, labels)
        return {"loss": loss}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of one head."""
        assert isinstance(self.model, Segmenter)
        logits = self.model.to_image(logits, labels.shape[1:])
        weights = self.class_weights
        assert weights is None or isinstance(weights, Tensor)
        loss = pixel_cross_entropy(logits, labels, weights)
        return loss + self.dice * dice_loss(logits, labels) if self.dice else loss
