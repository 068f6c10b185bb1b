"""The table and the picture of a sweep."""

from pathlib import Path
from typing import Any

from PIL import Image

from torchmae.report.sweep import Curve, draw_sweep, sweep_table


def row(name: str, arms: dict[str, list[float]], best: str | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for arm, top1 in arms.items():
        made[arm] = {"top1": top1, "mean": sum(top1) / len(top1), "std": None}
        made[arm] |= {"std": 0.02} if len(top1) > 1 else {"low": top1[0] - 0.1, "high": 0.95}
    return {"name": name, "images": 60, "arms": made, "differences": {}, "best": best}


def test_several_seeds_have_mean_and_std_and_a_difference() -> None:
    rows = [
        row("10", {"a": [0.8, 0.9], "b": [0.5, 0.6]}),
        row("all", {"a": [0.9] * 2, "b": [0.9] * 2}),
    ]
    rows[0]["differences"] = {"a - b": {"mean": 0.3, "low": 0.2, "high": 0.4}}
    rows[1]["differences"] = {"a - b": {"mean": 0.0, "low": -0.1, "high": 0.1}}
    title, header, first, second = sweep_table(rows, "labels a class").splitlines()
    assert "mean ± std over 2 seeds, 60 validation images" in title
    assert header.split("   ")[0] == "labels a class"
    assert "85.0 ± 2.0   55.0 ± 2.0" in first
    assert "+30.0 (+20.0 to +40.0)" in first
    assert "not clear: it includes zero" in second
    assert "not clear" not in first


def test_one_seed_has_its_interval_and_the_best_is_marked() -> None:
    rows = [row("0", {"1 epochs": [0.5], "2 epochs": [0.6]}, "2 epochs")]
    title, _, first, note = sweep_table(rows, "blocks fine-tuned").splitlines()
    assert "with its 95 % interval" in title
    assert "50.0 (40.0 to 95.0)" in first
    assert "60.0 (50.0 to 95.0) *" in first
    assert "flatters" in note


def test_pictures_with_and_without_a_published_curve(tmp_path: Path) -> None:
    several = [row(name, {"a": [0.8, 0.9], "b": [0.5, 0.6]}) for name in ("1", "2")]
    single = [row(name, {"accuracy": [0.8]}) for name in ("0", "all 6")]
    draw_sweep(several, "labels a class", tmp_path / "a.png")
    draw_sweep(single, "blocks", tmp_path / "b.png", Curve("the paper", {"0": 70, "24": 80}))
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "b.png") as two:
        assert two.width > 1.5 * one.width
    assert len(list(tmp_path.iterdir())) == 2
