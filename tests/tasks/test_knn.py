"""mae knn: what it measures and writes."""

import json
from pathlib import Path

import numpy as np
import pytest

import torchmae
from torchmae.data.labels import hold_out
from torchmae.errors import UserError
from torchmae.runfolder import read_results


def test_the_split_is_stratified_seeded_and_never_empties_a_class() -> None:
    labels = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    held_out = hold_out(labels, 0.2, 0)
    counts = {
        name: sum(out for out, label in zip(held_out.tolist(), labels) if label == name)
        for name in "abcd"
    }
    assert counts == {"a": 10, "b": 2, "c": 1, "d": 0}
    assert np.array_equal(held_out, hold_out(labels, 0.2, 0))
    assert not np.array_equal(held_out, hold_out(labels, 0.2, 1))
    assert not hold_out(["a", "b"], 0.5, 0).any()


def test_three_kinds_of_features_are_measured_and_recorded(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = torchmae.knn(own, photos, k=3, val_fraction=0.25)
    assert (result["test_images"], result["train_images"], result["classes"]) == (6, 18, 3)
    others = ["untrained encoder", "raw pixels", "commonest class"]
    assert list(result["knn"]) == ["features", *others]
    assert list(result["differences"]) == others
    assert result["knn"]["commonest class"]["accuracy"] == pytest.approx(1 / 3)
    for found in result["knn"].values():
        assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    (record,) = read_results(own)
    assert record["verb"] == "knn"
    assert record["settings"]["k"] == 3
    assert {**record["settings"], **record["results"]} == json.loads(json.dumps(result))
    printed = capsys.readouterr().out
    assert "95 % interval" in printed
    assert "note: only 6 images to measure on" in printed
    assert f"Verdict: {result['verdict']}." in printed


def test_a_test_folder_or_a_split_on_disk_is_used(run: Path, photos: Path, tmp_path: Path) -> None:
    found = torchmae.knn(run, photos, val=photos, k=1)
    assert found["test_images"] == found["train_images"] == 24
    assert found["knn"]["features"]["accuracy"] == 1.0  # each image is its own nearest neighbour
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "val").symlink_to(photos)
    assert torchmae.knn(run, tmp_path, k=1)["test_images"] == 24


def test_mistakes(run: Path, photos: Path) -> None:
    with pytest.raises(UserError, match="has no labels"):
        torchmae.knn(run, photos / "blob")
    for options, message in [
        ({"k": 0}, "--k 0: must be more than 0"),
        ({"val_fraction": 1.0}, "--val-fraction 1: must be below 1"),
        ({"pool": "max"}, "unknown pool 'max'"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.knn(run, photos, **options)
