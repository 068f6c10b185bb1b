"""How many directions features use, without labels."""

import torch
from jaxtyping import Float
from torch import Tensor

MOST_RANKED = 25_600  # rows: as many as the paper takes of ImageNet; bounds the time


def rankme(features: Float[Tensor, "N D"]) -> float:
    """The effective rank of features: exp of the entropy of their singular values' shares (Garrido
    et al. 2023, arXiv 2210.02885).

    Args:
        features: one row an image, as they are (not centered), any float type; of more than
            `MOST_RANKED` rows so many, evenly spaced. Compare values of the same number of images
            only: the result is at most min(N, D).

    Returns:
        From 1 (all rows are multiples of one vector) to min(N, D) (all directions equally strong).
    """
    count = len(features)
    if count > MOST_RANKED:
        features = features[torch.arange(MOST_RANKED) * count // MOST_RANKED]
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + 1e-7  # the paper's epsilon: 0 log 0 is 0
    return float((-(shares * shares.log()).sum()).exp())


def rank_line(rank: float, images: int, width: int) -> str:
    """An effective rank for people, with what it can be at most.

    Args:
        rank: what `rankme` returns.
        images: the rows it was measured on.
        width: of the features.
    """
    return f"RankMe {rank:.1f} of at most {min(images, width)} ({images} training images)"
