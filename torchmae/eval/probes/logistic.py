"""Multinomial logistic regression on stored features, its penalty chosen by cross-validation."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from torchmae.data.labels import by_class
from torchmae.hashing import SPLIT, hash32

# Of the L2 penalty in mean cross-entropy + strength / 2 |weights|^2, strongest first. In a mean it
# means the same for any number of images; features are standardised, so that it means much the
# same for all of them.
STRENGTHS = tuple(10.0**power for power in range(1, -8, -1))


class LinearProbe(NamedTuple):
    """What a regression says of the test rows, and how its strength was chosen.

    `cross_validated` is the accuracy of each of `STRENGTHS`.
    """

    logits: Float64[Tensor, "B classes"]
    strength: float
    cross_validated: list[float]

    def choices(self) -> dict[str, Any]:
        """What was chosen, for results.json."""
        return {"strength": self.strength, "cross_validated": self.cross_validated}


def folds_of(
    labels: Int64[Tensor, " N"], seed: int, groups: Sequence[str] | None
) -> Int64[Tensor, " N"]:
    """The fold of each row: of whole groups where there are any."""
    return stratified_folds(labels, seed) if groups is None else group_folds(labels, seed, groups)


def linear_probe(
    train: Float[Tensor, "A F"],
    labels: Int64[Tensor, " A"],
    test: Float[Tensor, "B F"],
    seed: int,
    groups: Sequence[str] | None = None,
) -> LinearProbe:
    """A regression on all training rows, applied to the test rows.

    Its strength is the one with the best cross-validation on the training rows alone; the middle
    one where a class has a single training row.

    Args:
        train: training features.
        labels: their classes, from 0.
        test: test features.
        seed: of the folds.
        groups: of the training rows, such as patients: no fold divides one.
    """
    rows, test_rows = standardize(train, test)
    validated = cross_validate(rows, labels, seed, groups)
    middle = len(STRENGTHS) // 2
    best = max(range(len(validated)), key=validated.__getitem__) if validated else middle
    equal = torch.full((len(rows), 1), 1 / len(rows), dtype=rows.dtype)
    *_, weights = logistic_regression(rows, labels, equal, STRENGTHS[: best + 1])
    return LinearProbe(test_rows @ weights[:, 0], STRENGTHS[best], validated)


def standardize(
    train: Float[Tensor, "A F"], test: Float[Tensor, "B F"]
) -> tuple[Float64[Tensor, "A D"], Float64[Tensor, "B D"]]:
    """Features standardised by the training rows' mean and std, and a last column of 1 (bias).

    A feature that is constant in the training rows is only centred. D is F + 1.
    """
    mean = train.double().mean(0)
    std = train.double().std(0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)
    first, second = (
        F.pad((rows.double() - mean) / std, (0, 1), value=1.0) for rows in (train, test)
    )
    return first, second


def cross_validate(
    rows: Float64[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    seed: int,
    groups: Sequence[str] | None = None,
) -> list[float]:
    """The accuracy of each of `STRENGTHS` on the rows of each fold, fitted without that fold.

    Empty where a class has a single row, which leaves nothing to divide.
    """
    fold = folds_of(labels, seed, groups)
    count = int(fold.max()) + 1
    if count < 2:
        return []
    inside = (fold.unsqueeze(1) != torch.arange(count)).double()
    accuracies = []
    for weights in logistic_regression(rows, labels, inside / inside.sum(0), STRENGTHS):
        guesses = torch.empty_like(labels)
        for i in range(count):
            guesses[fold == i] = (rows[fold == i] @ weights[:, i]).argmax(1)
        accuracies.append(int((guesses == labels).sum()) / len(labels))
    return accuracies


def stratified_folds(labels: Int64[Tensor, " N"], seed: int) -> Int64[Tensor, " N"]:
    """The fold of each row, 0 to 4 at most, each fold with its share of every class.

    There are five folds, or as many as the smallest class has rows.
    """
    count = min(5, int(labels.bincount().min()))
    fold = torch.empty_like(labels)
    for _, members in by_class([str(label) for label in labels.tolist()], seed):
        fold[members] = torch.arange(len(members)) % count
    return fold


def group_folds(
    labels: Int64[Tensor, " N"], seed: int, groups: Sequence[str]
) -> Int64[Tensor, " N"]:
    """As `stratified_folds`, with whole groups, largest first: each goes to the fold that has
    fewest rows of its classes."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    owners: dict[int, set[str]] = {}
    for label, group in zip(labels.tolist(), groups):
        owners.setdefault(label, set()).add(group)
    count = min(5, *map(len, owners.values()))
    have = torch.zeros(count, int(labels.max()) + 1)
    fold = torch.zeros_like(labels)
    order = sorted(
        members, key=lambda group: (-len(members[group]), hash32(seed, SPLIT, members[group][0]))
    )
    for group in order:
        inside = labels[members[group]].bincount(minlength=have.shape[1]).float()
        best = int((have @ inside + 1e-6 * have.sum(1)).argmin())
        fold[members[group]] = best
        have[best] += inside
    return fold


def logistic_regression(
    rows: Float64[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    weights: Float64[Tensor, "N fits"],
    strengths: Sequence[float],
) -> Iterator[Float64[Tensor, "D fits classes"]]:
    """Several multinomial logistic regressions at once, for one strength after the other.

    Each minimises cross-entropy + strength / 2 |W|^2; the last feature is the bias and is not
    penalised.

    Args:
        rows: features, standardised, the last one 1.
        labels: their classes, from 0.
        weights: one regression a column: how much each row counts in it; columns sum to 1.
        strengths: from strong to weak. Each fit starts from the one before: started at a weak
            strength, it would stop too early.

    Yields:
        For each strength the weights W of all regressions.
    """
    problem = Regressions(rows, labels, weights)
    found = torch.zeros(rows.shape[1], problem.fits * problem.classes, dtype=rows.dtype)
    for strength in strengths:
        found = problem.fit(strength, found)
        yield found.view(-1, problem.fits, problem.classes)


class Regressions:
    """The regressions of `logistic_regression`, which share all passes over the rows.

    scikit-learn's L-BFGS needs hundreds of passes over the rows where the penalty is weak, since
    features vary far more in some directions than in others. Here it works in coordinates in which
    the curvature is near 1 everywhere: that of a row is (diag p - p p^T) x (row row^T), whose first
    factor is replaced by the mean of its eigenvalues, so that one D x D matrix serves all classes
    and all fits.
    """

    def __init__(
        self,
        rows: Float64[Tensor, "N D"],
        labels: Int64[Tensor, " N"],
        weights: Float64[Tensor, "N fits"],
    ):
        self.fits = weights.shape[1]
        self.classes = int(labels.max()) + 1
        hits = F.one_hot(labels, self.classes).unsqueeze(1)
        # Batches bound the memory of the logits.
        self.batches = list(zip(*(x.split(4096) for x in (rows, hits, weights.unsqueeze(2)))))
        self.penalised = torch.ones(rows.shape[1], 1, dtype=rows.dtype)
        self.penalised[-1] = 0

    def log_probabilities(
        self, rows: Float64[Tensor, "B D"], found: Float64[Tensor, "D columns"]
    ) -> Float64[Tensor, "B fits classes"]:
        return (rows @ found).view(-1, self.fits, self.classes).log_softmax(2)

    def curvature(
        self, strength: float, start: Float64[Tensor, "D columns"]
    ) -> tuple[Float64[Tensor, "D D"], Float64[Tensor, ""]]:
        """The mean curvature at `start`, positive definite, and the loss there, of all fits."""
        curvature = strength * torch.diag(self.penalised[:, 0])
        loss = strength / 2 * (self.penalised * start.square()).sum()
        for rows, hit, counts in self.batches:
            logs = self.log_probabilities(rows, start)
            eigenvalue = (counts * (1 - logs.exp().square().sum(2, keepdim=True))).sum(1) / (
                self.fits * (self.classes - 1)
            )
            curvature += (rows * eigenvalue).T @ rows
            loss -= (counts * hit * logs).sum()
        curvature += 1e-7 * torch.diag(curvature.diagonal())  # rounding could make it indefinite
        return curvature, loss

    def fit(
        self, strength: float, start: Float64[Tensor, "D columns"]
    ) -> Float64[Tensor, "D columns"]:
        """The minimum for one strength, found from `start`."""
        curvature, start_loss = self.curvature(strength, start)
        root = torch.linalg.cholesky(curvature)
        back = torch.linalg.inv(root)
        moved = root.T @ start  # W = back.T @ moved

        def loss_and_gradient() -> Tensor:
            found = back.T @ moved
            loss = strength / 2 * (self.penalised * found.square()).sum()
            gradient = strength * self.penalised * found
            for rows, hit, counts in self.batches:
                logs = self.log_probabilities(rows, found)
                loss -= (counts * hit * logs).sum()
                gradient += rows.T @ (counts * (logs.exp() - hit)).flatten(1)
            moved.grad = back @ gradient
            return loss

        # What is left to gain is about |gradient|^2 / 2 in these coordinates. Where classes are
        # separable the loss itself is tiny, and the gradient must be small beside it: with 1e-4
        # for all, the loss could end ten times too high.
        tolerance = 1e-4 * min(1.0, float(start_loss) / self.fits) ** 0.5
        optimizer = torch.optim.LBFGS(
            [moved],
            max_iter=3000,
            tolerance_grad=tolerance,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(loss_and_gradient)
        return back.T @ moved
