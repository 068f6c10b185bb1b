"""Multinomial logistic regression on stored features, its strength chosen by cross-validation."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from torchmae.data.labels import by_class
from torchmae.eval.baselines import accuracy

# Of the punishment of mean cross-entropy + strength / 2 |weights|^2, strongest first. In a mean it means the same for any
# number of images; features are standardised, so that it means much the same for all of them.
STRENGTHS = tuple(10.0**power for power in range(1, -8, -1))


def probed(
    train: Float[Tensor, "A F"],
    labels: Int64[Tensor, "A"],
    test: Float[Tensor, "B F"],
    truth: Int64[Tensor, "B"],
    seed: int,
) -> dict[str, Any]:
    """Accuracy on the test rows, used once, of the regression on all training rows with the strength found on these alone."""
    rows, test_rows = standardised(train, test)
    validated = cross_validated(rows, labels, seed)
    best = (
        max(range(len(validated)), key=validated.__getitem__) if validated else len(STRENGTHS) // 2
    )
    everything = torch.full((len(rows), 1), 1 / len(rows), dtype=rows.dtype)
    *_, weights = logistic(rows, labels, everything, STRENGTHS[: best + 1])
    score = accuracy((test_rows @ weights[:, 0]).argmax(1), truth)
    return {**score, "strength": STRENGTHS[best], "cross_validated": validated}


def standardised(
    train: Float[Tensor, "A F"], test: Float[Tensor, "B F"]
) -> tuple[Float64[Tensor, "A D"], Float64[Tensor, "B D"]]:
    """Features less the training rows' mean, in units of their deviation (one that is constant there stays as it is), with
    a last feature of 1, for the bias."""
    mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    first, second = (
        F.pad((rows.double() - mean) / deviation, (0, 1), value=1.0) for rows in (train, test)
    )
    return first, second


def cross_validated(
    rows: Float64[Tensor, "N D"], labels: Int64[Tensor, "N"], seed: int
) -> list[float]:
    """The accuracy of each strength on rows left out of the fit, one part after the other. Empty where a class has but one
    row: there are no parts then."""
    part = parts(labels, seed)
    count = int(part.max()) + 1
    if count < 2:
        return []
    inside = (part.unsqueeze(1) != torch.arange(count)).double()
    accuracies = []
    for weights in logistic(rows, labels, inside / inside.sum(0), STRENGTHS):
        guesses = torch.empty_like(labels)
        for i in range(count):
            guesses[part == i] = (rows[part == i] @ weights[:, i]).argmax(1)
        accuracies.append(int((guesses == labels).sum()) / len(labels))
    return accuracies


def parts(labels: Int64[Tensor, "N"], seed: int) -> Int64[Tensor, "N"]:
    """For each row the number of its part in cross-validation: five, or as many as the smallest class has rows, each with its
    share of every class."""
    count = min(5, int(labels.bincount().min()))
    part = torch.empty_like(labels)
    for _, members in by_class([str(label) for label in labels.tolist()], seed):
        part[members] = torch.arange(len(members)) % count
    return part


def logistic(
    rows: Float64[Tensor, "N D"],
    labels: Int64[Tensor, "N"],
    weights: Float64[Tensor, "N fits"],
    strengths: Sequence[float],
) -> Iterator[Float64[Tensor, "D fits classes"]]:
    """Multinomial logistic regressions, one a column of `weights`, which says how much each row counts (columns sum to 1): for
    each strength what makes cross-entropy + strength / 2 |W|^2 least. The last feature is the bias and is not punished.

    The strengths go from strong to weak, and each starts from the one before: begun at a weak one, it would stop too early.

    scikit-learn's L-BFGS needs hundreds of passes over the rows where the punishment is weak, since features vary far more
    in some directions than in others. Here it works in coordinates in which the curvature is near 1 everywhere: that of a
    row is (diag p - p p^T) x (row row^T), whose first factor is taken as the mean of its eigenvalues, so that one D x D
    matrix does for all classes and all fits, which share the passes.
    """
    fits, classes = weights.shape[1], int(labels.max()) + 1
    hits = F.one_hot(labels, classes).unsqueeze(1)
    batches = list(
        zip(*(x.split(4096) for x in (rows, hits, weights.unsqueeze(2))))
    )  # bounds the memory of the logits
    punished = torch.ones(rows.shape[1], 1, dtype=rows.dtype)
    punished[-1] = 0

    def log_chances(
        some: Float64[Tensor, "B D"], found: Float64[Tensor, "D columns"]
    ) -> Float64[Tensor, "B fits classes"]:
        return (some @ found).view(-1, fits, classes).log_softmax(2)

    def fit(strength: float, start: Float64[Tensor, "D columns"]) -> Float64[Tensor, "D columns"]:
        curvature, at_start = (
            strength * torch.diag(punished[:, 0]),
            strength / 2 * (punished * start.square()).sum(),
        )
        for some, hit, counts in batches:
            logs = log_chances(some, start)
            eigenvalue = (counts * (1 - logs.exp().square().sum(2, keepdim=True))).sum(1) / (
                fits * (classes - 1)
            )
            curvature += (some * eigenvalue).T @ some
            at_start -= (counts * hit * logs).sum()
        curvature += 1e-7 * torch.diag(curvature.diagonal())  # whatever rounding does, more than 0
        root = torch.linalg.cholesky(curvature)
        back = torch.linalg.inv(root)
        moved = root.T @ start  # W = back.T @ moved

        def loss_and_slope() -> Tensor:
            found = back.T @ moved
            loss, slope = (
                strength / 2 * (punished * found.square()).sum(),
                strength * punished * found,
            )
            for some, hit, counts in batches:
                logs = log_chances(some, found)
                loss -= (counts * hit * logs).sum()
                slope += some.T @ (counts * (logs.exp() - hit)).flatten(1)
            moved.grad = back @ slope
            return loss

        # What is left to gain is about |slope|^2 / 2 in these coordinates. Where classes are told apart the loss itself is
        # tiny, and the slope must be small beside it: with 1e-4 for all, the loss could end ten times too high.
        enough = 1e-4 * min(1.0, float(at_start) / fits) ** 0.5
        optimizer = torch.optim.LBFGS(
            [moved],
            max_iter=3000,
            tolerance_grad=enough,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(loss_and_slope)
        return back.T @ moved

    found = torch.zeros(rows.shape[1], fits * classes, dtype=rows.dtype)
    for strength in strengths:
        found = fit(strength, found)
        yield found.view(-1, fits, classes)
