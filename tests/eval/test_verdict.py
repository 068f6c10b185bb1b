"""Whether features are better than what they are measured beside: with planted answers."""

import torch
from torch import Tensor

from torchmae.eval.verdict import accuracy_line, in_words, judge


def guesses(right: int, count: int = 100) -> Tensor:
    """Of images that are all of class 0: so many of the first are right."""
    return (torch.arange(count) >= right).long()


def test_what_is_better_worse_and_unclear_is_said_so() -> None:
    truth = torch.zeros(100, dtype=torch.long)
    named = {"features": guesses(80), "a": guesses(50), "b": guesses(79), "c": guesses(95)}
    found = judge(named, truth, "the features are")
    assert found.words.startswith(
        "the features are better than a; not clearly better than b; worse "
    )
    assert found.accuracies["features"]["accuracy"] == 0.8
    assert found.differences["a"].mean == 0.3
    assert found.differences["b"].low < 0 < found.differences["b"].high
    text = found.text({"a": ", a remark"}).splitlines()
    assert text[1].endswith("; features +30.0 (+20.9 to +39.1), a remark")
    assert text[-1] == f"Verdict: {found.words}."


def test_several_names_are_listed() -> None:
    signs = {"above": ["a", "b", "c"], "unclear": [], "below": ["d"]}
    assert in_words(signs) == "better than a, b and c; worse than d"


def test_the_interval_is_that_of_pairs() -> None:
    """Two that are right on other images differ less surely than two that differ on few."""
    truth = torch.zeros(100, dtype=torch.long)
    flipped = guesses(70).flip(0)  # right on the last 70, wrong on the first 30
    wide = judge({"x": guesses(80), "y": flipped}, truth, "").differences["y"]
    narrow = judge({"x": guesses(80), "y": guesses(70)}, truth, "").differences["y"]
    assert wide.mean == narrow.mean
    assert wide.sign == "unclear"
    assert narrow.sign == "above"


def test_an_accuracy_is_a_line_with_its_interval() -> None:
    line = accuracy_line("features", {"accuracy": 0.5, "low": 0.25, "high": 0.75})
    assert line == "  features            50.0%  (95 % interval 25.0% to 75.0%)"
