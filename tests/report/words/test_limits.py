"""The limits that a model card states, from real runs."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.small import QUICK

import torchmae
from torchmae.report.words.limits import limits, markdown, trained_on
from torchmae.runfolder import add_result, read_config


def test_a_pretraining(run: Path, photos: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "own")
    (own / "results.json").unlink(missing_ok=True)
    (own / "bad-files.jsonl").write_text('{"file": "x.jpg", "reason": "empty file"}\n')
    data, missing, invented, biases = limits(own, "mae")
    begin = '**Data.** Pre-trained without labels on 24 images from "photos", seen '
    assert data.startswith(begin)
    assert "seen as color images of 32 px; 1 file could not be read." in data
    assert "not recorded here" in data and str(photos.parent) not in data
    assert (
        "(k-NN)" in missing
        and "linear classifier" in missing
        and "accuracy and calib" not in missing
    )
    assert "groups of people" in missing
    assert "Reconstructions are invented" in invented and "no evidence" in invented
    assert "Biases are learned" in biases
    add_result(own, "knn", {}, {"accuracy": 0.5})
    assert "(k-NN)" not in limits(own, "mae")[1]


def test_a_classifier_names_both_sets(run: Path, photos: Path, tmp_path: Path) -> None:
    out = Path(torchmae.finetune(run, photos, out=tmp_path / "c", **{**QUICK, "epochs": 1}))
    data, missing, *_, answers = limits(out, "classifier")
    found = read_config(out)["data"]
    assert f'Fine-tuned on {found["count"]} labeled images of 3 classes from "photos"' in data
    assert f"{found['val']['count']} others were for validation." in data
    origin = (
        f'those of "{markdown(run.name)}". Pre-trained without labels on 24 images from "photos"'
    )
    assert origin in data
    assert "accuracy and calibration on images" in missing.lower()
    assert "one of the 3 classes" in answers
    assert len(limits(out, "encoder")) == 4
    exported = torchmae.export(out, to="safetensors", out=tmp_path / "exported")
    card = (exported / "README.md").read_text()
    assert "\n## Limits\n" in card and all(
        f"* {line}" in card for line in limits(out, "classifier")
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"verb": "import", "data": None}, "Imported weights"),
        ({"data": None}, "Imported weights"),
        ({"run": "none", "verb": "finetune"}, "Its encoder was not pre-trained."),
        ({"from_run": "/gone/parent"}, 'those of "parent". That folder is gone'),
        ({"from_run": "SELF"}, "that folder is gone"),
        ({"data_name": "/home/me/a`<b>\n# c"}, r'images from "a\`&lt;b&gt;\\n\# c"'),
    ],
)
def test_what_is_not_known_is_said(run: Path, tmp_path: Path, change: dict, words: str) -> None:
    own = shutil.copytree(run, tmp_path / "own")
    config = read_config(own)
    for name, value in change.items():
        value = str(own) if value == "SELF" else value
        if name == "data_name":
            config["config"]["data"] = value
        else:
            (config["config"] if name in ("run", "from_run") else config)[name] = value
    (own / "config.json").write_text(json.dumps(config))
    assert words.lower() in " ".join(trained_on(own, config)).lower()
