"""The classes of a classifier on its page: numbers by hand, hostile names, damaged files."""

import json
from html import unescape
from pathlib import Path

import pytest
import torch

from torchmae.eval.classification import scores
from torchmae.report.html.classes import MOST_SQUARE, classes_section

HOSTILE = "<script>x</script>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """10 cats, of which 2 are taken for dogs; 5 dogs, 1 for <script>; no image of <script>."""
    truth = torch.tensor([0] * 10 + [1] * 5)
    guesses = torch.tensor([1, 1, *[0] * 8, 2, *[1] * 4])
    logits = 3.0 * torch.nn.functional.one_hot(guesses, 3)
    detail = scores(logits, truth, ("cat", "dog", HOSTILE)).detail(
        "mae evaluate on x", ("cat", "dog", HOSTILE)
    )
    (tmp_path / "classes.json").write_text(json.dumps({"evaluate": detail}))
    return tmp_path


def test_each_class_by_hand(run: Path) -> None:
    text = unescape(classes_section(run))
    row = text[text.index("<tr><td>cat") :].partition("</tr>")[0]
    assert [cell in row for cell in ("10<", "80.0%", "100.0%", "dog 2")] == [True] * 4
    row = text[text.index("<tr><td>dog") :].partition("</tr>")[0]
    assert "80.0%" in row and "66.7%" in row  # 4 of 6 that were called dogs
    assert f"{HOSTILE} 1" in row
    assert "mae evaluate on x" in text


def test_the_matrix_and_the_calibration(run: Path) -> None:
    text = classes_section(run)
    assert "<script" not in text and text.count("color-mix") == 4  # pairs that occur
    confidence = float(torch.tensor([3.0, 0, 0]).softmax(0).max())
    assert f"{confidence:.1%}" in text and "80.0%" in text and "accuracy by confidence" in text


def test_pixels_and_detections_are_called_so(run: Path) -> None:
    found = json.loads((run / "classes.json").read_text())["evaluate"]
    boxes = {"of": "validation, boxes", "unit": "detections", "calibration": [[40, 0.3, 0.125]]}
    all_of = {"segment": {**found, "unit": "pixels"}, "detect": boxes}
    (run / "classes.json").write_text(json.dumps(all_of))
    pixels, _, detections = classes_section(run).partition("<h3>validation, boxes")
    assert '<th scope="col">pixels' in pixels and "few images say little" in pixels
    assert "precision by score" in detections and "12.5%" in detections
    assert "Objects that were not found are not in it" in detections
    assert "color-mix" in pixels and "color-mix" not in detections and "<td>cat" not in detections


def test_many_classes_have_no_matrix(run: Path) -> None:
    detail = json.loads((run / "classes.json").read_text())
    detail["evaluate"]["classes"] += [f"class {k}" for k in range(MOST_SQUARE)]
    (run / "classes.json").write_text(json.dumps(detail))
    text = classes_section(run)
    assert "color-mix" not in text and ">cat<" in text


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"evaluate": 1}', '{"evaluate": {"classes": [], "of": 1}}']
)
def test_damaged_files_have_no_section(run: Path, damage: str) -> None:
    (run / "classes.json").write_text(damage)
    assert classes_section(run) == ""
    (run / "classes.json").unlink()
    assert classes_section(run) == ""
