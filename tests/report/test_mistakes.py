"""The most confident mistakes, in order."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torchmae.data.sources import open_source
from torchmae.report.mistakes import draw_mistakes, most_confident_mistakes


def test_the_order_is_that_of_confidence() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 9.0], [5.0, 0.0], [0.0, 2.0]])
    places, confidence = most_confident_mistakes(logits, torch.tensor([0, 0, 1, 1, 0]))
    assert places.tolist() == [3, 4, 1]
    assert torch.allclose(confidence, logits.softmax(1).amax(1))


def test_the_picture_names_guess_and_truth(tmp_path: Path, written: list[str]) -> None:
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    source = open_source(tmp_path)
    logits, out = torch.tensor([[4.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), tmp_path / "mistakes.png"
    labels = torch.tensor([1, 1, 1])
    assert draw_mistakes(source, [0, 1, 2], logits, labels, ["cat", "dog"], (16, 16), out)
    assert out.is_file()
    assert {"cat 98%, is dog", "cat 95%, is dog"} <= set(written)
    assert not draw_mistakes(
        source, [0, 1, 2], logits, logits.argmax(1), ["cat", "dog"], (16, 16), out
    )
    assert not out.exists()
