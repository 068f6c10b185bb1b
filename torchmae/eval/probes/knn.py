"""k-NN classification of features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def knn(
    train: Float[Tensor, "A F"],
    test: Float[Tensor, "B F"],
    labels: Int64[Tensor, " A"],
    classes: int,
    k: int,
) -> Int64[Tensor, " B"]:
    """The class of each test row with the most `knn_votes`; arguments as there."""
    return knn_votes(train, test, labels, classes, k).argmax(1)


def knn_votes(
    train: Float[Tensor, "A F"],
    test: Float[Tensor, "B F"],
    labels: Int64[Tensor, " A"],
    classes: int,
    k: int,
) -> Float[Tensor, "B classes"]:
    """The votes of each test row's nearest training rows for each class.

    Features are standardised with the training rows' mean and std; the k most similar training
    rows vote with exp(cosine / 0.07) (Wu et al. 2018, section 3.4).

    Args:
        train: features to vote.
        test: features to classify.
        labels: the class of each training row, 0 to classes - 1.
        classes: their number.
        k: how many vote; all, where there are fewer.
    """
    mean = train.mean(0)
    std = train.std(0)
    # A feature that is constant in training must not dominate where it is not constant in test.
    std = torch.where(std > 1e-6, std, 1.0)
    train, test = (F.normalize((x - mean) / std, dim=1) for x in (train, test))
    found = []
    for rows in test.split(1024):  # bounds the memory of the similarities
        similarity, nearest = (rows @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(rows), classes).scatter_add_(
            1, labels[nearest], (similarity / 0.07).exp()
        )
        found.append(votes)
    return torch.cat(found)
