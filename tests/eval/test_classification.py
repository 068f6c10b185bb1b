"""The scores of a classifier by hand."""

import pytest
import torch

from torchmae.eval.classification import accuracy, scores


def test_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]]).log_softmax(1)
    found = scores(logits, torch.tensor([0, 1, 0, 2]), ("a", "b", "c"))
    assert (found.count, found.top1, found.top5) == (4, 0.75, None)
    assert found.per_class == {"a": 0.5, "b": 1.0, "c": 1.0}
    assert found.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    confidence = float(logits.exp().max())
    assert found.calibration_error == pytest.approx(abs(0.75 - confidence), abs=1e-6)
    assert found.low < 0.75 < found.high


@pytest.mark.parametrize("possible, top5", [(7, 0.75), (6, 0.75), (5, None), (2, None)])
def test_top_5_is_of_more_than_5_classes(possible: int, top5: float | None) -> None:
    """With fewer the true class is always among them, and 100 % says nothing."""
    logits = torch.arange(7.0, 0, -1).repeat(4, 1)  # class 0 is the most probable
    logits[:, possible:] = -torch.inf  # as mae evaluate --among has it
    found = scores(logits, torch.tensor([0, 1, 4, 5]), tuple("abcdefg"))
    assert found.top5 == top5
    assert ("top5" in found.summary()) == (top5 is not None)


def test_balanced_accuracy_f1_and_auc_are_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=generator).clamp(max=2)  # 2 is the commonest
    # a fourth class that never occurs; ties of probabilities, as all logits are whole numbers
    logits = (2 * torch.randn(60, 4, generator=generator)).round()
    logits[:, 3] = -torch.inf
    logits[torch.arange(60), labels] += 1.0
    found = scores(logits, labels, ("a", "b", "c", "d"))
    truth, said = labels.numpy(), logits.argsort(dim=1, descending=True, stable=True)[:, 0].numpy()
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(truth, said))
    f1 = metrics.f1_score(truth, said, average="macro", labels=[0, 1, 2])
    assert found.macro_f1 == pytest.approx(f1)
    probabilities = logits.double().softmax(1)[:, :3].numpy()
    areas = [metrics.roc_auc_score(truth == i, probabilities[:, i]) for i in range(3)]
    assert found.auc == pytest.approx(sum(areas) / 3)
    assert scores(logits[:2], torch.zeros(2, dtype=torch.long), ("a", "b", "c", "d")).auc is None


def test_a_constant_answer_has_the_balanced_accuracy_of_chance() -> None:
    logits = torch.tensor([[1.0, 0, 0]]).expand(10, -1)
    found = scores(logits, torch.tensor([0] * 8 + [1, 2]), ("a", "b", "c"))
    assert found.top1 == pytest.approx(0.8)
    assert found.balanced_accuracy == pytest.approx(1 / 3)
    assert found.auc == 0.5


def test_calibration_has_15_bins_of_confidence_by_hand() -> None:
    """Confidences at both sides of edges of 15 bins, in which 10 or 20 bins give another error."""
    confidence = torch.tensor([0.52, 0.54, 0.58, 0.62, 0.66, 0.68, 0.79, 0.81, 0.99, 1.0])
    right = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1, 1, 1]).bool()
    logits = torch.stack([confidence, 1 - confidence], dim=1).clamp(min=1e-30).log()
    found = scores(logits, (~right).long(), ("a", "b"))

    def error(bins: int) -> float:
        total = 0.0
        for low in range(bins):
            inside = [
                i for i, c in enumerate(confidence.tolist()) if low == min(int(c * bins), bins - 1)
            ]
            if inside:
                accuracy = sum(bool(right[i]) for i in inside) / len(inside)
                mean = sum(float(confidence[i]) for i in inside) / len(inside)
                total += abs(accuracy - mean) * len(inside) / len(confidence)
        return total

    assert found.calibration_error == pytest.approx(error(15), abs=1e-6)
    for bins in (10, 14, 16, 20):
        assert abs(error(bins) - error(15)) > 0.01, bins


def test_accuracy_has_its_interval() -> None:
    found = accuracy(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 0, -1]))
    assert found["accuracy"] == 0.5
    assert 0 < found["low"] < 0.5 < found["high"] < 1
