"""k-NN accuracy and RankMe while pre-training: what mae knn measures, and no weight changes."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import SMALL, make_photos
from PIL import Image

import torchmae
from torchmae import cli
from torchmae.data.config import DecodeOptions, Listing
from torchmae.errors import UserError
from torchmae.models.weights import load_mae
from torchmae.runfolder import read_log
from torchmae.settings.options import changeable
from torchmae.tasks.pretrain import features
from torchmae.tasks.pretrain.config import Pretrain
from torchmae.tasks.pretrain.features import ACCURACY, RANK, Features, drawn, open_labelled
from torchmae.train.distributed import World

OPTIONS: dict[str, Any] = SMALL | dict(epochs=3, precision="fp32", save_minutes=1e-6, log_every=3)
WORLD = World(0, 1, torch.device("cpu"))


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def measured(run: Path) -> dict[int, tuple[float, float]]:
    return {r["step"]: (r[ACCURACY], r[RANK]) for r in read_log(run) if ACCURACY in r}


@pytest.fixture(scope="module")
def plain(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(torchmae.pretrain(photos, out=tmp_path_factory.mktemp("plain") / "run", **OPTIONS))


def test_what_is_measured_is_that_of_knn_and_the_weights_are_as_without(
    plain: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, often = tmp_path / "run", dict(labelled=str(photos), picture_minutes=0.0)
    torchmae.pretrain(photos, out=out, **OPTIONS, **often)
    assert weights(out) == weights(plain)
    found = measured(out)
    assert list(found) == list(range(10))  # before the first step, then after each
    said = capsys.readouterr().out
    first, last = found[0], found[9]
    assert f"({6} test and {18} training images of {photos}) and RankMe with each picture" in said
    assert f"s each time; before the first step {first[0]:.1%} and {first[1]:.1f}\n" in said
    line = f"{ACCURACY} {first[0]:.1%} at step 0, {last[0]:.1%} at step 9; {RANK} {first[1]:.1f}"
    assert line in said
    knn = torchmae.knn(out, photos, device="cpu", val_fraction=0.2)
    assert last[0] == knn["knn"]["features"]["accuracy"]
    assert last[1] == pytest.approx(knn["rankme"], rel=1e-6)
    assert first[0] == pytest.approx(knn["knn"]["untrained encoder"]["accuracy"], abs=0.2)

    shutil.rmtree(out / "state" / "step-00000009")  # the checkpoint before it is left
    torchmae.pretrain(photos, out=out, **OPTIONS)  # a resumed run has its images
    assert weights(out) == weights(plain) and measured(out)[9] == last
    shutil.rmtree(out / "state" / "step-00000009")
    torchmae.pretrain(photos, out=out, **OPTIONS, labelled="none", picture_minutes=0.0)
    assert weights(out) == weights(plain) and max(measured(out)) < 9
    shutil.rmtree(plain / "state" / "step-00000009")
    torchmae.pretrain(photos, out=plain, **OPTIONS, labelled=str(photos))
    assert weights(out) == weights(plain) and list(measured(plain)) == [9]


def test_nothing_but_the_values_is_left_behind(plain: Path, photos: Path) -> None:
    sets = open_labelled(str(photos), str(photos), 0, DecodeOptions(), Listing())
    assert sets is not None
    model = load_mae(plain)
    for training in (True, False):
        model.train(training)
        before = torch.get_rng_state()
        evaluator = Features(model, sets, plain, WORLD, sharded=False)
        first, second = dict(evaluator(1)), dict(evaluator(2))
        assert first == second and list(first) == [ACCURACY, RANK]
        assert torch.equal(before, torch.get_rng_state())
        assert all(module.training == training for module in model.modules())
    next(iter(model.encoder.parameters())).data.fill_(torch.nan)
    assert dict(evaluator(3)) == {}


def test_a_share_of_every_class_is_drawn_and_at_least_one() -> None:
    names = ["a"] * 600 + ["b"] * 300 + ["c"] * 99 + ["d"]
    ids = drawn(names, 101, 0)
    assert Counter(names[i] for i in ids) == {"a": 60, "b": 30, "c": 9, "d": 1}
    assert ids == sorted(set(ids)) == drawn(names, 101, 0) != drawn(names, 101, 1)
    assert drawn(names, 1000, 0) == list(range(1000))
    assert len(drawn([str(i) for i in range(500)], 100, 0)) == 100  # more classes than images


def test_large_sets_are_capped(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_VOTERS", 9)
    monkeypatch.setattr(features, "MOST_TESTED", 3)
    sets = open_labelled(str(photos), "other", 0, DecodeOptions(), Listing())
    assert sets is not None
    assert (len(sets.train), len(sets.val)) == (9, 3)
    assert sets.train_labels.bincount().tolist() == [3, 3, 3]
    for part, labels in ((sets.train, sets.train_labels), (sets.val, sets.val_labels)):
        assert [part.label(i) for i in range(len(part))] == [sets.classes[i] for i in labels]


def test_patterns_are_about_data_and_hold_for_the_same_images_only(
    photos: Path, tmp_path: Path
) -> None:
    listing = Listing(exclude=("blob/*",))
    same = open_labelled(str(photos), f"{photos}/", 0, DecodeOptions(), listing)
    other = open_labelled(str(photos), str(tmp_path), 0, DecodeOptions(), listing)
    assert same is not None and same.classes == ("across", "down")
    assert other is not None and len(other.classes) == 3


def test_mistakes_are_a_line_before_anything_is_done(photos: Path, tmp_path: Path) -> None:
    flat, lonely = tmp_path / "flat", make_photos(tmp_path / "lonely", each=2)
    (tmp_path / "one").mkdir()
    shutil.copytree(photos / "blob", tmp_path / "one" / "blob")
    shutil.copytree(photos / "blob", flat)
    (lonely / "down" / "1.jpg").unlink()
    for labels, message in [
        (flat, "has no labels"),
        (tmp_path / "one", "k-NN needs at least two classes, there is one: 'blob'"),
        (lonely, "class 'down' has one image, and one is needed to vote and one to test on"),
        (tmp_path / "missing", "missing"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            torchmae.pretrain(photos, out=tmp_path / "run", labelled=str(labels), **OPTIONS)
        assert str(error.value).startswith(f"--labelled {labels}: ")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_split_on_disk_is_used_and_unreadable_files_are_left_out(
    photos: Path, plain: Path, tmp_path: Path
) -> None:
    for part, each in (("train", 3), ("val", 1)):
        make_photos(tmp_path / part, each=each)
    (tmp_path / "train" / "blob" / "0.jpg").write_bytes(b"no image")
    Image.new("RGB", (40, 40)).save(tmp_path / "val" / "blob" / "9.png")
    sets = open_labelled(str(tmp_path), str(photos), 0, DecodeOptions(), Listing())
    assert sets is not None and (len(sets.train), len(sets.val)) == (9, 4)
    evaluator = Features(load_mae(plain), sets, plain, WORLD, sharded=False)
    (voters, pixels), (tested, _) = evaluator.parts
    assert len(voters) == len(pixels) == 8 and len(tested) == 4
    assert evaluator.labels()[0].bincount().tolist() == [3, 2, 3]  # a blob
    assert 0 <= dict(evaluator(0))[ACCURACY] <= 1


def test_the_flag_may_change_when_a_run_is_resumed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "labelled" in changeable(Pretrain)
    assert cli.main(["pretrain", str(photos), "--labelled", str(photos / "blob")]) == 2
    assert capsys.readouterr().err.startswith("mae: --labelled ")
