"""The table and the picture of every block."""

from pathlib import Path

import pytest
from PIL import Image

from torchmae.report.experiments.layers import best_of, draw_layers, layers_table, report_layers

ROWS = [
    {"block": i + 1, "accuracy": top1, "low": top1 - 0.1, "high": top1 + 0.05, "rankme": 3.25 * i}
    for i, top1 in enumerate((0.5, 0.8, 0.7, 0.8))
]


def test_the_first_of_the_best_is_marked() -> None:
    assert best_of(ROWS)["block"] == 2
    head, *lines, note = layers_table(ROWS).splitlines()
    assert lines[0].split() == ["1", "50.0", "(40.0", "to", "55.0)", "0.0"]
    assert lines[1].split() == ["2", "80.0", "*", "(70.0", "to", "85.0)", "3.2"]
    assert [line.count("*") for line in lines] == [0, 1, 0, 0] and "flatters" in note
    assert len({len(line) for line in [head, *lines]}) == 1


def test_the_picture_says_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    lines: list[float] = []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **_: lines.append(y))
    accuracies = {"features": {"accuracy": 0.8}, "raw pixels": {"accuracy": 0.6}}
    path = tmp_path / "layers.png"
    said = report_layers(ROWS, "k-NN", accuracies, path)
    assert said.endswith(f"Drawn: {path}") and lines == [60]
    with Image.open(path) as picture:
        assert picture.width > 2 * picture.height
    draw_layers(ROWS[:1], "one block", {}, path)
    assert len(list(tmp_path.iterdir())) == 1
