"""k-NN classification of features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def knn(
    train: Float[Tensor, "A F"],
    test: Float[Tensor, "B F"],
    labels: Int64[Tensor, "A"],
    classes: int,
    k: int,
) -> Int64[Tensor, "B"]:
    """The class of each test row: the k most similar training rows vote with exp(cosine / 0.07) (Wu et al. 2018), after
    each feature is standardised with the training rows' mean and deviation."""
    mean, std = train.mean(0), train.std(0)
    std = torch.where(
        std > 1e-6, std, 1.0
    )  # what is constant in training must not drown the rest where it is not
    train, test = (F.normalize((x - mean) / std, dim=1) for x in (train, test))
    guesses = []
    for rows in test.split(1024):
        similarity, nearest = (rows @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(rows), classes).scatter_add_(
            1, labels[nearest], (similarity / 0.07).exp()
        )
        guesses.append(votes.argmax(1))
    return torch.cat(guesses)
