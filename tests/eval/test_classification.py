"""The scores of a classifier by hand."""

import pytest
import torch

from torchmae.eval.classification import accuracy, scores


def test_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]]).log_softmax(1)
    found = scores(logits, torch.tensor([0, 1, 0, 2]), ("a", "b", "c"))
    assert (found.count, found.top1, found.top5) == (4, 0.75, 1.0)
    assert found.per_class == {"a": 0.5, "b": 1.0, "c": 1.0}
    assert found.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    confidence = float(logits.exp().max())
    assert found.calibration_error == pytest.approx(abs(0.75 - confidence), abs=1e-6)
    assert found.low < 0.75 < found.high


def test_accuracy_has_its_interval() -> None:
    found = accuracy(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 0, -1]))
    assert found["accuracy"] == 0.5
    assert 0 < found["low"] < 0.5 < found["high"] < 1
