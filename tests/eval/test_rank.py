import math

import pytest
import torch

from torchmae.eval import rank
from torchmae.eval.rank import rank_line, rankme


def test_equal_directions_count_fully():
    assert rankme(3 * torch.eye(16)) == pytest.approx(16, rel=1e-4)


def test_one_direction_counts_once():
    row, column = torch.randn(1, 32), torch.randn(50, 1)
    assert rankme(column @ row) == pytest.approx(1, abs=1e-3)


def test_against_the_definition_in_numpy():
    import numpy as np

    features = torch.randn(40, 12) * torch.arange(1.0, 13)
    values = np.sqrt(np.linalg.eigvalsh((features.T @ features).double().numpy()))
    shares = [value / values.sum() for value in values]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert rankme(features) == pytest.approx(expected, rel=1e-4)


def test_scale_does_not_matter_and_half_precision_is_taken():
    features = torch.randn(64, 8)
    assert rankme(features * 100) == pytest.approx(rankme(features), rel=1e-6)
    assert rankme(features.half()) == pytest.approx(rankme(features), rel=1e-2)


def test_of_very_many_rows_evenly_spaced_ones_are_taken(monkeypatch):
    features = torch.randn(1000, 4)
    features[::10] = torch.tensor([1.0, 2, 3, 4])  # those that are taken: one direction
    assert rankme(features) > 3
    monkeypatch.setattr(rank, "MOST_RANKED", 100)
    assert rankme(features) == pytest.approx(1, abs=1e-3)


def test_a_line_says_what_it_can_be_at_most():
    assert rank_line(3.14, 50, 128) == "RankMe 3.1 of at most 50 (50 training images)"
