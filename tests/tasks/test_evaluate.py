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
    printed = capsys.readouterr().out
    assert "top5" not in result and "top 5" not in printed  # of 3 classes
    assert "note: only 24 images to measure on" in printed
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


def predicted(classifier: Path, files: list[Path], among: list[str] | None = None) -> list[str]:
    """What a classifier says of images of its own size, without torchmae's evaluation."""
    model = load_classifier(classifier)
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    images = model.encoder.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.no_grad():
        logits = model(images).numpy()
    allowed = [i for i, name in enumerate(model.classes) if among is None or name in among]
    return [model.classes[allowed[k]] for k in logits[:, allowed].argmax(1)]


def images_of(folder: Path, counts: dict[str, int], seed: int) -> Path:
    """A class folder of random 32 px images for each name."""
    draw = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels).save(folder / name / f"{i}.JPEG", quality=95)
    return folder


def test_imagenet_c_is_scored_by_hand(classifier: Path, tmp_path: Path) -> None:
    counts = {"across": 3, "blob": 2}
    sets = [images_of(tmp_path / f"set{k}", counts, seed=k) for k in range(5)]
    data = tmp_path / "imagenet-c"
    for i, name in enumerate(CORRUPTIONS):
        parent = data / "noise" if i < 3 else data  # the tar files have such folders above
        (parent / name).mkdir(parents=True)
        for strength in range(1, 6):
            (parent / name / str(strength)).symlink_to(sets[(i + strength) % 5])
    right = []
    for folder in sets:
        files = sorted(folder.glob("*/*.JPEG"))
        said = predicted(classifier, files)
        right.append(np.mean([name == file.parent.name for name, file in zip(said, files)]))
    assert len(set(right)) > 1
    found = torchmae.evaluate(classifier, data, benchmark="imagenet-c")
    assert found["count"] == 75 * 5
    for i, name in enumerate(CORRUPTIONS):
        expected = [right[(i + strength) % 5] for strength in range(1, 6)]
        assert found["corruptions"][name]["accuracy"] == pytest.approx(expected)
    error = 1 - np.mean(right)  # the same of each corruption: all have the same five sets
    assert found["mean_error"] == pytest.approx(error)
    # AlexNet's errors in %, as the paper's table rounds them
    alexnet = [88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8]
    alexnet.append(60.7)
    assert found["mce"] == pytest.approx(np.mean([100 * error / e for e in alexnet]), rel=1e-3)
    assert found["corruptions"]["jpeg_compression"]["ce"] == pytest.approx(error / 0.6065)
    (data / "fog" / "3").unlink()
    with pytest.raises(UserError, match=r"no folder fog/3 \(1 of 75 are missing\)"):
        torchmae.evaluate(classifier, data, benchmark="imagenet-c")


def test_the_classes_of_imagenet_a_and_r_are_those_of_the_data(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = images_of(tmp_path / "a", {"across": 6, "down": 6}, seed=9)
    files = sorted(data.glob("*/*.JPEG"))
    for benchmark, among in (("imagenet-a", ["across", "down"]), ("sketch", None)):
        said = predicted(classifier, files, among)
        expected = np.mean([name == file.parent.name for name, file in zip(said, files)])
        found = torchmae.evaluate(classifier, data, benchmark=benchmark)
        assert found["top1"] == pytest.approx(expected)
        printed = capsys.readouterr().out
        assert "The MAE paper (Table 13) has top 1 in %: ViT-B 3" in printed
        assert "classes, " in printed  # 200 or 1,000, not 2
    assert set(predicted(classifier, files, ["across", "down"])) != set(
        predicted(classifier, files)
    )


def test_what_a_benchmark_cannot_be(classifier: Path, photos: Path, tmp_path: Path) -> None:
    images_of(tmp_path / "r", {"across": 1, "n0001": 1}, seed=0)
    for data, options, message in [
        (tmp_path / "r", {"benchmark": "imagenet-r"}, "class 'n0001' .1 in all. is not one of"),
        (photos, {"benchmark": "imagenet-c"}, "no folder gaussian_noise/1 .75 of 75"),
        (photos, {"benchmark": "imagenet-b"}, "unknown --benchmark 'imagenet-b'"),
        (photos, {"benchmark": "sketch", "corrupt": True}, "leave --corrupt out"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.evaluate(classifier, data, **options)
