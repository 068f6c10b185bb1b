"""What is left out of DATA stays out: in the plan, at a resume, and in every later verb."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.small import QUICK, SMALL, make_photos
from PIL import Image

import torchmae
from torchmae.errors import UserError

OUT = "12 of 24 images left out by --exclude '*_mask*'"
FEW = {**QUICK, "epochs": 1}


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three classes, each with a mask beside it."""
    folder = make_photos(tmp_path_factory.mktemp("listing") / "photos", 4)
    for file in sorted(folder.rglob("*.jpg")):
        number = sum(map(ord, str(file)))
        pixels = np.random.default_rng(number).integers(0, 2, (40, 48), dtype=np.uint8) * 255
        Image.fromarray(pixels).save(file.with_name(f"{file.stem}_mask.png"))
    return folder


@pytest.fixture(scope="module")
def clean(masked: Path) -> Path:
    """A pre-training without the masks."""
    out = masked.parent / "clean"
    return Path(torchmae.pretrain(masked, out=out, epochs=1, exclude="*_mask*", **SMALL))


@pytest.fixture(scope="module")
def tuned(masked: Path, clean: Path) -> Path:
    return Path(torchmae.finetune(clean, masked, out=masked.parent / "tuned", **FEW))


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def test_the_plan_counts_them_and_the_run_stores_them(
    masked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(torchmae.pretrain(masked, out=tmp_path / "x", epochs=1, **SMALL))
    said = capfd.readouterr().out
    assert "24 images" in said
    assert "12 of 24 names end in _mask" in said and "--exclude '*_mask*'" in said
    assert config_of(run)["config"]["exclude"] == []
    options = dict(out=tmp_path / "y", epochs=1, **SMALL)
    run = Path(torchmae.pretrain(masked, exclude=["*_mask*"], **options))
    said = capfd.readouterr().out
    assert f"12 images, {OUT}" in said and "names end" not in said
    assert config_of(run)["config"]["exclude"] == ["*_mask*"]
    assert config_of(run)["data"]["count"] == 12


def test_a_resume_takes_the_same_images(
    masked: Path, clean: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(clean, tmp_path / "run"))
    moved = shutil.copytree(masked, tmp_path / "moved")
    for data in (masked, moved):
        torchmae.pretrain(data, out=out, epochs=1, **SMALL)
        assert f"12 images, {OUT} (as in the run" in capfd.readouterr().out
    with pytest.raises(UserError, match="the data had 12 images, has 24"):
        torchmae.pretrain(masked, out=out, epochs=1, exclude="none", **SMALL)


def test_every_later_verb_on_the_same_data_leaves_them_out(
    masked: Path, clean: Path, tuned: Path, tmp_path: Path
) -> None:
    assert config_of(tuned)["config"]["exclude"] == ["*_mask*"]
    assert config_of(tuned)["data"]["count"] + config_of(tuned)["data"]["val"]["count"] == 12
    torchmae.embed(clean, masked, out=tmp_path / "f.npz", device="cpu")
    with np.load(tmp_path / "f.npz") as table:
        assert len(table["paths"]) == 12
    knn = torchmae.knn(clean, masked, device="cpu")
    assert knn["train_images"] + knn["test_images"] == 12
    probe = torchmae.probe(clean, masked, fast=True, device="cpu")
    assert probe["train_images"] + probe["test_images"] == 12
    assert torchmae.evaluate(tuned, masked, device="cpu")["count"] == 12
    torchmae.predict(tuned, masked, out=tmp_path / "p.csv", device="cpu")
    assert len(list(csv.reader((tmp_path / "p.csv").open()))) == 13
    sweep = torchmae.compare(clean, masked, seeds=(0, 1), out=tmp_path / "sweep", **FEW)
    runs = [config_of(path.parent) for path in Path(sweep).glob("*/config.json")]
    assert len(runs) >= 4
    for made in runs:
        assert made["config"]["exclude"] == ["*_mask*"]
        assert made["data"]["count"] + made["data"]["val"]["count"] == 12


def test_told_otherwise_or_on_other_data_they_take_all(
    masked: Path, clean: Path, tmp_path: Path
) -> None:
    torchmae.embed(clean, masked, exclude="none", out=tmp_path / "f.npz", device="cpu")
    with np.load(tmp_path / "f.npz") as table:
        assert len(table["paths"]) == 24
    other = shutil.copytree(masked, tmp_path / "other")
    assert torchmae.knn(clean, other, device="cpu")["train_images"] > 12
    torchmae.embed(clean, other, include="*.jpg", out=tmp_path / "g.npz", device="cpu")
    with np.load(tmp_path / "g.npz") as table:
        assert len(table["paths"]) == 12


def test_packing_and_globs(masked: Path, tmp_path: Path) -> None:
    out = torchmae.pack(masked, out=tmp_path / "shards", exclude="*_mask*")
    assert json.loads((Path(out) / "index.json").read_text())["images"] == 12
    again = torchmae.pack(masked, out=tmp_path / "shards", exclude="*_mask*")
    assert again == out
    run = torchmae.pretrain(f"{masked}/**/*.jpg", out=tmp_path / "run", epochs=1, **SMALL)
    assert config_of(Path(run))["data"]["count"] == 12
    found = torchmae.knn(run, f"{masked}/*/?.jpg", device="cpu")
    assert (found["classes"], found["train_images"] + found["test_images"]) == (3, 12)
