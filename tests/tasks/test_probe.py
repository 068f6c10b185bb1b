"""mae probe: the verb in both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import make_photos
from PIL import Image

import torchmae
from torchmae.data.labels import labelled_sets
from torchmae.errors import UserError
from torchmae.eval.extract import collect, features_of, patch_tokens_of
from torchmae.eval.probes.attentive import attentive_probe
from torchmae.eval.probes.logistic import STRENGTHS, LinearProbe
from torchmae.models.weights import load
from torchmae.runfolder import read_config, read_results
from torchmae.settings.options import build, flatten
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.probe import run as probe
from torchmae.tasks.probe.config import Probe


def test_an_end_of_the_strengths_is_remarked() -> None:
    rising = [i / 10 for i in range(len(STRENGTHS))]

    def remark(strength: float, validated: list[float]) -> str:
        return probe.warning(LinearProbe(torch.zeros(0, 3).double(), strength, validated))

    assert "weakest" in remark(STRENGTHS[-1], rising)
    assert "strongest" in remark(STRENGTHS[0], rising[::-1])
    assert remark(STRENGTHS[0], [1.0] * len(STRENGTHS)) == ""  # it makes no difference
    assert remark(STRENGTHS[0], []) == ""
    assert remark(STRENGTHS[3], rising) == ""


def test_the_fast_probe_equals_scikit_learn_by_hand(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    photos = make_photos(tmp_path / "photos", each=20)
    options: dict[str, Any] = dict(fast=True, pool="cls", layer=3, val_fraction=0.5, device="cpu")
    result = torchmae.probe(own, photos, **options)
    assert (result["train_images"], result["test_images"], result["classes"]) == (30, 30, 3)
    (record,) = read_results(own, "probe")
    assert {**record["settings"], **record["results"]}["probe"] == result["probe"]
    others = ["untrained encoder", "raw pixels", "commonest class"]
    assert list(result["probe"]) == ["features", *others]
    assert list(result["differences"]) == others
    printed = capsys.readouterr().out
    for name, found in result["probe"].items():
        assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
        assert f"{name:<18} {found['accuracy']:6.1%}" in printed
        assert f"strength {found.get('strength', 0):g}" in printed or name == "commonest class"
    assert f"Verdict: {result['verdict']}." in printed

    encoder, sets = load(own), labelled_sets(str(photos), None, 0.5, None, 0)
    functions = [features_of(encoder, 3, "cls", torch.device("cpu"))]
    rows, test_rows = (
        collect(part, encoder, own, functions, torch.device("cpu"))[1][0].double().numpy()
        for part in (sets.train, sets.val)
    )
    found = result["probe"]["features"]
    by_hand = make_pipeline(
        StandardScaler(),
        linear_model.LogisticRegression(C=1 / (30 * found["strength"]), tol=1e-8, max_iter=10_000),
    ).fit(rows, sets.train_labels.numpy())
    assert by_hand.score(test_rows, sets.val_labels.numpy()) == pytest.approx(found["accuracy"])


def test_every_block_in_one_pass_is_what_each_is_alone(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = dict(fast=True, val_fraction=0.25, device="cpu")
    every = torchmae.probe(own, photos, layer="all", **options)
    assert [row["block"] for row in every["layers"]] == [1, 2, 3, 4, 5, 6]
    assert "that flatters it" in capsys.readouterr().out
    for layer in (2, None):
        alone = torchmae.probe(own, photos, layer=layer, **options)
        row = every["layers"][(layer or 6) - 1]
        found = alone["probe"]["features"]
        assert {name: row[name] for name in found} == found
        assert row["rankme"] == alone["rankme"]
    assert every["probe"] == alone["probe"]
    assert (own / "layers.png").exists()


def test_the_fast_probe_with_few_labels(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = torchmae.probe(own, photos, fast=True, val_fraction=0.25, labels_per_class=1)
    assert (result["train_images"], result["test_images"]) == (3, 6)
    assert "has one training image" in capsys.readouterr().out
    strengths = [found.get("strength") for found in result["probe"].values()]
    assert strengths == [STRENGTHS[4]] * 3 + [None]


def test_the_attentive_probe_on_stored_tokens_equals_its_parts(own: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", each=10)
    options: dict[str, Any] = dict(fast=True, head="attentive", queries=4, val_fraction=0.3)
    result = torchmae.probe(own, photos, device="cpu", **options)
    assert list(result["probe"]) == ["features", "untrained encoder", "commonest class"]
    assert (result["pool"], result["head"], result["queries"]) == (None, "attentive", 4)
    encoder, sets = load(own), labelled_sets(str(photos), None, 0.3, None, 0)
    device = torch.device("cpu")
    functions = [patch_tokens_of(encoder, None, device)]
    train, test = (
        collect(part, encoder, own, functions, device)[1][0] for part in (sets.train, sets.val)
    )
    assert train.dtype == torch.float16 and train.shape[1:] == (16, encoder.embed_dim)
    found = attentive_probe(train, sets.train_labels, test, 0, queries=4)
    right = float((found.logits.argmax(1) == sets.val_labels).double().mean())
    assert result["probe"]["features"]["accuracy"] == pytest.approx(right)
    assert result["probe"]["features"]["lr"] == found.lr


def test_a_trained_attentive_probe_leaves_the_encoder_alone_and_is_a_classifier(
    own: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "probe"
    torchmae.probe(own, photos, head="attentive", queries=8, epochs=2, workers=0, out=str(out))
    stored = read_config(out)
    assert stored["model"]["pool"] == "attentive" and stored["model"]["queries"] == 8
    assert (stored["config"]["optimizer"], stored["config"]["train"]) == ("adamw", "head")
    model, before = torchmae.load_classifier(out), load(own)
    for name, value in before.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
    assert model.query_pool is not None and model.query_pool.value.bias.any()
    with pytest.raises(UserError, match="--only encoder"):
        torchmae.export(out, to="timm", out=str(tmp_path / "timm"))
    torchmae.export(out, to="safetensors", only="encoder", out=str(tmp_path / "encoder"))
    again = torchmae.evaluate(out, photos, device="cpu")
    assert 0 <= again["top1"] <= 1


def test_labels_stay_with_their_images_when_one_before_them_is_skipped(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for name, tone in zip("abc", (10, 120, 230)):
        (photos / name).mkdir(parents=True)
        for n in range(8):
            picture = Image.new("RGB", (40, 40), (tone + n, tone, tone))
            picture.save(photos / name / f"{n}.png")
    sets = labelled_sets(str(photos), None, 0.25, None, 0)
    broken = [photos / part.name(0) for part in (sets.train, sets.val)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    result = torchmae.probe(own, photos, fast=True, val_fraction=0.25)
    assert (result["train_images"], result["test_images"]) == (17, 5)
    assert result["probe"]["raw pixels"]["accuracy"] == 1.0
    printed = capsys.readouterr().out
    assert all(f"skipped: {path.relative_to(photos)}" in printed for path in broken)

    for n in range(8):
        (photos / "a" / f"{n}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="no training image of class 'a' can be read"):
        torchmae.probe(own, photos, fast=True, val_fraction=0.25)


def test_mistakes(own: Path, photos: Path) -> None:
    for options, message in [
        ({"layer": 2}, "--layer belongs to the probe on stored features: add --fast"),
        ({"fast": True, "epochs": 3.0}, "--epochs belongs to the probe that is trained"),
        ({"fast": True, "crop_scale": (0.6, 1.0)}, "--crop-scale belongs"),
        ({"fast": True, "flip": False}, "--no-flip belongs"),
        ({"fast": True, "out": "there"}, "--out belongs"),
        ({"fast": True, "workers": 0}, "--workers belongs"),
        ({"fast": True, "pool": "token"}, "unknown pool 'token'; one of: mean, cls"),
        ({"fast": True, "layer": 99}, "--layer 99: 1 to"),
        ({"layer": "all"}, "--layer belongs to the probe on stored features: add --fast"),
        ({"fast": True, "layer": "all", "head": "attentive"}, "needs all tokens: name one block"),
        ({"fast": True, "val_fraction": 0.0}, "--val-fraction 0: must be more than 0"),
        ({"fast": True, "labels_per_class": 0}, "--labels-per-class 0: must be more than 0"),
        ({"fast": True, "labels_per_class": 99}, "has only 6 images"),
        ({"pool": "cls+mean"}, "--pool cls"),
        ({"head": "attentiv"}, "Did you mean attentive"),
        ({"head": "attentive", "pool": "mean"}, "pools by queries: leave it out"),
        ({"queries": 8}, "--queries 8 belongs to --head attentive"),
        ({"fast": True, "head": "attentive", "queries": 7}, "--queries 7 does not divide"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.probe(own, photos, **options)
    assert not (own / "results.json").exists()


def test_the_settings_reach_the_trained_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[Finetune] = []
    monkeypatch.setattr(probe, "finetune", lambda config: requested.append(config) or Path("there"))
    monkeypatch.setattr(probe, "compare_trained", lambda config, out: "")
    values: dict[str, Any] = {
        "run": "run",
        "data": "data",
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
        "max_megapixels": 7.0,
        "nodata": 4095.0,
    }
    assert probe.run(build(Probe, values)) == Path("there")
    assert requested[0] == build(Finetune, {**values, "train": "head"})
    default = build(Probe, {"run": "run", "data": "data"})
    probe.run(default)
    left_open = {name for name, value in flatten(default).items() if value is None} - {"layer"}
    chosen = flatten(requested[1])
    assert all(chosen[name] is None for name in left_open)  # finetune chooses


def test_the_verb_trains_a_probe(
    own: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = dict(epochs=1, batch_size=8, workers=0, device="cpu", flip=False)
    out = torchmae.probe(own, photos, out=tmp_path / "probed", **options)
    config = read_config(out)["config"]
    assert (config["train"], config["pool"], config["flip"]) == ("head", "cls", False)
    assert config["epochs"] == 1
    assert (out / "model.safetensors").exists()
    (record,) = read_results(Path(out), "probe")
    (trained,) = read_results(Path(out), "finetune")
    found = record["results"]
    assert list(found["probe"]) == ["probe", "untrained encoder", "raw pixels", "commonest class"]
    assert found["probe"]["probe"]["accuracy"] == pytest.approx(trained["results"]["last"]["top1"])
    assert f"Verdict: {found['verdict']}." in capsys.readouterr().out
