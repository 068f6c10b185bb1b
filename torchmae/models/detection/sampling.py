"""Which anchors and proposals a step learns from: drawn by the hash, never by torch's generator."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from torchmae.hashing import hash32

COVERED = 0.5  # share of a box inside a crowd, from which on it is no example of the background


class HashedSampler:
    """Picks some of the positive and negative boxes of each image: a pure function of the image's
    key, so that a resume, workers, micro-batches and processes change nothing.

    In the place of torchvision's `BalancedPositiveNegativeSampler`, which draws from the global
    generator.

    Args:
        count: boxes of an image.
        positive_fraction: how many of them at most are positive.
        turn: tells the samplers of a model apart.

    Attributes:
        keys: of the images of the next call: a word of the hash for each.
    """

    def __init__(self, count: int, positive_fraction: float, turn: int):
        self.count = count
        self.positive_fraction = positive_fraction
        self.turn = turn
        self.keys: Int64[Tensor, " B"] | None = None

    def __call__(
        self, labels: Sequence[Tensor]
    ) -> tuple[list[Bool[Tensor, " _"]], list[Bool[Tensor, " _"]]]:
        """Which boxes of each image are picked as positive, and which as negative.

        Args:
            labels: of the boxes of each image: 1 and more positive, 0 negative, below ignored.
        """
        assert self.keys is not None and len(self.keys) == len(labels)
        positives, negatives = [], []
        for key, label in zip(self.keys, labels):
            ranks = hash32(key, self.turn, torch.arange(len(label), device=label.device))
            positive = lowest(label >= 1, ranks, int(self.count * self.positive_fraction))
            left = self.count - int(positive.sum())
            positives.append(positive)
            negatives.append(lowest(label == 0, ranks, left))
        return positives, negatives


def lowest(among: Bool[Tensor, " N"], ranks: Int64[Tensor, " N"], count: int) -> Bool[Tensor, " N"]:
    """The `count` places among some with the lowest ranks; all of them where there are no more."""
    places = among.nonzero()[:, 0]
    if len(places) > count:
        places = places[ranks[places].argsort(stable=True)[:count]]
    chosen = torch.zeros_like(among)
    chosen[places] = True
    return chosen


def inside_crowd(boxes: Float[Tensor, "N 4"], crowds: Float[Tensor, "M 4"]) -> Bool[Tensor, " N"]:
    """Whether at least half of a box is inside a crowd: it may show an object or none."""
    if not len(crowds):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2).amax(1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return shared >= COVERED * area
