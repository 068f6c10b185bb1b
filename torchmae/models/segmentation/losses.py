"""The losses of label maps, which do not depend on how a batch is split."""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

IGNORE = 255  # in label maps: no class


def pixel_cross_entropy(
    logits: Float[Tensor, "B classes H W"],
    labels: Int64[Tensor, "B H W"],
    weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy over all pixels; ignored ones count as 0, so that the sum does not depend on
    how a batch is split (mmsegmentation's default).

    Args:
        logits: of each pixel.
        labels: its class, or `IGNORE`.
        weights: times the loss of each class.
    """
    total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum")
    return total / labels.numel()


def dice_loss(
    logits: Float[Tensor, "B classes H W"], labels: Int64[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """1 - Dice of the probabilities (Milletari et al. 2016), the mean over the classes that an
    image has, then over images."""
    counted = (labels != IGNORE).unsqueeze(1)
    truth = F.one_hot(labels.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counted
    said = logits.softmax(1) * counted
    shared, areas = ((x).flatten(2).sum(2) for x in (said * truth, said + truth))
    there = truth.flatten(2).any(2)
    loss = (1 - (2 * shared + 1) / (areas + 1)) * there
    return (loss.sum(1) / there.sum(1).clamp(min=1)).mean()
