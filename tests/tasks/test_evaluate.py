"""mae evaluate on a classifier that was really trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import QUICK, SMALL
from PIL import Image

import torchmae
from torchmae.data.corruptions import CORRUPTIONS, VARIANTS, corrupt
from torchmae.data.sources import open_source
from torchmae.errors import UserError
from torchmae.eval.extract import collect_batches, image_batches
from torchmae.models.weights import load_classifier
from torchmae.runfolder import read_results
from torchmae.tasks.evaluate.corrupt import corrupted_batches


def test_the_scores_are_recorded_and_drawn(
    classifier: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = torchmae.evaluate(classifier, photos)
    assert result["count"] == 24
    assert "top5" not in result and "top 5" not in capsys.readouterr().out  # of 3 classes
    validation, *_, record = read_results(classifier)
    assert validation["verb"] == "finetune"
    assert record["verb"] == "evaluate"
    assert {**record["settings"], **record["results"]} == json.loads(json.dumps(result))
    assert (classifier / "confusion.png").stat().st_size > 5000
    count = len(read_results(classifier))
    torchmae.evaluate(classifier, photos)
    assert len(read_results(classifier)) == count  # the same measurement, made again


def test_some_of_the_classes_under_other_names(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    data, names = tmp_path / "data", tmp_path / "map.json"
    data.mkdir()
    (data / "stripes").symlink_to(photos / "across")
    with pytest.raises(UserError, match="class 'stripes' .* is not one of the classifier's 3"):
        torchmae.evaluate(classifier, data)
    names.write_text('{"stripes": "across"}')
    found = torchmae.evaluate(classifier, data, class_map=names)
    assert found["count"] == 8
    assert set(found["per_class"]) == {"across"}
    alone = torchmae.evaluate(classifier, data, class_map=names, among=True)
    assert alone["top1"] == 1.0  # only one class to choose from


def test_of_data_with_a_split_the_validation_part_is_measured(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, name in (("train", "across"), ("train", "down"), ("val", "blob")):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / name).symlink_to(photos / name)
    found = torchmae.evaluate(classifier, tmp_path)
    assert found["count"] == 8
    assert set(found["per_class"]) == {"blob"}
    assert "brings its own split: measured on its validation part" in capsys.readouterr().out


def test_mistakes(classifier: Path, run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no classifier"):
        torchmae.evaluate(run, photos)
    with pytest.raises(UserError, match="--class-map"):
        torchmae.evaluate(classifier, photos, class_map=tmp_path / "none.json")


def test_accuracy_on_corrupted_images_is_recorded_and_drawn(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for name in ("across", "blob"):
        shutil.copytree(photos / name, data / name)
    (data / "blob" / "0.jpg").write_bytes(b"no image")
    result = torchmae.evaluate(classifier, data, corrupt=True, seed=1)
    assert result["count"] == 15
    assert result["top1"] == pytest.approx(torchmae.evaluate(classifier, data)["top1"])
    assert list(result["corruptions"]) == list(CORRUPTIONS)
    means = [np.mean(one["accuracy"]) for one in result["corruptions"].values()]
    assert result["mean_corrupted"] == pytest.approx(np.mean(means))
    printed = capsys.readouterr().out
    assert "skipped: blob/0.jpg" in printed
    assert "jpeg compression" in printed
    for name in ("corruptions.png", "corrupted.png"):
        assert Image.open(classifier / name).size[0] > 400
    record = next(r for r in read_results(classifier) if r["settings"].get("corrupt"))
    assert record["results"]["corruptions"] == result["corruptions"]
    # by hand: corrupted files, measured as images like any others
    model = load_classifier(classifier)
    again = tmp_path / "again"
    for i, name in enumerate(["across"] * 8 + ["blob"] * 7):
        path = sorted((data / name).iterdir())[i % 8 + (name == "blob")]
        pixels = np.asarray(Image.open(path))
        crop = image_batches(open_source(str(data)), model.encoder, classifier).transform
        square = crop(pixels, None, 0, 0)[0].permute(1, 2, 0).numpy()
        made = corrupt(square, "contrast", 5, 1, i + (name == "blob"))
        (again / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(made).save(again / name / f"{i:02}.png")
    expected = torchmae.evaluate(classifier, again)["top1"]
    assert result["corruptions"]["contrast"]["accuracy"][4] == pytest.approx(expected)


def test_the_size_of_batches_does_not_change_corrupted_pixels(
    classifier: Path, photos: Path
) -> None:
    model = load_classifier(classifier)
    images = image_batches(open_source(str(photos / "blob")), model.encoder, classifier)
    whole = corrupted_batches(images, seed=0)
    cpu = torch.device("cpu")
    found = [
        collect_batches(replace(whole, batch_size=size), [lambda x: x], cpu)[1][0]
        for size in (1, 3, 64)
    ]
    assert found[0].shape == (8, len(VARIANTS), 3, 32, 32)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_corruptions_of_other_than_1_or_3_channels_are_not_defined(
    tmp_path: Path,
) -> None:
    data = {"images": np.zeros((8, 32, 32, 5), np.uint8), "labels": np.arange(8) % 2}
    np.savez(tmp_path / "bands.npz", **data)
    five = torchmae.finetune(
        "none",
        tmp_path / "bands.npz",
        out=tmp_path / "five",
        **{**{n: v for n, v in SMALL.items() if "decoder" not in n}, **QUICK, "epochs": 1},
    )
    with pytest.raises(UserError, match="defined for images of 1 or 3 channels, .* takes 5"):
        torchmae.evaluate(five, tmp_path / "bands.npz", corrupt=True)
