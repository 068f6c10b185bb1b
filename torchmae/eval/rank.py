"""How many directions features use, without labels."""

import torch
from jaxtyping import Float
from torch import Tensor


def rankme(features: Float[Tensor, "N D"]) -> float:
    """The effective rank of features: exp of the entropy of their singular values' shares (Garrido
    et al. 2023, arXiv 2210.02885).

    Args:
        features: one row an image, as they are (not centered), any float type. Compare values of
            the same number of images only: the result is at most min(N, D).

    Returns:
        From 1 (all rows are multiples of one vector) to min(N, D) (all directions equally strong).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + 1e-7  # the paper's epsilon: 0 log 0 is 0
    return float((-(shares * shares.log()).sum()).exp())
