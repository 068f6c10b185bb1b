"""The attentive probe on stored tokens: learned queries, a norm and a linear map."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchmae.eval.probes.logistic import folds_of
from torchmae.models.heads import AttentivePool
from torchmae.models.weights import seeded

# Of AdamW, all are tried. Few labels want the lowest (59 % on ten labels a class, the highest 52),
# thousands the highest (82 % on 2,123 images, the lowest 76; brain MRI, one seed). A decay of 1 in
# place of 0.01 made both worse.
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
WEIGHT_DECAY = 0.01
BATCH_SIZE = 128
EPOCHS = 60  # but at most so many steps:
MOST_STEPS = 1000


class AttentiveProbe(nn.Module):
    """Patch tokens to logits.

    Tokens are standardized by the training images' mean and std of each feature, pooled by learned
    queries, and pass a BatchNorm without affine parameters (as the paper's linear probe) and a
    linear map.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tokens: Float[Tensor, "A N D"], classes: int, queries: int = 32):
        super().__init__()
        dim = tokens.shape[2]
        # float64 sums, an image at a time: tokens may be half precision, and many.
        mean = torch.stack([image.double().mean(0) for image in tokens]).mean(0)
        square = torch.stack([(image.double() - mean).square().mean(0) for image in tokens]).mean(0)
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", square.sqrt().clamp(min=1e-6).float())
        self.pool = AttentivePool(dim, queries)
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B classes"]:
        return self.head(self.norm(self.pool((tokens.float() - self.mean) / self.std)))

    @torch.no_grad()
    def logits(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B classes"]:
        """Of any number of images, in eval mode."""
        self.eval()
        return torch.cat([self(rows) for rows in tokens.split(512)])


class Attended(NamedTuple):
    """What an attentive probe says of the test images, and how its learning rate was chosen.

    `validated` is the accuracy of each of `LEARNING_RATES` on the fold; empty where there is none.
    """

    logits: Float[Tensor, "B classes"]
    lr: float
    validated: list[float]

    def choices(self) -> dict[str, Any]:
        """What was chosen, for results.json."""
        return {"lr": self.lr, "validated": self.validated}


def attentive_probe(
    train: Float[Tensor, "A N D"],
    labels: Int64[Tensor, " A"],
    test: Float[Tensor, "B N D"],
    seed: int,
    groups: Sequence[str] | None = None,
    queries: int = 32,
) -> Attended:
    """A probe trained on all training images, applied to the test images.

    The learning rate is the one of `LEARNING_RATES` that classifies best a fold of the training
    images that its trial does not see; the lowest where a class has a single image.

    Args:
        train: patch tokens of the training images, in any float type.
        labels: their classes, from 0.
        test: patch tokens of the test images.
        seed: of the fold, the weights and the order.
        groups: of the training images, such as patients: the fold divides none.
        queries: of the pooling; they divide D.
    """
    fold = folds_of(labels, seed, groups)
    inside, outside = fold > 0, fold == 0
    validated: list[float] = []
    if inside.any():
        for lr in LEARNING_RATES:
            model = fit(train[inside], labels[inside], lr, seed, queries)
            hits = model.logits(train[outside]).argmax(1) == labels[outside]
            validated.append(float(hits.double().mean()))
    best = max(range(len(validated)), key=validated.__getitem__) if validated else 0
    model = fit(train, labels, LEARNING_RATES[best], seed, queries)
    return Attended(model.logits(test), LEARNING_RATES[best], validated)


def fit(
    tokens: Float[Tensor, "A N D"],
    labels: Int64[Tensor, " A"],
    peak: float,
    seed: int,
    queries: int,
) -> AttentiveProbe:
    """A probe trained by AdamW: warm-up of a tenth of the steps, then half a cosine to 0."""
    with seeded(seed):
        model = AttentiveProbe(tokens, int(labels.max()) + 1, queries)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, peak, weight_decay=WEIGHT_DECAY, fused=True)
    batch = min(BATCH_SIZE, len(labels))
    steps = min(MOST_STEPS, EPOCHS * -(-len(labels) // batch))
    order = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    model.train()
    for step in range(steps):
        if len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(len(labels), generator=order)])
        ids, waiting = waiting[:batch], waiting[batch:]
        rise, progress = (step + 1) / (0.1 * steps), step / steps
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, rise, (1 + math.cos(math.pi * progress)) / 2)
        optimizer.zero_grad()
        F.cross_entropy(model(tokens[ids]), labels[ids]).backward()
        optimizer.step()
    return model
