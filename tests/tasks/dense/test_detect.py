"""mae detect: a training that learns, exact resuming, processes, workers; what later verbs do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.objects import coco_set, write_coco, yolo_set
from helpers.runs_on_disk import ENV, flags, steps_saved, weights
from PIL import Image
from safetensors.torch import load_file

import torchmae
from torchmae.errors import UserError
from torchmae.runfolder import read_bad_files
from torchmae.settings.defaults import Facts
from torchmae.tasks.dense.detect.config import RULES

pytest.importorskip("torchvision")
pytest.importorskip("faster_coco_eval")

SMALL = dict(
    model="vit_micro",
    image_size=64,
    patch_size=16,
    head_width=16,
    roi_samples=16,
    batch_size=4,
    epochs=3,
    workers=0,
    device="cpu",
    precision="fp32",
    log_every=1,
)
STEPS = 9  # 3 epochs of 12 images, 4 a step


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return coco_set(tmp_path_factory.mktemp("shapes") / "shapes", {"train": 12, "val": 5})


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """The uninterrupted run."""
    out = tmp_path_factory.mktemp("detect") / "run"
    return Path(torchmae.detect("none", shapes, out=out, **SMALL))


def command(shapes, out, *more, **options):
    given = SMALL | {"out": out, "save_minutes": 1e-6} | options
    return [sys.executable, "-m", "torchmae", "detect", "none", str(shapes), *flags(given), *more]


def log_of(run):
    drop = ("images_per_s", "wait", "peak_memory_mb")
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in drop} for line in lines]


def test_it_learns(tmp_path):
    """Large shapes of two colors: found, with masks, after a minute."""
    data = coco_set(
        tmp_path / "data", {"train": 16, "val": 6}, height=40, width=40, most=2, least=1
    )
    options = SMALL | dict(epochs=30, base_lr=0.02, jitter=(0.9, 1.1), head_width=32)
    options |= dict(patch_size=8, drop_path=0.0, validate_epochs=30, roi_samples=32)
    run = torchmae.detect("none", data, out=tmp_path / "run", **options)
    last = run.results[0]["results"]["last"]
    for kind in ("boxes", "masks"):
        assert last[kind]["ap50"] > 0.5, last
        assert last[kind]["low"] <= last[kind]["ap"] <= last[kind]["high"]
    losses = [line["loss"] for line in log_of(run.path) if "loss" in line]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    # The scores are those of its predictions, and the boxes are not beside the objects.
    found = torchmae.evaluate(run.path, data, device="cpu")
    assert found["boxes"]["ap"] == pytest.approx(last["boxes"]["ap"])
    model = torchmae.load_detector(run)
    known = json.loads((data / "annotations/instances_train.json").read_text())
    offsets = []
    for image in known["images"]:
        pixels = np.array(Image.open(data / "images" / image["file_name"]))
        (said,) = model.predict(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        for one in known["annotations"]:
            x, y, w, h = one["bbox"]
            box = torch.tensor([x, y, x + w, y + h])
            if one["image_id"] == image["id"] and len(said.boxes):
                near = (said.boxes - box).abs().sum(1)
                if near.min() < 12:
                    offsets.append(said.boxes[near.argmin()] - box)
    assert len(offsets) > 8 and torch.stack(offsets).mean(0).abs().max() < 1.5


def test_killed_again_and_again_the_run_ends_with_the_same_weights(whole, shapes, tmp_path):
    run, kills = tmp_path / "run", []
    for ahead in (1, 2, 2):
        before = steps_saved(run)
        process = subprocess.Popen(
            command(shapes, run, workers=1),
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while steps_saved(run) < before + ahead and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0].decode()
        assert process.returncode == -signal.SIGKILL, output
        kills.append(steps_saved(run))
    assert kills == sorted(kills) and 0 < kills[-1] < STEPS, kills
    done = subprocess.run(command(shapes, run), env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(whole)
    assert (run / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    assert log_of(run) == log_of(whole)


def test_workers_change_nothing(whole, shapes, tmp_path):
    run = torchmae.detect("none", shapes, out=tmp_path / "run", **(SMALL | {"workers": 2}))
    assert weights(run.path) == weights(whole)


def test_two_processes_with_micro_batches_are_one(whole, shapes, tmp_path):
    run = tmp_path / "run"
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    own = command(shapes, run, micro_batch_size=1)
    done = subprocess.run(
        [own[0], *launcher, *own[1:]], env=ENV, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    for a, b in zip(log_of(run), log_of(whole)):
        # Which boxes are the best is a matter of last bits sooner or later; not at first.
        rel = 1e-3 if a["step"] <= 3 else 2e-2
        for name in ("loss", "grad_norm"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=rel), (a["step"], name)
    ours, theirs = (load_file(one / "model.safetensors") for one in (run, whole))
    assert ours.keys() == theirs.keys()
    for name, b in theirs.items():
        a = ours[name]
        if name.endswith("qkv.bias"):  # the gradient of the keys' bias is rounding noise
            a, b = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-2, atol=3e-4, msg=f"{name}: {{}}".format)


def test_evaluate_and_predict(whole, shapes, tmp_path, caplog):
    assert 'alt="worst.png"' in (whole / "report.html").read_text()
    drawn = Image.open(whole / "worst.png").convert("RGB")  # when the training ended
    (whole / "worst.png").unlink()
    found = torchmae.evaluate(whole, shapes, device="cpu")
    last = torchmae.Run(whole).results[0]["results"]["last"]
    assert found["masks"]["ap"] == pytest.approx(last["masks"]["ap"])
    assert found["boxes"]["images"] == 5 and set(found["boxes"]["by_class"]) == {"box", "disk"}
    assert drawn.width > 300
    assert np.array_equal(drawn, Image.open(whole / "worst.png").convert("RGB"))
    out = torchmae.predict(
        whole, [str(shapes / "images")], out=tmp_path / "said", device="cpu", min_score=0.06
    )
    images = json.loads((Path(out) / "images.json").read_text())
    results = json.loads((Path(out) / "detections.json").read_text())
    names = {one["id"]: one["file_name"] for one in images["images"]}
    assert len(names) == 17 and [one["name"] for one in images["categories"]] == ["box", "disk"]
    image = names[results[0]["image_id"]]
    pixels = torch.from_numpy(np.array(Image.open(shapes / "images" / image))).permute(2, 0, 1)
    (said,) = torchmae.load_detector(whole).predict(pixels[None])
    x1, y1, x2, y2 = said.boxes[0].tolist()
    assert results[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    assert results[0]["segmentation"]["size"] == [48, 64]
    lines = (Path(out) / "labels" / image).with_suffix(".txt").read_text().splitlines()
    assert len(lines) == int((said.scores >= 0.06).sum())
    assert all(len(line.split()) == 6 for line in lines)
    assert Image.open((Path(out) / "overlays" / image).with_suffix(".jpg")).size == (512, 384)
    for options, message in (
        (dict(among=True), "--among is for classifiers"),
        (dict(slide=32), "--slide is for segmenters"),
    ):
        with pytest.raises(UserError, match=message):
            torchmae.evaluate(whole, shapes, **options)
    for load in (torchmae.load_classifier, torchmae.load_segmenter):
        with pytest.raises(UserError, match="holds no"):
            load(whole)
    assert torchmae.Run(whole).encoder().embed_dim == 128
    detector = torchmae.load(whole)  # the whole, for images of any size
    (said,) = detector.predict(torch.zeros(1, 3, 37, 101, dtype=torch.uint8))
    assert detector.classes == ("box", "disk") and said.boxes.shape[1] == 4


def test_large_images_are_predicted_by_tiles(whole, shapes, tmp_path, caplog):
    """Every object is what the model finds in one tile, in the image's pixels."""
    pytest.importorskip("tifffile")
    wide = np.concatenate(
        [np.array(Image.open(shapes / "images" / f"{i:03d}.png")) for i in (1, 2, 3)], axis=1
    )
    (tmp_path / "wide").mkdir()
    Image.fromarray(wide).save(tmp_path / "wide" / "a.png")
    Image.fromarray(wide[:, :64]).save(tmp_path / "wide" / "b.png")
    said = dict(tile=64, overlap=32, empty=0, device="cpu")
    out = Path(torchmae.predict(whole, [str(tmp_path / "wide")], out=tmp_path / "said", **said))
    images = json.loads((out / "images.json").read_text())["images"]
    assert [(one["file_name"], one["height"], one["width"]) for one in images] == [
        ("a.png", 48, 192),
        ("b.png", 48, 64),
    ]
    results = json.loads((out / "detections.json").read_text())
    model, known = torchmae.load_detector(whole), []
    for left in range(0, 129, 32):
        pixels = torch.from_numpy(wide[:, left : left + 64].copy()).permute(2, 0, 1)
        (found,) = model.predict(pixels[None])
        known += (found.boxes + torch.tensor([left, 0, left, 0])).tolist()
    of_a = [one for one in results if one["image_id"] == 1]
    assert 0 < len(of_a) < len(known)
    for one in of_a:
        x, y, w, h = one["bbox"]
        assert min(np.abs(np.array([x, y, x + w, y + h]) - box).max() for box in known) < 1e-3
        assert one["segmentation"]["size"] == [48, 192]
    # An image that is one tile is predicted as without tiles.
    (seen,) = model.predict(torch.from_numpy(wide[:, :64].copy()).permute(2, 0, 1)[None])
    assert sorted(one["score"] for one in results if one["image_id"] == 2) == pytest.approx(
        sorted(seen.scores.tolist())
    )
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a.txt", "b.txt"]


def test_results_are_read_by_coco(whole, shapes, tmp_path):
    """What mae predict writes, scored by pycocotools on the set's own json."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    out = Path(
        torchmae.predict(whole, [str(shapes / "images")], out=tmp_path / "said", device="cpu")
    )
    known = coco.COCO(shapes / "annotations/instances_val.json")
    names = {one["file_name"]: one["id"] for one in known.dataset["images"]}
    images = json.loads((out / "images.json").read_text())
    ids = {one["id"]: names.get(one["file_name"]) for one in images["images"]}
    results = [
        one | {"image_id": ids[one["image_id"]], "category_id": 10 * one["category_id"] - 9}
        for one in json.loads((out / "detections.json").read_text())
        if ids[one["image_id"]] is not None
    ]
    last = torchmae.Run(whole).results[0]["results"]["last"]
    for kind, name in (("bbox", "boxes"), ("segm", "masks")):
        run = evaluation.COCOeval(known, known.loadRes([dict(one) for one in results]), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
        assert run.stats[0] == pytest.approx(last[name]["ap"], abs=1e-6)


def test_boxes_without_masks_and_many_objects(tmp_path, capfd):
    data = yolo_set(tmp_path / "yolo", {"train": 6}, most=40, least=30, height=64, width=96)
    options = SMALL | dict(epochs=1)
    run = torchmae.detect("none", data / "data.yaml", out=tmp_path / "run", **options)
    model = torchmae.load_detector(run)
    assert model.kind == "faster_rcnn" and model.max_detections == 100
    assert model.classes == ("box", "disk")
    said = capfd.readouterr().out
    assert "YOLO's data.yaml" in said and "Faster R-CNN" in said
    with pytest.raises(UserError, match="--masks: the objects of .* have boxes only"):
        torchmae.detect("none", data, out=tmp_path / "b", masks=True, **options)


def test_a_frozen_encoder_stays_bit_for_bit(run, shapes, tmp_path):
    options = {k: v for k, v in SMALL.items() if k not in ("model", "patch_size")}
    probe = torchmae.detect(
        run, shapes, out=tmp_path / "run", train="head", masks=False, **options | {"epochs": 1}
    )
    model = torchmae.load_detector(probe)
    before = torchmae.load(run).state_dict()
    after = model.encoder.state_dict()
    del after["pos_embed"]  # resized
    assert after and all(torch.equal(value, before[name]) for name, value in after.items())


def test_what_is_wrong_is_named_before_training(tmp_path, capfd):
    data = coco_set(tmp_path / "data", {"train": 8, "val": 3}, least=1)
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    (data / "images/001.png").unlink()
    Image.new("RGB", (48, 64)).save(data / "images/002.png")
    third = next(one for one in content["annotations"] if one["image_id"] == 3)
    fourth = next(one for one in content["annotations"] if one["image_id"] == 4)
    fourth["segmentation"] = [[1, 1, 5, 5]]
    third["bbox"] = [3, 3, 0, 4]
    content["annotations"].append(dict(third, bbox=[900, 3, 4, 4], id=999))
    content["annotations"].append(dict(third, bbox=[1, 3, 4, 4], id=998, image_id=77))
    write_coco(path, content["images"], content["annotations"])
    options = SMALL | dict(epochs=1)
    run = torchmae.detect("none", data, out=tmp_path / "run", **options)
    said = capfd.readouterr().out
    for line in (
        "empty boxes, left out: 1, such as 003.png, annotation",
        "boxes outside of their image, left out: 1, such as 003.png, annotation 999",
        "annotations of images that are not listed, left out: 1, such as annotation 998, image 77",
        "polygons with fewer than three points, left out: 1, such as 004.png",
        "images of another size than their annotations say, left out: 1, such as 002.png, 48 x 64",
        "6 training images and 3 validation images",
    ):
        assert line in said, line
    reasons = {one["file"]: one["reason"] for one in read_bad_files(run.path)}
    assert reasons["001.png"] == "No such file or directory, but annotated"
    assert any(name.startswith("003.png, annotation 999") for name in reasons)
    assert torchmae.detect("none", data, out=tmp_path / "run", **options).path == run.path


@pytest.mark.parametrize("width,decay", [(128, 1.0), (384, 0.75), (768, 0.7), (1024, 0.8)])
def test_layer_decay_by_width(width, decay):
    """Small encoders learned more without (docs/lab-notes.md)."""
    facts = Facts(50, 64, 64, 3, embed_dim=width)
    assert RULES["layer_decay"].choose(facts, {"run": "x", "train": "all"}).value == decay


def test_mistakes(shapes, tmp_path):
    options = SMALL | dict(out=tmp_path / "run")
    for more, message in (
        (dict(fit="short"), "unknown --fit 'short'"),
        (dict(compile=True), "--compile: a detector has other shapes"),
        (dict(max_detections=2000), "max-detections.*at most 1000"),
    ):
        with pytest.raises(UserError, match=message):
            torchmae.detect("none", shapes, **options | more)
    empty = tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (40, 40)).save(empty / "a.png")
    write_coco(empty / "x.json", [dict(id=1, file_name="a.png", width=40, height=40)], [])
    with pytest.raises(UserError, match="at least two are needed"):
        torchmae.detect("none", empty, **options)
    Image.new("RGB", (40, 40)).save(empty / "b.png")
    images = [
        dict(id=i, file_name=name, width=40, height=40) for i, name in enumerate(("a.png", "b.png"))
    ]
    write_coco(empty / "x.json", images, [])
    with pytest.raises(UserError, match="none of the 1 images to train on has an object"):
        torchmae.detect("none", empty, **options)
