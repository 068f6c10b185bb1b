"""The votes of k-NN by brute force."""

import math

import torch

from torchmae.eval.probes.knn import knn


def test_votes_equal_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.randn(40, 5, generator=generator, dtype=torch.float32),
        torch.randn(11, 5, generator=generator),
    )
    labels = torch.randint(0, 3, (40,), generator=generator)
    mean, std = train.double().mean(0), train.double().std(0)
    expected = []
    for row in (test.double() - mean) / std:
        pairs = []
        for other, label in zip((train.double() - mean) / std, labels.tolist()):
            pairs.append((float(row @ other / row.norm() / other.norm()), label))
        votes = [0.0] * 3
        for similarity, label in sorted(pairs, reverse=True)[:7]:
            votes[label] += math.exp(similarity / 0.07)
        expected.append(max(range(3), key=votes.__getitem__))
    assert knn(train, test, labels, 3, 7).tolist() == expected


def test_a_feature_that_is_constant_in_training_does_not_drown_the_others() -> None:
    """Divided by 1e-6, it made a test row in which it differs equally unlike all others."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(40) % 4 == 0).long()  # ten of forty
    train = torch.randn(40, 4, generator=generator) + 6 * labels.unsqueeze(1)
    train = torch.cat([train, torch.zeros(40, 1)], dim=1)
    test = train.clone()
    test[:, 4] = 0.01
    assert torch.equal(
        knn(train, test, labels, 2, 40), labels
    )  # all rows vote: by how alike they are
