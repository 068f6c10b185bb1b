"""mae knn: what it measures and writes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import torchmae
from torchmae import cli
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
    assert 1 <= result["rankme"] <= 18
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
    assert f"RankMe {result['rankme']:.1f} of at most 18 (18 training images)" in printed
    assert "note: only 6 images to measure on" in printed
    assert f"Verdict: {result['verdict']}." in printed


def test_a_test_folder_or_a_split_on_disk_is_used(run: Path, photos: Path, tmp_path: Path) -> None:
    found = torchmae.knn(run, photos, val=photos, k=1)
    assert found["test_images"] == found["train_images"] == 24
    assert found["knn"]["features"]["accuracy"] == 1.0  # each image is its own nearest neighbour
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "val").symlink_to(photos)
    assert torchmae.knn(run, tmp_path, k=1)["test_images"] == 24


def test_every_block_in_one_pass_is_what_each_is_alone(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = dict(k=3, val_fraction=0.25, pool="cls+mean", device="cpu")
    every = torchmae.knn(own, photos, layer="all", **options)
    printed = capsys.readouterr().out
    rows = every["layers"]
    assert [row["block"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        alone = torchmae.knn(own, photos, layer=row["block"], **options)
        found = alone["knn"]["features"]
        assert {name: row[name] for name in ("accuracy", "low", "high")} == found
        assert row["rankme"] == alone["rankme"]
        line = rf"\n +{row['block']} +{100 * found['accuracy']:.1f} .* {row['rankme']:.1f}\n"
        assert re.search(line, printed)
    last = torchmae.knn(own, photos, **options)
    for name in ("knn", "rankme", "verdict"):  # the others are measured once, beside the last
        assert every[name] == last[name]
    assert printed.count("raw pixels") == 2  # its line, and the verdict
    assert "chosen on these same images: that flatters it" in printed
    (record,) = [r for r in read_results(own) if r["settings"]["layer"] == "all"]
    assert record["results"]["layers"] == rows
    with Image.open(own / "layers.png") as picture:
        assert picture.width > 2 * picture.height


def test_a_layer_is_the_same_from_the_command_line(own: Path, photos: Path) -> None:
    for words in (["--layer", "2"], ["--layer=2"]):
        assert cli.main(["knn", str(own), str(photos), "--device", "cpu", *words]) == 0
    torchmae.knn(own, photos, device="cpu", layer=2)
    (record,) = read_results(own)
    assert record["settings"]["layer"] == 2


def test_mistakes(run: Path, photos: Path) -> None:
    with pytest.raises(UserError, match="has no labels"):
        torchmae.knn(run, photos / "blob")
    for options, message in [
        ({"k": 0}, "--k 0: must be more than 0"),
        ({"val_fraction": 1.0}, "--val-fraction 1: must be below 1"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"layer": 0}, "--layer 0: must be more than 0"),
        ({"layer": "0"}, "--layer 0: must be more than 0"),
        ({"layer": 7}, "--layer 7: 1 to 6"),
        ({"layer": "alle"}, "--layer alle: the number of a block, from 1, or all"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.knn(run, photos, **options)
