"""Logistic regression against scikit-learn's, and what may influence its strength."""

import numpy as np
import pytest
import torch
from torch import Tensor

from torchmae.eval.probes.logistic import (
    STRENGTHS,
    LinearProbe,
    cross_validate,
    group_folds,
    linear_probe,
    logistic_regression,
    standardize,
    stratified_folds,
)


def clouds(each: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds in 12 dimensions of very different scale, one of them constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(each)
    rows = torch.randn(3 * each, 12, generator=generator)
    rows[:, :3] += apart * torch.nn.functional.one_hot(labels, 3)
    rows[:, 3] += rows[:, 0]
    return rows * torch.logspace(-3, 3, 12) * torch.tensor([1.0] * 11 + [0.0]) + 7.7, labels


def right(found: LinearProbe, truth: Tensor) -> float:
    return float((found.logits.argmax(1) == truth).float().mean())


def test_the_regressions_are_scikit_learn_s() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, labels = clouds(60, 1.5)
    rows, _ = standardize(rows, rows)
    inside = torch.ones(len(rows), 2, dtype=torch.float64)
    inside[::4, 1] = 0  # the second regression leaves a quarter of the rows out
    for strength, found in zip(
        STRENGTHS, logistic_regression(rows, labels, inside / inside.sum(0), STRENGTHS)
    ):
        for i in range(2):
            kept = inside[:, i] > 0
            other = linear_model.LogisticRegression(
                C=1 / (strength * int(kept.sum())), tol=1e-8, max_iter=10_000
            )
            other.fit(rows[kept, :-1].numpy(), labels[kept].numpy())
            expected = other.predict_proba(rows[:, :-1].numpy())
            np.testing.assert_allclose((rows @ found[:, i]).softmax(1).numpy(), expected, atol=2e-3)


def test_the_minimum_is_reached_where_classes_are_told_apart_and_features_outnumber_images() -> (
    None
):
    """There the loss is flat, and a solver that stops at a fixed gradient ends far above it."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    rows = torch.randn(30, 128, generator=generator) @ torch.randn(
        128, 128, generator=generator
    ).cumsum(1)
    rows, _ = standardize(rows, rows)

    def loss(weights: Tensor, strength: float) -> float:
        penalty = strength / 2 * weights[:-1].square().sum()
        return float(torch.nn.functional.cross_entropy(rows @ weights, labels) + penalty)

    for strength, found in zip(
        STRENGTHS,
        logistic_regression(
            rows, labels, torch.full((30, 1), 1 / 30, dtype=torch.float64), STRENGTHS
        ),
    ):
        other = linear_model.LogisticRegression(C=1 / (strength * 30), tol=1e-9, max_iter=100_000)
        other.fit(rows[:, :-1].numpy(), labels.numpy())
        theirs = torch.from_numpy(np.concatenate([other.coef_.T, other.intercept_[None]]))
        assert loss(found[:, 0], strength) < loss(theirs, strength) * 1.001


def test_the_parts_have_their_share_of_every_class() -> None:
    labels = torch.tensor([0] * 23 + [1] * 10 + [2] * 6)
    part = stratified_folds(labels, 0)
    counts = torch.stack([labels[part == i].bincount(minlength=3) for i in range(5)])
    assert part.max() == 4 and (counts.amax(0) - counts.amin(0) <= 1).all()
    assert part.equal(stratified_folds(labels, 0)) and not part.equal(stratified_folds(labels, 1))
    assert (
        stratified_folds(labels[:35], 0).max() == 1 and stratified_folds(labels[:34], 0).max() == 0
    )  # by the smallest class


def test_cross_validation_is_each_part_guessed_from_the_others() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, labels = clouds(30, 3.0)
    rows, _ = standardize(rows, rows)
    part, right = stratified_folds(labels, 3), [0] * len(STRENGTHS)
    for i in range(5):
        inside = part != i
        for n, strength in enumerate(STRENGTHS):
            other = linear_model.LogisticRegression(
                C=1 / (strength * int(inside.sum())), tol=1e-8, max_iter=10_000
            )
            other.fit(rows[inside, :-1].numpy(), labels[inside].numpy())
            right[n] += int(
                (other.predict(rows[~inside, :-1].numpy()) == labels[~inside].numpy()).sum()
            )
    assert cross_validate(rows, labels, 3) == [count / 90 for count in right]
    assert cross_validate(rows[:61], labels[:61], 0) == []


def test_noise_is_punished_and_cross_validation_does_not_look_at_what_it_tests() -> None:
    """Random labels, more features than images: fitted perfectly, guessed at chance level."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 200, generator=generator)
    labels = torch.arange(120) % 2
    rows, _ = standardize(rows, rows)
    *_, weights = logistic_regression(
        rows, labels, torch.full((120, 1), 1 / 120, dtype=torch.float64), STRENGTHS
    )
    assert ((rows @ weights[:, 0]).argmax(1) == labels).all()
    assert all(0.3 < share < 0.7 for share in cross_validate(rows, labels, 0))


def test_separable_classes_are_told_apart() -> None:
    (train, labels), (test, truth) = clouds(30, 60.0), clouds(10, 60.0, seed=1)
    found = linear_probe(train, labels, test, 0)
    assert right(found, truth) == 1.0 and max(found.cross_validated) == 1.0
    first = found.cross_validated.index(1.0)
    assert found.strength == STRENGTHS[first]  # the strongest of those that are equally good


def test_the_test_features_do_not_change_the_strength() -> None:
    (train, labels), (test, truth) = clouds(30, 1.5), clouds(30, 1.5, seed=1)
    found, other = (linear_probe(train, labels, rows, 0) for rows in (test, test * 100))
    assert right(found, truth) > 0.4
    assert found[1:] == other[1:]


def test_one_image_of_a_class_takes_the_middle_strength() -> None:
    train, labels = clouds(30, 60.0)
    one = torch.tensor([0, 30, 60])
    found = linear_probe(train[one], labels[one], train, 0)
    assert found.strength == STRENGTHS[len(STRENGTHS) // 2] and found.cross_validated == []
    assert right(found, labels) > 0.5


def test_folds_by_group_divide_no_patient_and_share_the_classes():
    labels = torch.arange(60) % 3
    groups = [f"p{i // 4}" for i in range(60)]
    folds = group_folds(labels, 0, groups)
    assert {*folds.tolist()} == set(range(5))
    for group in set(groups):
        assert len({f for f, g in zip(folds.tolist(), groups) if g == group}) == 1
    shares = [labels[folds == k].bincount(minlength=3).tolist() for k in range(5)]
    assert all(count >= 2 for share in shares for count in share)
    few = group_folds(torch.tensor([0, 0, 1, 1]), 0, ["a", "b", "c", "d"])
    assert {*few.tolist()} == {0, 1}
    assert cross_validate(torch.eye(4).double(), torch.tensor([0, 0, 1, 1]), 0, list("aabc")) == []
