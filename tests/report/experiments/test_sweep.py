"""The table and the picture of a sweep."""

from pathlib import Path
from typing import Any

from PIL import Image

from torchmae.report.experiments.sweep import Curve, draw_sweep, sweep_table


def row(name: str, arms: dict[str, float], best: str | None = None) -> dict[str, Any]:
    made = {arm: {"top1": top1, "low": top1 - 0.1, "high": 0.95} for arm, top1 in arms.items()}
    return {"name": name, "images": 60, "arms": made, "best": best}


def test_each_accuracy_has_its_interval_and_the_best_is_marked() -> None:
    rows = [row("0", {"1 epochs": 0.5, "2 epochs": 0.6}, "2 epochs")]
    title, _, first, note = sweep_table(rows, "blocks fine-tuned").splitlines()
    assert "with its 95 % interval" in title
    assert "50.0 (40.0 to 95.0)" in first
    assert "60.0 (50.0 to 95.0) *" in first
    assert "flatters" in note


def test_the_picture_has_the_published_curve(tmp_path: Path) -> None:
    rows = [row(name, {"accuracy": 0.8}) for name in ("0", "all 6")]
    draw_sweep(rows, "blocks", tmp_path / "b.png", Curve("the paper", {"0": 70, "24": 80}))
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.width > 2 * picture.height
    assert len(list(tmp_path.iterdir())) == 1
