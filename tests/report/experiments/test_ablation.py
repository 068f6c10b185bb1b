"""The table and the picture of an ablation."""

from pathlib import Path
from typing import Any

from PIL import Image

from torchmae.report.experiments.ablation import ablation_table, draw_ablation, one_label


def study(numeric: bool) -> dict[str, Any]:
    """Two points with two measures; the second has no paper's accuracy."""

    def row(label: str, x: float, mean: float, difference: float | None) -> dict[str, Any]:
        found = {
            "by_seed": {0: mean, 1: mean},
            "mean": mean,
            "std": 0.01,
            "images": 500,
            "difference": difference
            and {"mean": difference, "low": difference - 0.02, "high": difference + 0.02},
        }
        costs: dict[str, Any] = {
            "minutes": 2.5,
            "images_per_s": 400.0,
            "flops": 1e12 * x,
            "seeds": 2,
        }
        if label in ("untrained encoder", "raw pixels"):
            costs = {"minutes": None, "images_per_s": None, "flops": None, "seeds": 2}
        paper = {"linear probe": 73.5} if label == "a" else {}
        measures = {"knn": found, "linear": found} if label != "raw pixels" else {"knn": found}
        place = x if numeric else None
        return {"label": label, "x": place, "paper": paper, "measures": measures, **costs}

    pair = {"better": "a", "worse": "b", "paper": 1.0, "ours": {}, "verdict": "not decided"}
    return {
        "title": "Figure 5: mask ratio",
        "axis": "mask ratio",
        "reference": "a",
        "columns": ["knn", "linear"],
        "orderings": {"knn": [pair, {**pair, "verdict": "reproduced"}], "linear": []},
        "rows": [row("a", 1, 0.5, None), row("b", 2, 0.6, 0.1)],
        "baselines": [row("untrained encoder", 0, 0.4, -0.1), row("raw pixels", 0, 0.6, 0.1)],
    }


def test_the_table_has_means_differences_and_orderings() -> None:
    lines = ablation_table(study(True)).splitlines()
    assert lines[0] == (
        "Figure 5: mask ratio. Accuracy in %, mean ± std over 2 seeds; in brackets the paired "
        "difference to a, 95 % interval"
    )
    assert lines[1].split() == [
        *("mask", "ratio", "knn", "linear", "min", "images/s", "paper,", "linear", "probe")
    ]
    assert lines[2].split() == ["a", "50.0", "±", "1.0", "50.0", "±", "1.0", "2.5", "400", "73.5"]
    assert "60.0 ± 1.0 (+10.0: +8.0 to +12.0)" in lines[3]
    assert lines[4].split()[:8] == [*"untrained encoder 40.0 ± 1.0 (-10.0: -12.0 to".split()]
    assert lines[5].split()[:3] == ["raw", "pixels", "60.0"] and lines[5].split()[-1] == "-"
    assert lines[6:] == [
        "By knn no point is above raw pixels: their differences say little about learning",
        "2 orderings of the paper, by knn: 1 reproduced, 1 not decided",
    ]


def test_what_has_no_numbers_of_the_paper_is_not_compared_with_it() -> None:
    own = study(True) | {"orderings": {"knn": [], "linear": []}}
    assert "No ordering of the paper" in ablation_table(own)
    for row in own["rows"]:
        row |= {"paper": {}, "seeds": 1}
    text = ablation_table(own)
    assert "paper" not in text and "Accuracy in %, one seed\n" in text


def test_the_picture_has_three_panels(tmp_path: Path) -> None:
    for numeric in (True, False):
        draw_ablation(study(numeric), tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.width > 2.5 * picture.height


def test_points_of_the_same_cost_have_a_short_label() -> None:
    assert one_label(["0.1", "0.2"]) == "0.1 / 0.2"
    assert one_label([f"0.{i}" for i in range(10)]) == "0.0 and 9 more"
    long = one_label(["mask tokens in the encoder, 8 decoder blocks", "8 decoder blocks"])
    assert long == "mask tokens in the … and 1 more"
