"""mae segment: a training that learns, exact resuming, processes, workers; what later verbs do."""

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
from helpers.label_maps import CLASSES, make_shapes
from helpers.runs_on_disk import ENV, flags, steps_saved, weights
from PIL import Image
from safetensors.torch import load_file

import torchmae
from torchmae.errors import UserError
from torchmae.runfolder import read_bad_files

SMALL = dict(
    model="vit_micro",
    image_size=32,
    patch_size=8,
    head_width=16,
    batch_size=4,
    epochs=4,
    workers=0,
    device="cpu",
    precision="fp32",
    log_every=1,
)
STEPS = 12  # 4 epochs of 12 images, 4 a step


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes") / "shapes")


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """The uninterrupted run."""
    out = tmp_path_factory.mktemp("segment") / "run"
    return Path(torchmae.segment("none", shapes, out=out, head="upernet", **SMALL))


def command(shapes, out, *more, **options):
    given = SMALL | {"head": "upernet", "out": out, "save_minutes": 1e-6} | options
    return [sys.executable, "-m", "torchmae", "segment", "none", str(shapes), *flags(given), *more]


def log_of(run):
    drop = ("images_per_s", "wait", "peak_memory_mb")
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in drop} for line in lines]


@pytest.fixture(scope="module")
def learned(shapes, tmp_path_factory):
    """A run that has learned something."""
    options = SMALL | dict(epochs=12, base_lr=0.128, jitter=(0.9, 1.2), photometric=0.0)
    options |= dict(patch_size=4, drop_path=0.0, validate_epochs=6, head_width=None)
    out = tmp_path_factory.mktemp("learned") / "run"
    return torchmae.segment("none", shapes, out=out, head="linear", **options)


def test_it_learns_and_the_scores_are_those_of_its_predictions(learned, shapes):
    record = learned.results[0]
    last = record["results"]["last"]
    assert last["miou"] > 0.6 and last["low"] < last["miou"] < last["high"]
    model = torchmae.load_segmenter(learned)
    assert model.classes == ("0", "1", "2")
    shared, union = np.zeros(3), np.zeros(3)
    for i in range(6):
        image = np.array(Image.open(shapes / "val/images" / f"{i}.jpg"))
        labels = np.array(Image.open(shapes / "val/masks" / f"{i}.png"))
        said = model.predict(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy()
        assert said.shape == labels.shape
        for k in range(3):
            a, b = (said == k) & (labels != 255), labels == k
            shared[k] += (a & b).sum()
            union[k] += (a | b).sum()
    assert np.mean(shared / union) == pytest.approx(last["miou"])
    assert Image.open(learned / "worst.png").width > 300
    assert 'alt="worst.png"' in (learned / "report.html").read_text()


def test_killed_again_and_again_the_run_ends_with_the_same_weights(whole, shapes, tmp_path):
    run, kills = tmp_path / "run", []
    for ahead in (1, 2, 3):
        before = steps_saved(run)
        process = subprocess.Popen(
            command(shapes, run, workers=1),
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + 90
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
    run = torchmae.segment(
        "none", shapes, out=tmp_path / "run", head="upernet", **(SMALL | {"workers": 2})
    )
    assert weights(run.path) == weights(whole)


def test_two_processes_with_micro_batches_are_one(whole, shapes, tmp_path):
    run = tmp_path / "run"
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    own = command(shapes, run, micro_batch_size=1)
    done = subprocess.run(
        [own[0], *launcher, *own[1:]], env=ENV, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(one / "model.safetensors") for one in (run, whole))
    assert ours.keys() == theirs.keys()
    for name, b in theirs.items():
        a = ours[name]
        if name.endswith("qkv.bias"):  # the gradient of the keys' bias is rounding noise
            a, b = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=f"{name}: {{}}".format)
    for a, b in zip(log_of(run), log_of(whole)):
        for name in ("loss", "grad_norm"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-3), (a["step"], name)


def test_a_frozen_encoder_stays_bit_for_bit(run, shapes, tmp_path):
    options = {k: v for k, v in SMALL.items() if k not in ("model", "patch_size", "head_width")}
    probe = torchmae.segment(run, shapes, out=tmp_path / "run", train="head", **options)
    model = torchmae.load_segmenter(probe)
    assert model.kind == "linear"
    before = torchmae.load(run).state_dict()
    after = model.encoder.state_dict()
    assert after and all(torch.equal(value, before[name]) for name, value in after.items())
    encoder = probe.encoder()  # later verbs take it as any other run's
    assert torch.equal(encoder.state_dict()["cls_token"], before["cls_token"])


def test_evaluate_and_predict(learned, shapes, tmp_path):
    whole = learned.path
    found = torchmae.evaluate(whole, shapes, device="cpu", boundary=True)
    last = torchmae.Run(whole).results[0]["results"]["last"]
    assert found["miou"] == pytest.approx(last["miou"]) and 0 <= found["boundary_f"] <= 1
    assert {"0", "1", "2"} == set(found["iou"]) and found["count"] == 6
    for name in ("confusion.png", "worst.png"):
        assert Image.open(whole / name).width > 300
    slid = torchmae.evaluate(whole, shapes, device="cpu", slide=32, stride=16, tta="flip")
    assert slid["miou"] != found["miou"] and slid["slide"] == 32
    out = torchmae.predict(whole, [str(shapes / "val/images")], out=tmp_path / "said", device="cpu")
    label = Image.open(Path(out) / "labels" / "0.png")
    assert label.mode == "P" and label.size == (56, 40)
    image = torch.from_numpy(np.array(Image.open(shapes / "val/images/0.jpg"))).permute(2, 0, 1)
    said = torchmae.load_segmenter(whole).predict(image[None])[0]
    assert np.array_equal(np.array(label), said.numpy())
    assert Image.open(Path(out) / "overlays" / "0.jpg").size == (56, 40)
    model = torchmae.load_segmenter(whole)
    for wrong, words in (
        (image[None, :1], r"images \[1, 1, 40, 56\]: a tensor \[B, 3, H, W\] is needed"),
        (image[None] / 255, "images of float32: the model was trained on pixels of 8 bits"),
    ):
        with pytest.raises(UserError, match=words):
            model.predict(wrong)
    with pytest.raises(UserError, match="--among is for classifiers"):
        torchmae.evaluate(whole, shapes, among=True)
    with pytest.raises(UserError, match="holds no classifier"):
        torchmae.load_classifier(whole)


def test_classes_and_ignored_values_are_kept_for_later_verbs(shapes, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(dict(zip(CLASSES, range(3)))))
    options = SMALL | dict(epochs=1, head="linear", ignore=["255", "ground"], exclude="5.jpg")
    options.pop("head_width")
    run = torchmae.segment(
        "none", shapes, out=tmp_path / "run", classes=[str(tmp_path / "names.json")], **options
    )
    assert torchmae.load_segmenter(run).classes == ("disk", "box")
    (tmp_path / "names.json").unlink()
    stored = json.loads((run.path / "config.json").read_text())
    assert stored["config"]["exclude"] == ["5.jpg"] and stored["data"]["count"] == 11
    found = torchmae.evaluate(run, shapes, device="cpu")
    assert set(found["iou"]) == {"disk", "box"} and found["count"] == 5, "without val/images/5.jpg"
    assert torchmae.evaluate(run, shapes, device="cpu", exclude="none")["count"] == 6
    out = torchmae.predict(run, [str(shapes / "val/images")], out=tmp_path / "said", device="cpu")
    values = set(np.unique(np.array(Image.open(Path(out) / "labels/0.png"))).tolist())
    assert values <= {1, 2}, "the values of the masks that it was trained on"
    # the same command again is finished, and may not say other classes
    with pytest.raises(UserError, match="ignore was"):
        torchmae.segment("none", shapes, out=run.path, **(options | {"ignore": ["255"]}))


def test_bad_masks_are_named_before_training_and_replaced(tmp_path, capfd):
    data = make_shapes(tmp_path / "shapes")
    masks = data / "train/masks"
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(masks / "0.png")
    Image.open(masks / "1.png").save(masks / "1.jpg")
    (masks / "1.png").unlink()
    (masks / "2.png").write_bytes(b"no image")
    (masks / "3.png").unlink()
    (data / "train/images/4.jpg").unlink()
    run = torchmae.segment("none", data, out=tmp_path / "run", head="fpn", **SMALL | {"epochs": 2})
    said = capfd.readouterr().out
    reasons = {one["file"]: one["reason"] for one in read_bad_files(run.path)}
    assert "its mask has 9 x 7 pixels, the image 56 x 40" in reasons["train/images/0.jpg"]
    assert "JPEG, whose compression changes the values" in reasons["train/images/1.jpg"]
    assert "its mask" in reasons["train/images/2.jpg"]
    assert reasons["train/images/3.jpg"] == "an image without a mask"
    assert reasons["train/masks/4.png"] == "a mask without an image"
    assert "3 files are not used" in said and "2 files are left out" in said
    assert not any(line.get("skipped") for line in log_of(run.path))


def test_masks_that_say_nothing_are_refused(tmp_path):
    data = make_shapes(tmp_path / "shapes")
    options = SMALL | {"head": "linear"}
    options.pop("head_width")
    with pytest.raises(UserError, match="fewer than two classes"):
        torchmae.segment(
            "none", data, out=tmp_path / "run", ignore=["0", "1", "2", "255"], **options
        )
    with pytest.raises(UserError, match="has no annotations that this verb reads"):
        torchmae.segment("none", data / "train/images", out=tmp_path / "run", **options)
    with pytest.raises(UserError, match="--head unet|unknown --head"):
        torchmae.segment("none", data, out=tmp_path / "run", **options | {"head": "unet"})


SIZES = ((1, 32, 32), (3, 56, 40))  # the run's own size, which was refused once, and another


def test_graphs_take_images_of_any_size(learned, tmp_path):
    """Traced in a process of its own, without the shape checks of the tests."""
    ort = pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "torchmae", "export", str(learned), "--to", "onnx"]
    command += ["--out", str(tmp_path / "onnx"), "--with-preprocessing"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    session = ort.InferenceSession(tmp_path / "onnx/model.onnx")
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == ["0", "1", "2"]
    assert properties["output"] == "logits, [batch, classes, height, width]"
    model = torchmae.load_segmenter(learned)
    images = torch.randint(0, 256, (2, 3, 37, 61), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(model.encoder.normalize(images))
    (found,) = session.run(None, {"images": images.numpy()})
    assert np.abs(found - expected.numpy()).max() < 1e-3
    command[-3:] = ["--out", str(tmp_path / "program"), "--with-preprocessing"]
    command[command.index("onnx")] = "torch-export"
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program = torch.export.load(tmp_path / "program/model.pt2").module()
    for images in (torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8) for n, h, w in SIZES):
        with torch.no_grad():
            expected = model(model.encoder.normalize(images))
        assert torch.equal(program(images), expected)
    card = (tmp_path / "onnx/README.md").read_text()
    assert "Every pixel gets one of the 3 classes" in card and "images with masks" in card
    with pytest.raises(UserError, match="a segmenter has no place there: use --to onnx"):
        torchmae.export(learned, to="timm", out=tmp_path / "timm")
