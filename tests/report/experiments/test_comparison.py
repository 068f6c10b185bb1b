"""The table, the words and the picture of mae compare."""

from pathlib import Path
from typing import Any

from PIL import Image

from torchmae.report.experiments.comparison import comparison_table, draw_comparison


def arm(low: float, high: float, **more: Any) -> dict[str, Any]:
    scores = {name: [low, high] for name in ("top1", "balanced_accuracy", "macro_f1")}
    return {
        **scores,
        "auc": [0.5, None],
        "mean": (low + high) / 2,
        "low": low,
        "high": high,
        **more,
    }


def row(name: str, verdict: str) -> dict[str, Any]:
    difference = {"mean": 0.3, "low": 0.2, "high": 0.4}
    return {
        "name": name,
        "measure": "few-label",
        "claim": "Gain of pre-training",
        "images": 60,
        "seeds": 2,
        "arms": {
            "pre-trained": arm(0.8, 0.9),
            "from scratch": arm(0.5, 0.6, learned_nothing=True),
            "commonest class": arm(0.3, 0.3),
        },
        "differences": {"pre-trained - from scratch": difference},
        "search": {
            "pre-trained": {"chosen": {"lr_scale": 3.0, "augment": "mild"}},
            "from scratch": {"chosen": {"lr_scale": 1 / 3, "augment": None}},
        },
        "verdict": verdict,
        "reasons": ["better than raw pixels", "and more"],
    }


def test_each_row_has_its_table_its_settings_and_its_verdict() -> None:
    text = comparison_table(
        [row("10", "shown"), row("50", "worse")],
        "labels a class",
        "the search",
        {"few-label": "fine-tuning"},
    )
    lines = text.splitlines()
    assert "mean ± std over 2 seeds, 60 validation images" in lines[0]
    assert lines[2] == "Settings of pre-trained and from scratch: the search."
    header = next(line for line in lines if line.startswith("10 labels a class"))
    assert all(name in header for name in ("accuracy", "balanced", "macro F1", "AUC"))
    scratch = next(line for line in lines if line.startswith("from scratch"))
    assert scratch.split("   ")[-1].strip() == "+30.0 (+20.0 to +40.0)"
    assert "55.0 ± 7.1" in scratch
    assert "pre-trained: learning rate x3, augment mild" in lines
    assert "Gain of pre-training shown: better than raw pixels; and more." in lines
    assert "Gain of pre-training worse: better than raw pixels; and more." in lines


def test_the_picture_has_a_group_for_each_row(tmp_path: Path) -> None:
    draw_comparison([row("10", "shown")], "labels a class", tmp_path / "one.png")
    draw_comparison([row(n, "shown") for n in "12345"], "labels a class", tmp_path / "five.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "five.png") as five:
        assert five.width > 1.5 * one.width
    assert len(list(tmp_path.iterdir())) == 2
