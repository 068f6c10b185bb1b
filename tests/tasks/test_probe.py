"""The linear probe: the regression against scikit-learn's, what may influence the strength, the verb in both ways."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import make_photos
from PIL import Image
from torch import Tensor

from torchmae import cli
from torchmae.data.labels import labelled_sets
from torchmae.errors import UserError
from torchmae.eval.extract import collect, embedding
from torchmae.eval.logistic import STRENGTHS, cross_validated, logistic, parts, probed, standardised
from torchmae.models.weights import load
from torchmae.tasks.finetune import config
from torchmae.tasks.finetune import run as classify
from torchmae.tasks.probe import run as probe
from torchmae.tasks.probe.config import Probe
from torchmae.tasks.probe.run import remark


def clouds(each: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds in 12 dimensions of very different scale; one dimension is constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(each)
    rows = torch.randn(3 * each, 12, generator=generator)
    rows[:, :3] += apart * torch.nn.functional.one_hot(labels, 3)
    rows[:, 3] += rows[:, 0]
    return rows * torch.logspace(-3, 3, 12) * torch.tensor([1.0] * 11 + [0.0]) + 7.7, labels


def test_the_regressions_are_scikit_learn_s() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, labels = clouds(60, 1.5)
    rows, _ = standardised(rows, rows)
    inside = torch.ones(len(rows), 2, dtype=torch.float64)
    inside[::4, 1] = 0  # the second regression leaves a quarter of the rows out
    for strength, found in zip(
        STRENGTHS, logistic(rows, labels, inside / inside.sum(0), STRENGTHS)
    ):
        for i in range(2):
            kept = inside[:, i] > 0
            other = linear_model.LogisticRegression(
                C=1 / (strength * int(kept.sum())), tol=1e-8, max_iter=10_000
            )
            other.fit(rows[kept, :-1].numpy(), labels[kept].numpy())
            expected = other.predict_proba(rows[:, :-1].numpy())
            np.testing.assert_allclose((rows @ found[:, i]).softmax(1).numpy(), expected, atol=2e-3)


def test_the_minimum_is_reached_where_classes_are_told_apart_and_features_outnumber_images() -> (
    None
):
    """There the loss is flat, and a solver that stops by a fixed slope ends far above the minimum."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    rows = torch.randn(30, 128, generator=generator) @ torch.randn(
        128, 128, generator=generator
    ).cumsum(1)
    rows, _ = standardised(rows, rows)

    def loss(weights: Tensor, strength: float) -> float:
        punished = strength / 2 * weights[:-1].square().sum()
        return float(torch.nn.functional.cross_entropy(rows @ weights, labels) + punished)

    for strength, found in zip(
        STRENGTHS,
        logistic(rows, labels, torch.full((30, 1), 1 / 30, dtype=torch.float64), STRENGTHS),
    ):
        other = linear_model.LogisticRegression(C=1 / (strength * 30), tol=1e-9, max_iter=100_000)
        other.fit(rows[:, :-1].numpy(), labels.numpy())
        theirs = torch.from_numpy(np.concatenate([other.coef_.T, other.intercept_[None]]))
        assert loss(found[:, 0], strength) < loss(theirs, strength) * 1.001


def test_the_parts_have_their_share_of_every_class() -> None:
    labels = torch.tensor([0] * 23 + [1] * 10 + [2] * 6)
    part = parts(labels, 0)
    counts = torch.stack([labels[part == i].bincount(minlength=3) for i in range(5)])
    assert part.max() == 4 and (counts.amax(0) - counts.amin(0) <= 1).all()
    assert part.equal(parts(labels, 0)) and not part.equal(parts(labels, 1))
    assert (
        parts(labels[:35], 0).max() == 1 and parts(labels[:34], 0).max() == 0
    )  # by the smallest class


def test_cross_validation_is_each_part_guessed_from_the_others() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, labels = clouds(30, 3.0)
    rows, _ = standardised(rows, rows)
    part, right = parts(labels, 3), [0] * len(STRENGTHS)
    for i in range(5):
        inside = part != i
        for n, strength in enumerate(STRENGTHS):
            other = linear_model.LogisticRegression(
                C=1 / (strength * int(inside.sum())), tol=1e-8, max_iter=10_000
            )
            other.fit(rows[inside, :-1].numpy(), labels[inside].numpy())
            right[n] += int(
                (other.predict(rows[~inside, :-1].numpy()) == labels[~inside].numpy()).sum()
            )
    assert cross_validated(rows, labels, 3) == [count / 90 for count in right]
    assert cross_validated(rows[:61], labels[:61], 0) == []


def test_noise_is_punished_and_cross_validation_does_not_look_at_what_it_tests() -> None:
    """Labels by chance, more features than images: fitted perfectly, and guessed at chance level."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 200, generator=generator)
    labels = torch.arange(120) % 2
    rows, _ = standardised(rows, rows)
    *_, weights = logistic(
        rows, labels, torch.full((120, 1), 1 / 120, dtype=torch.float64), STRENGTHS
    )
    assert ((rows @ weights[:, 0]).argmax(1) == labels).all()
    assert all(0.3 < share < 0.7 for share in cross_validated(rows, labels, 0))


def test_separable_classes_are_told_apart() -> None:
    (train, labels), (test, truth) = clouds(30, 60.0), clouds(10, 60.0, seed=1)
    found = probed(train, labels, test, truth, 0)
    assert found["accuracy"] == 1.0 and max(found["cross_validated"]) == 1.0
    first = found["cross_validated"].index(1.0)
    assert found["strength"] == STRENGTHS[first]  # the strongest of those that are equally good


def test_the_test_labels_change_the_score_only() -> None:
    (train, labels), (test, truth) = clouds(30, 1.5), clouds(30, 1.5, seed=1)
    found = probed(train, labels, test, truth, 0)
    turned = probed(train, labels, test, (truth + 1) % 3, 0)
    assert turned["accuracy"] < 0.4 < found["accuracy"]
    kept = ("strength", "cross_validated")
    assert [turned[name] for name in kept] == [found[name] for name in kept]
    other = probed(train, labels, test * 100, truth, 0)  # nor do the test features
    assert [other[name] for name in kept] == [found[name] for name in kept]


def test_one_image_of_a_class_takes_the_middle_strength() -> None:
    train, labels = clouds(30, 60.0)
    one = torch.tensor([0, 30, 60])
    found = probed(train[one], labels[one], train, labels, 0)
    assert found["strength"] == STRENGTHS[len(STRENGTHS) // 2] and found["cross_validated"] == []
    assert remark(found) == "" and found["accuracy"] > 0.5


def test_an_end_of_the_strengths_is_remarked() -> None:
    rising = [i / 10 for i in range(len(STRENGTHS))]
    assert "weakest" in remark({"strength": STRENGTHS[-1], "cross_validated": rising})
    assert "strongest" in remark({"strength": STRENGTHS[0], "cross_validated": rising[::-1]})
    assert (
        remark({"strength": STRENGTHS[0], "cross_validated": [1.0] * len(STRENGTHS)}) == ""
    )  # it makes no difference
    assert remark({"strength": STRENGTHS[3], "cross_validated": rising}) == ""


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose results.json is ours."""
    folder = shutil.copytree(run, tmp_path / "small")
    (folder / "results.json").unlink(missing_ok=True)
    return folder


def test_the_fast_probe_equals_scikit_learn_by_hand(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    photos = make_photos(tmp_path / "photos", each=20)
    config = Probe(
        str(own), str(photos), fast=True, pool="cls", layer=3, val_fraction=0.5, device="cpu"
    )
    result = probe.run(config)
    assert isinstance(result, dict)
    assert (result["train_images"], result["test_images"], result["classes"]) == (30, 30, 3)
    assert json.loads((own / "results.json").read_text())["probe"] == [
        json.loads(json.dumps(result))
    ]
    assert set(result["probe"]) == {"features", "untrained encoder", "raw pixels"}
    printed = capsys.readouterr().out
    for name, found in result["probe"].items():
        assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
        assert (
            f"{name:<18} {found['accuracy']:6.1%}" in printed
            and f"strength {found['strength']:g}" in printed
        )

    encoder, sets = load(own), labelled_sets(str(photos), None, 0.5, None, 0)
    sees = [embedding(encoder, 3, "cls", torch.device("cpu"))]
    rows, test_rows = (
        collect(part, encoder, str(own), sees, torch.device("cpu"))[1][0].double().numpy()
        for part in (sets.train, sets.val)
    )
    found = result["probe"]["features"]
    by_hand = make_pipeline(
        StandardScaler(),
        linear_model.LogisticRegression(C=1 / (30 * found["strength"]), tol=1e-8, max_iter=10_000),
    ).fit(rows, sets.train_labels.numpy())
    assert by_hand.score(test_rows, sets.val_labels.numpy()) == pytest.approx(found["accuracy"])


def test_the_fast_probe_with_few_labels_and_unreadable_files(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(tmp_path / "photos")
    sets = labelled_sets(str(photos), None, 0.25, 1, 0)
    result = probe.run(
        Probe(str(own), str(photos), fast=True, val_fraction=0.25, labels_per_class=1)
    )
    assert isinstance(result, dict) and (result["train_images"], result["test_images"]) == (3, 6)
    assert "has one training image" in capsys.readouterr().out
    assert all(found["strength"] == STRENGTHS[4] for found in result["probe"].values())

    for i, tone in enumerate(
        (10, 120, 230)
    ):  # labels stay with their images when one before them is left out
        shutil.rmtree(photos / ("across", "blob", "down")[i])
        (photos / "abc"[i]).mkdir()
        for n in range(8):
            Image.new("RGB", (40, 40), (tone + n, tone, tone)).save(photos / "abc"[i] / f"{n}.png")
    sets = labelled_sets(str(photos), None, 0.25, None, 0)
    broken = [photos / part.name(0) for part in (sets.train, sets.val)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    result = probe.run(Probe(str(own), str(photos), fast=True, val_fraction=0.25))
    assert isinstance(result, dict) and (result["train_images"], result["test_images"]) == (17, 5)
    assert result["probe"]["raw pixels"]["accuracy"] == 1.0
    printed = capsys.readouterr().out
    assert all(f"left out: {path.relative_to(photos)}" in printed for path in broken)

    for n in range(8):
        (photos / "a" / f"{n}.png").write_bytes((photos / "a" / f"{n}.png").read_bytes()[:50])
    with pytest.raises(UserError, match="no training image of class 'a' can be read"):
        probe.run(Probe(str(own), str(photos), fast=True, val_fraction=0.25))


def test_mistakes(own: Path, photos: Path) -> None:
    start = Probe(str(own), str(photos))
    for options, message in [
        ({"layer": 2}, "--layer belongs to the probe on stored features: add --fast"),
        ({"fast": True, "epochs": 3.0}, "--epochs belongs to the probe that is trained"),
        ({"fast": True, "crop_scale": (0.6, 1.0)}, "--crop-scale belongs"),
        ({"fast": True, "flip": False}, "--no-flip belongs"),
        ({"fast": True, "out": "there"}, "--out belongs"),
        ({"fast": True, "workers": 0}, "--workers belongs"),
        ({"fast": True, "pool": "cls"}, "unknown pool 'cls'; one of: mean, token"),
        ({"fast": True, "layer": 99}, "--layer 99: 1 to"),
        ({"fast": True, "val_fraction": 0.0}, "--val-fraction 0.0: must lie between"),
        ({"fast": True, "labels_per_class": 0}, "--labels-per-class 0: must be more than 0"),
        ({"fast": True, "labels_per_class": 99}, "has only 6 images"),
        ({"pool": "cls"}, "--pool cls"),
    ]:
        with pytest.raises(UserError, match=message):
            probe.run(replace(start, **options))
    assert not (own / "results.json").exists()


def test_the_settings_reach_the_trained_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[config.Finetune] = []
    monkeypatch.setattr(classify, "run", lambda config: asked.append(config) or Path("there"))
    given = {
        "out": "there",
        "val": "other",
        "val_fraction": 0.3,
        "labels_per_class": 7,
        "pool": "mean",
        "epochs": 3.0,
        "batch_size": 5,
        "base_lr": 0.2,
        "optimizer": "lars",
        "crop_scale": (0.5, 0.9),
        "flip": False,
        "seed": 11,
        "device": "cpu",
        "workers": 0,
    }
    assert probe.run(Probe("run", "data", **given)) == Path("there")
    assert asked[0] == config.Finetune("run", "data", train="head", **given)
    left_open = {name for name, value in asdict(Probe("run", "data")).items() if value is None} - {
        "layer"
    }
    probe.run(Probe("run", "data"))
    assert all(
        getattr(asked[1], name) is None for name in left_open
    )  # classify chooses, as for mae finetune


def test_the_verb_trains_a_probe(own: Path, photos: Path) -> None:
    out = own.parent / "probed"
    flags = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu", "--no-flip"]
    assert cli.main(["probe", str(own), str(photos), "--out", str(out), *flags]) == 0
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["train"], config["pool"], config["flip"], config["epochs"]) == (
        "head",
        "cls",
        False,
        1.0,
    )
    assert (out / "model.safetensors").exists()
    assert cli.main(["probe", str(own), str(photos), "--fast", "--device", "cpu"]) == 0
    assert cli.main(["probe", str(own), str(photos), "--fast", "--epochs", "1"]) == 2
