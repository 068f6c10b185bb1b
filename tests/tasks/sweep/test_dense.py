"""mae compare segment, mae compare detect: trainings of several encoders, paired by seed, resumed;
learning rates searched alike; a verdict."""

import numpy as np
import pytest
from helpers.label_maps import make_shapes
from helpers.objects import coco_set
from PIL import Image

import torchmae
from torchmae.errors import UserError
from torchmae.runfolder import read_config
from torchmae.tasks.sweep.dense.run import summarize
from torchmae.tasks.sweep.grids import named
from torchmae.verbs import VERBS, load

QUICK = dict(
    image_size=32, batch_size=4, epochs=1, workers=0, device="cpu", precision="fp32", head="linear"
)


def test_a_run_against_from_scratch(run, tmp_path, capfd):
    data = make_shapes(tmp_path / "shapes", 8, 3)
    out = tmp_path / "out"
    options = QUICK | dict(train_images=[4], seeds=[0, 1], out=out, lr_sweep=2)
    torchmae.compare("segment", run, data, **options)
    (record,) = torchmae.Run(out).results
    assert record["results"]["metric"] == "mIoU"
    (four,) = record["results"]["rows"]
    assert (four["name"], four["seeds"], four["images"]) == ("4", 2, 3)
    ours, theirs = (four["arms"][arm]["scores"] for arm in ("pre-trained", "from scratch"))
    found = four["differences"]["pre-trained - from scratch"]
    assert found["mean"] == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert found["low"] <= found["mean"] <= found["high"]
    assert four["verdict"] == "not shown" and "too few" in four["reason"]
    check_search(out, record["results"]["search"], four["search"])
    trained = torchmae.Run(out / "pre-trained-4-seed-1")
    assert (
        trained.results[-1]["results"]["last"]["score"] == four["arms"]["pre-trained"]["scores"][1]
    )
    scratch = torchmae.load_segmenter(out / "from-scratch-4-seed-0")
    assert scratch.encoder.depth == torchmae.load(run).depth
    assert Image.open(out / "compare.png").width > 400
    capfd.readouterr()
    before = (out / "from-scratch-4-seed-0" / "model.safetensors").stat().st_mtime_ns
    torchmae.compare("segment", run, data, **options)  # nothing is trained again
    after = (out / "from-scratch-4-seed-0" / "model.safetensors").stat().st_mtime_ns
    assert before == after and "pre-trained minus it" not in capfd.readouterr().err


def check_search(out, words, searched):
    """Two learning rates of each encoder, on training images; the better one of each is used."""
    assert "learning rate x1, x3" in words and "on 2 training images that no seed" in words
    for arm, found in searched.items():
        assert [one["lr_scale"] for one in found["tried"]] == [1, 3]
        best = max(found["tried"], key=lambda one: one["score"])
        assert found["chosen"]["lr_scale"] == best["lr_scale"]
        name = arm.replace(" ", "-")
        trials = [out / f"trials/{name}-4-images-lr-x{factor}" for factor in (1, 3)]
        usual, tripled = (read_config(trial)["config"]["base_lr"] for trial in trials)
        assert tripled == pytest.approx(3 * usual)
        final = read_config(out / f"{name}-4-seed-1")
        assert final["config"]["base_lr"] == pytest.approx(best["lr_scale"] * usual)
        of_trial = read_config(trials[0])["data"]
        assert of_trial["val"]["count"] == 2 and of_trial["count"] == 4
        assert of_trial["val"]["fingerprint"] != final["data"]["val"]["fingerprint"]


def test_detectors_have_the_same_runner():
    with pytest.raises(UserError, match="at least two"):
        torchmae.compare("detect", "x", "y", seeds=[1])
    config = load(VERBS["compare detect"].config)
    assert issubclass(config, load(VERBS["detect"].config))


def scores(*values):
    return [{"score": value, "count": 10} for value in values]


def test_verdicts():
    shown = summarize("all", {"a": scores(0.5, 0.6, 0.7), "b": scores(0.3, 0.41, 0.49)}, {})
    assert shown["verdict"] == "shown" and shown["differences"]["a - b"]["low"] > 0
    worse = summarize("all", {"a": scores(0.3, 0.41, 0.49), "b": scores(0.5, 0.6, 0.7)}, {})
    assert worse["verdict"] == "worse"
    unclear = summarize("all", {"a": scores(0.3, 0.6, 0.2), "b": scores(0.5, 0.3, 0.2)}, {})
    assert unclear["verdict"] == "not shown"


def test_names_and_mistakes(tmp_path):
    assert named(["runs/x"]) == {"pre-trained": "runs/x", "from scratch": "none"}
    assert list(named(["a/x", "none", "b/x"])) == ["a/x", "from scratch", "b/x"]
    with pytest.raises(UserError, match="named twice"):
        named(["none", "none", "none"])
    with pytest.raises(UserError, match="needs a run before"):
        torchmae.compare("segment", "none", "y")
    with pytest.raises(UserError, match="leave --base-lr out"):
        torchmae.compare("segment", "x", "y", lr_sweep=2, base_lr=1e-3)
    with pytest.raises(UserError, match="at least two"):
        torchmae.compare("segment", "x", "y", seeds=[1])


def test_detectors_are_compared_alike(run, tmp_path):
    """compare detect, of boxes: a training of each of two encoders with each of two seeds."""
    pytest.importorskip("torchvision")
    pytest.importorskip("faster_coco_eval")
    data = coco_set(tmp_path / "shapes", {"train": 4, "val": 2}, least=1)
    options = {name: value for name, value in QUICK.items() if name != "head"}
    options |= dict(head_width=16, roi_samples=16, masks=False, max_detections=10, seeds=[0, 1])
    torchmae.compare("detect", run, data, out=tmp_path / "out", **options)
    (record,) = torchmae.Run(tmp_path / "out").results
    assert record["verb"] == "compare detect" and record["results"]["metric"] == "AP"
    (row,) = record["results"]["rows"]
    assert row["images"] == 2 and set(row["arms"]) == {"pre-trained", "from scratch"}
    made = torchmae.load_detector(tmp_path / "out" / "from-scratch-all-seed-1")
    assert made.encoder.depth == torchmae.load(run).depth and not made.has_masks
