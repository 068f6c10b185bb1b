"""Every later verb decodes images as the run that it starts from was decoded, unless told
otherwise."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.small import SMALL
from PIL import Image

import torchmae
from torchmae.errors import UserError

QUICK = dict(epochs=1, batch_size=8, workers=0, device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12-bit gray PNGs (0..4095 in 16 bits), and a run that was pre-trained on them
    with 0 as no-data."""
    place = tmp_path_factory.mktemp("twelve-bit")
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:40, 0:40]
    for name, wave in (("across", rows), ("down", columns)):
        (place / "scans" / name).mkdir(parents=True)
        for i in range(8):
            values = 2000 + 1500 * np.sin(wave / (2 + i / 4)) + draw.normal(0, 60, (40, 40))
            pixels = values.clip(0, 4095).astype(np.uint16)
            Image.fromarray(pixels).save(place / "scans" / name / f"{i}.png")
    out = place / "run"
    torchmae.pretrain(place / "scans", out=out, nodata=0, epochs=1, **SMALL)
    return place


def stored(run: Path) -> dict[str, object]:
    return json.loads((run / "config.json").read_text())["config"]


def test_statistics_are_those_of_the_values(place):
    values = [np.asarray(Image.open(file)) for file in (place / "scans").rglob("*.png")]
    there = np.stack(values)[np.stack(values) > 0].astype(np.float64)
    encoder = torchmae.load(place / "run")
    assert np.allclose(encoder.mean, there.mean()) and np.allclose(encoder.std, there.std())
    assert (stored(place / "run")["dtype"], encoder.channels) == ("float32", 1)


def test_every_later_verb_knows_what_is_no_data(place, tmp_path):
    run, scans = place / "run", place / "scans"
    tuned = torchmae.finetune(run, scans, out=tmp_path / "tuned", **QUICK)
    assert (stored(tuned.path)["nodata"], stored(tuned.path)["max_megapixels"]) == (0, 100.0)
    assert torchmae.evaluate(tuned, scans, device="cpu")["count"] == 16
    predictions = torchmae.predict(tuned, scans, out=tmp_path / "p.csv", device="cpu")
    assert len(predictions.read_text().splitlines()) == 17
    features = torchmae.embed(run, scans, out=tmp_path / "f.npz", device="cpu")
    assert np.load(features)["features"].shape[0] == 16
    assert torchmae.knn(run, scans, k=3, device="cpu")["test_images"] == 4
    assert torchmae.probe(run, scans, fast=True, device="cpu")["test_images"] == 4
    probe = torchmae.probe(run, scans, out=tmp_path / "probe", **QUICK)
    assert stored(probe.path)["nodata"] == 0
    image = scans / "down" / "0.png"
    assert torchmae.reconstruct(run, [image], out=tmp_path / "r.png").exists()


def test_a_pre_training_from_a_run_knows_it_too(place, tmp_path):
    quick = dict(batch_size=8, workers=0, device="cpu")
    options = dict(from_run=place / "run", out=tmp_path / "more", **quick)
    more = torchmae.pretrain(place / "scans", epochs=1, **options)
    assert (stored(more.path)["nodata"], stored(more.path)["normalize"]) == (0, "run")
    assert torchmae.pretrain(place / "scans", epochs=1, **options).path == more.path  # resumes


def test_8_bits_and_more_never_meet(place, photos, tmp_path):
    """Where no value stands for no-data, which would make floats of both."""
    run = torchmae.pretrain(place / "scans", out=tmp_path / "run", epochs=1, **SMALL)
    expected = "the images have uint8 pixels, uint16 is expected"
    with pytest.raises(UserError, match=expected):
        torchmae.embed(run, photos, out=tmp_path / "f.npz", device="cpu")


def test_every_later_verb_knows_max_megapixels(place, tmp_path):
    """An image that is too large for the run is too large for what follows."""
    scans = shutil.copytree(place / "scans", tmp_path / "scans")
    kinds = ("across", "down")
    run = torchmae.pretrain(
        scans, out=tmp_path / "run", nodata=0, max_megapixels=0.002, epochs=1, **SMALL
    )
    tuned = torchmae.finetune(run, scans, out=tmp_path / "tuned", **QUICK)
    for kind in kinds:  # 60 x 60 px is more
        Image.fromarray(np.full((60, 60), 2000, np.uint16)).save(scans / kind / "large.png")
    where = dict(device="cpu")
    features = torchmae.embed(run, scans, out=tmp_path / "f.npz", **where)
    predictions = torchmae.predict(tuned, scans, out=tmp_path / "p.csv", **where)
    found = torchmae.knn(run, scans, val=place / "scans", k=3, **where)
    probed = torchmae.probe(run, scans, val=place / "scans", fast=True, **where)
    counts = {
        "embed": len(np.load(features)["features"]),
        "predict": len(predictions.read_text().splitlines()) - 1,
        "evaluate": torchmae.evaluate(tuned, scans, **where)["count"],
        "knn": found["train_images"],
        "probe --fast": probed["train_images"],
    }
    assert counts == dict.fromkeys(counts, 16)  # of 18
    with pytest.raises(UserError, match=r"more than the limit of 0\.002"):
        torchmae.reconstruct(run, [scans / "down/large.png"], out=tmp_path / "r.png")
    val = dict(val=place / "scans", **QUICK)
    for verb, options in ((torchmae.finetune, {}), (torchmae.probe, {})):
        made = verb(run, scans, out=tmp_path / verb.__name__, **val, **options)
        assert stored(made.path)["max_megapixels"] == 0.002
        assert len((made.path / "bad-files.jsonl").read_text().splitlines()) == 2
    more = dict(from_run=run, out=tmp_path / "more", batch_size=8, workers=0, device="cpu")
    assert stored(torchmae.pretrain(scans, epochs=1, **more).path)["max_megapixels"] == 0.002


def test_a_later_verb_can_be_told_otherwise(place, tmp_path):
    run, scans = place / "run", place / "scans"
    with pytest.raises(UserError, match="it has no band 2"):
        torchmae.embed(run, scans, out=tmp_path / "f.npz", bands=("2",), device="cpu")
    small = dict(out=tmp_path / "f.npz", max_megapixels=0.001, device="cpu")
    with pytest.raises(UserError, match="more than the limit of 0.001"):
        torchmae.embed(run, scans, **small)
    with pytest.raises(UserError, match="more than the limit of 0.001"):
        torchmae.finetune(run, scans, out=tmp_path / "t", max_megapixels=0.001, **QUICK)


def test_a_run_that_was_fine_tuned_is_resumed_with_what_it_was_decoded_with(place, tmp_path):
    options = dict(out=tmp_path / "tuned", **QUICK)
    first = torchmae.finetune(place / "run", place / "scans", **options)
    assert torchmae.finetune(place / "run", place / "scans", **options).path == first.path
    with pytest.raises(UserError, match="nodata was 0, is 5"):
        torchmae.finetune(place / "run", place / "scans", nodata=5, **options)


def test_what_a_model_does_not_see_is_said_before_it_computes(run, classifier, tmp_path, caplog):
    """Of an image of 96 x 400 a centre crop saw 24 %, of a stack one page, without a word."""
    draw = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "wide" / name).mkdir(parents=True)
        for i in range(6):
            page = Image.fromarray(draw.integers(0, 255, (96, 400), np.uint8))
            small = [page.resize((100, 24))]  # of another shape, so the pages are no stack
            page.save(tmp_path / f"wide/{name}/{i}.tif", save_all=i == 0, append_images=small)
    wide = tmp_path / "wide"
    val = shutil.copytree(wide, tmp_path / "val")
    places = dict(device="cpu")
    verbs = {
        "embed": lambda: torchmae.embed(run, wide, out=tmp_path / "f.npz", **places),
        "knn": lambda: torchmae.knn(run, wide, k=1, val=val, **places),
        "probe": lambda: torchmae.probe(run, wide, fast=True, val=val, **places),
        "predict": lambda: torchmae.predict(classifier, wide, out=tmp_path / "p.csv", **places),
        "finetune": lambda: torchmae.finetune(run, wide, val=val, out=tmp_path / "t", **QUICK),
        "pretrain": lambda: torchmae.pretrain(wide, out=tmp_path / "r", epochs=1, **SMALL),
        "pack": lambda: torchmae.pack(wide, out=tmp_path / "p", size=32),
    }
    for verb, call in verbs.items():
        caplog.clear()
        with caplog.at_level(logging.INFO, "torchmae"):
            call()
        text = caplog.text
        assert text.count("2 of 12 files have more than one page") == 1, verb
        crops = verb not in ("pretrain", "pack")
        assert text.count("the center crop shows little of 12 of 12 images: 24%") == crops, verb


def test_five_bands_with_a_scale_from_begin_to_end(tmp_path):
    """Statistics, later verbs, pictures and a training from it, of 16-bit files with no-data."""
    tifffile = pytest.importorskip("tifffile", reason="an extra")
    draw, scenes = np.random.default_rng(0), tmp_path / "scenes"
    values = np.exp(draw.normal(6, 1, (16, 40, 44, 5))).astype(np.uint16)
    values[:, :9, :9] = 0
    for i, pixels in enumerate(values):
        (scenes / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        file = scenes / "ab"[i % 2] / f"{i}.tif"
        options = dict(photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(file, pixels, **options)
    some = dict(nodata=0, bands=("1,2,4,5",), scale=("log",))
    run = torchmae.pretrain(scenes, out=tmp_path / "run", epochs=1, **some, **SMALL)
    encoder = torchmae.load(run)
    there = np.log1p(values[..., [0, 1, 3, 4]].astype(np.float64))[values[..., 0] > 0]
    assert np.allclose(encoder.mean, there.mean(0)) and np.allclose(encoder.std, there.std(0))
    assert encoder.scaling.kind == "log" and stored(run.path)["bands"] == ["1", "2", "4", "5"]
    features = torchmae.embed(run, scenes, out=tmp_path / "f.npz", device="cpu")
    assert np.isfinite(np.load(features)["features"]).all()
    image = scenes / "a" / "0.tif"
    drawn = dict(out=tmp_path / "r.png", show=("5,2,1",))
    assert torchmae.reconstruct(run, [image], **drawn).exists()
    assert torchmae.reconstruct(run, [scenes], sheet=True, count=2, **drawn).exists()
    with pytest.raises(UserError, match="--show 7,2,1: three of 1, 2, 4, 5, for red"):
        torchmae.reconstruct(run, [image], **{**drawn, "show": ("7", "2", "1")})
    tuned = torchmae.finetune(run, scenes, out=tmp_path / "tuned", **QUICK)
    assert torchmae.load_classifier(tuned).encoder.scaling == encoder.scaling


def test_an_8_bit_run_adapts_to_more_bits_where_it_is_told_to(run, place, tmp_path):
    scans = place / "scans"
    with pytest.raises(UserError, match="uint16 pixels, uint8 is expected.* --dtype uint16"):
        torchmae.finetune(run, scans, out=tmp_path / "t", **QUICK)
    tuned = torchmae.finetune(run, scans, out=tmp_path / "t", dtype="uint16", **QUICK)
    encoder = torchmae.load_classifier(tuned).encoder
    values = np.stack([np.asarray(Image.open(file)) for file in scans.rglob("*.png")])
    assert encoder.scaling is not None and abs(encoder.mean[0] - values.mean()) < 300
    assert torchmae.evaluate(tuned, scans, device="cpu")["count"] == 16
