"""k-NN: the votes by brute force, the split, the interval, the verb."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import torchmae
from torchmae.data.labels import hold_out
from torchmae.errors import UserError
from torchmae.eval.intervals import interval
from torchmae.eval.knn import knn


def test_votes_equal_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.randn(40, 5, generator=generator, dtype=torch.float32),
        torch.randn(11, 5, generator=generator),
    )
    labels = torch.randint(0, 3, (40,), generator=generator)
    mean, std = train.double().mean(0), train.double().std(0)
    expected = []
    for row in (test.double() - mean) / std:
        pairs = []
        for other, label in zip((train.double() - mean) / std, labels.tolist()):
            pairs.append((float(row @ other / row.norm() / other.norm()), label))
        votes = [0.0] * 3
        for similarity, label in sorted(pairs, reverse=True)[:7]:
            votes[label] += math.exp(similarity / 0.07)
        expected.append(max(range(3), key=votes.__getitem__))
    assert knn(train, test, labels, 3, 7).tolist() == expected


def test_the_split_is_stratified_seeded_and_never_empties_a_class() -> None:
    labels = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    held_out = hold_out(labels, 0.2, 0)
    counts = {
        name: sum(out for out, label in zip(held_out.tolist(), labels) if label == name)
        for name in "abcd"
    }
    assert counts == {"a": 10, "b": 2, "c": 1, "d": 0}
    assert np.array_equal(held_out, hold_out(labels, 0.2, 0)) and not np.array_equal(
        held_out, hold_out(labels, 0.2, 1)
    )
    with pytest.raises(UserError, match="only one image"):
        hold_out(["a", "b"], 0.5, 0)


def test_the_interval_is_wilson_s() -> None:
    low, high = interval(81, 263)  # a worked example: 0.2553, 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert interval(0, 10)[0] == 0 and interval(10, 10)[1] == pytest.approx(1)


def test_the_verb_compares_three_and_writes_results(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (
        len(json.loads((run / "results.json").read_text())["knn"])
        if (run / "results.json").exists()
        else 0
    )
    result = torchmae.neighbours(run, str(photos), k=3, test_fraction=0.25)
    assert result["test_images"] == 6 and result["train_images"] == 18 and result["classes"] == 3
    assert set(result["knn"]) == {"features", "untrained encoder", "raw pixels"}
    for found in result["knn"].values():
        assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    assert json.loads((run / "results.json").read_text())["knn"][before] == result
    assert "95 % interval" in capsys.readouterr().out


def test_a_test_folder_or_a_split_on_disk_is_used(run: Path, photos: Path, tmp_path: Path) -> None:
    given = torchmae.neighbours(run, str(photos), test=str(photos), k=1)
    assert given["test_images"] == given["train_images"] == 24
    assert given["knn"]["features"]["accuracy"] == 1.0  # each image is its own nearest neighbour
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "val").symlink_to(photos)
    assert torchmae.neighbours(run, str(tmp_path), k=1)["test_images"] == 24


def test_mistakes(run: Path, photos: Path) -> None:
    with pytest.raises(UserError, match="has no labels"):
        torchmae.neighbours(run, str(photos / "blob"))
    for options, message in [({"k": 0}, "--k 0"), ({"val_fraction": 1.0}, "--val-fraction 1.0")]:
        with pytest.raises(UserError, match=message):
            torchmae.neighbours(run, str(photos), **options)


def test_a_feature_that_is_constant_in_training_does_not_drown_the_others() -> None:
    """It was once divided by 1e-6: a test row in which it differs resembled all others equally little."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(40) % 4 == 0).long()  # ten of forty
    train = torch.randn(40, 4, generator=generator) + 6 * labels.unsqueeze(1)
    train = torch.cat([train, torch.zeros(40, 1)], dim=1)
    test = train.clone()
    test[:, 4] = 0.01
    assert torch.equal(
        knn(train, test, labels, 2, 40), labels
    )  # all rows vote: by how alike they are
