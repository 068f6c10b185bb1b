"""The most confident mistakes, in order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchmae.data.sources import open_source
from torchmae.report import mistakes
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


def test_black_and_white_are_those_of_the_whole_image(
    tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five bands of 16 bits: the crop leaves out a bright rim."""
    pixels = np.full((1, 40, 20, 5), 1000, np.uint16)
    pixels[:, 10:30] = 2000
    pixels[:, :4], pixels[:, -4:] = 0, 5000
    np.save(tmp_path / "x.npy", pixels)
    drawn: list[torch.Tensor] = []
    own = mistakes.sheet

    def record(rows, *rest):
        drawn.append(rows[""])
        return own(rows, *rest)

    monkeypatch.setattr(mistakes, "sheet", record)
    source, out = open_source(tmp_path / "x.npy"), tmp_path / "mistakes.png"
    draw_mistakes(
        source, [0], torch.tensor([[4.0, 0]]), torch.tensor([1]), ["a", "b"], (16, 16), out
    )
    assert drawn[0].dtype == torch.uint8 and int(drawn[0].max()) == 102  # 2000 of 5000
    assert "Bands 1, 2 and 3 of 5 are shown" in " ".join(written)
