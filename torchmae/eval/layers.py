"""How good each block's features are."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from torchmae.eval.classification import accuracy
from torchmae.eval.rank import rankme

# Training and test features to what is said of the test rows, and more for results.json.
Guess = Callable[
    [Float[Tensor, "A F"], Float[Tensor, "B F"]], tuple[Int64[Tensor, " B"], dict[str, Any]]
]


def measure_layers(
    train: Float[Tensor, "A L F"],
    test: Float[Tensor, "B L F"],
    truth: Int64[Tensor, " B"],
    guess: Guess,
) -> list[dict[str, Any]]:
    """The accuracy of each block's features, and their effective rank.

    Args:
        train: training features of L blocks.
        test: test features of these.
        truth: the classes of the test rows.
        guess: classifies the test rows by the training rows of a block.

    Returns:
        For each block "block" (its number, from 1), "accuracy", "low" and "high" (95 % interval),
        "rankme" of the training features, and what else `guess` returns.
    """
    rows = []
    for i in tqdm(range(train.shape[1]), "blocks", unit=" blocks", disable=None, leave=False):
        found, more = guess(train[:, i], test[:, i])
        measured = {**accuracy(found, truth), "rankme": rankme(train[:, i])}
        rows.append({"block": i + 1, **measured, **more})
    return rows
