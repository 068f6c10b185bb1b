"""The same command again: after kills, with other workers, when finished, when settings changed."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.runs_on_disk import ENV, contents, flags, make_photos, steps_saved, weights
from helpers.small import SMALL
from PIL import Image

import torchmae
from torchmae import cli

OPTIONS = SMALL | dict(epochs=9, base_lr=0.02, precision="fp32", log_every=4)
STEPS = 27  # 9 epochs of 24 images, 8 a step
KILLS = 5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("resume") / "photos")


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The uninterrupted run."""
    return torchmae.pretrain(
        str(photos), out=str(tmp_path_factory.mktemp("whole") / "run"), **OPTIONS
    ).path


def test_killed_again_and_again_the_run_ends_with_the_same_weights(whole, photos, tmp_path):
    """SIGKILL to all its processes: first at the start, then a few steps later at random times."""
    run, dice, kills = tmp_path / "run", random.Random(0), []
    options = OPTIONS | {"workers": 1, "save_minutes": 1e-6, "out": run}
    command = [sys.executable, "-m", "torchmae", "pretrain", str(photos), *flags(options)]
    for kill in range(KILLS):
        before = steps_saved(run)
        ahead = dice.randint(1, 3)
        process = subprocess.Popen(
            command,
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if (run / ".lock").exists() if kill == 0 else steps_saved(run) >= before + ahead:
                break
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.1))  # anywhere in a step, a save, a start
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0].decode()
        assert process.returncode == -signal.SIGKILL, output
        assert "Traceback" not in output
        kills.append(steps_saved(run))
    assert kills == sorted(kills) and 0 < kills[-1] < STEPS, kills
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stdout, "a kill must not leave a damaged checkpoint"
    assert weights(run) == weights(whole)
    states = {p.name for p in (run / "state").iterdir()}
    assert states == {f"step-{STEPS:08d}", f"step-{STEPS - 1:08d}"}
    # The loss is the mean of the steps since the line before, or since the start.
    drop = ("images_per_s", "wait", "peak_memory_mb", "loss")
    ours, theirs = (
        [{k: v for k, v in json.loads(line).items() if k not in drop} for line in text.splitlines()]
        for text in ((run / "log.jsonl").read_text(), (whole / "log.jsonl").read_text())
    )
    assert ours == theirs


def test_a_kill_between_config_and_first_checkpoint_does_not_change_the_weights(
    whole, photos, tmp_path
):
    """The run has a config and no weights yet: it must start with those of its seed."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "bad-files.jsonl"):
        (run / name).write_bytes((whole / name).read_bytes())
    torch.manual_seed(12345)
    torchmae.pretrain(str(photos), **(OPTIONS | {"out": str(run)}))
    assert weights(run) == weights(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_the_weights(whole, photos, tmp_path, workers):
    run = torchmae.pretrain(
        str(photos), **(OPTIONS | {"workers": workers, "out": str(tmp_path / "run")})
    )
    assert weights(run) == weights(whole)


def test_resuming_takes_the_older_checkpoint_when_the_newest_is_damaged(
    whole, photos, tmp_path, capfd
):
    options = OPTIONS | {"save_minutes": 1e-6, "out": str(tmp_path / "run")}
    run = torchmae.pretrain(str(photos), **options)
    newest = run / f"state/step-{STEPS:08d}/optimizer.safetensors"
    os.truncate(newest, 1000)
    capfd.readouterr()
    torchmae.pretrain(str(photos), **options)
    assert capfd.readouterr().out.count("is damaged") == 1
    assert weights(run) == weights(whole)


def test_a_finished_run_says_so_and_changes_nothing(whole, photos, capfd):
    before = contents(whole)
    assert cli.main(["pretrain", str(photos), *flags(OPTIONS | {"out": whole})]) == 0
    out, err = capfd.readouterr()
    assert f"{whole} is finished ({STEPS} steps). Its learning rate has fallen to 0; " in out
    assert f"for a longer run use a new --out with --from {whole}." in out
    assert "Traceback" not in err
    assert contents(whole) == before


def test_a_finished_run_whose_rate_fell_to_0_is_not_lengthened(whole, photos, capfd):
    before = contents(whole)
    asked = ["pretrain", str(photos), *flags(OPTIONS | {"out": whole, "epochs": 13})]
    assert cli.main(asked) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"mae: {whole} is finished ({STEPS} steps). Its learning rate has fallen")
    assert f"--from {whole}" in err and len(err.splitlines()) == 1 and out == ""
    assert contents(whole) == before


CHANGES = {
    "model": ({"model": "vit_tiny"}, ["model was vit_micro, is vit_tiny"]),
    "ratio": ({"mask_ratio": 0.5}, ["mask_ratio was 0.75, is 0.5"]),
    "two": ({"mask_ratio": 0.5, "seed": 3}, ["mask_ratio was 0.75, is 0.5", "seed was 0, is 3"]),
    "image": ({"image_size": "32x64"}, ["image_size was 32, is 32x64"]),
    "batch": ({"batch_size": 4}, ["batch_size was 8, is 4"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_is_refused_by_name_and_nothing_is_touched(whole, photos, capfd, change):
    options, words = CHANGES[change]
    before = contents(whole)
    assert cli.main(["pretrain", str(photos), *flags(OPTIONS | {"out": whole} | options)]) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"mae: {whole} is another run: ") and all(word in err for word in words)
    assert "another --out" in err and len(err.splitlines()) == 1 and out == ""
    assert contents(whole) == before


def test_changed_data_are_refused_and_nothing_is_touched(whole, photos, capfd):
    before = contents(whole)
    extra = photos / "one-more.png"
    command = ["pretrain", str(photos), *flags(OPTIONS | {"out": whole})]
    try:
        Image.new("RGB", (40, 40)).save(extra)
        assert cli.main(command) == 2
        assert "the data had 24 images, has 25" in capfd.readouterr().err
        extra.rename(photos / "0.moved")
        (photos / "1.jpg").rename(photos / "other-name.jpg")
        assert cli.main(command) == 2
        assert "24 images as before, but not the same ones" in capfd.readouterr().err
    finally:
        (photos / "other-name.jpg").rename(photos / "1.jpg")
        (photos / "0.moved").unlink()
    assert contents(whole) == before
    assert cli.main(command) == 0  # the data are restored


def test_what_does_not_change_the_weights_may_change(whole, photos, capfd):
    free = {"workers": 1, "log_every": 7, "save_minutes": 3, "micro_batch_size": 4}
    moved = photos.with_name("moved")
    photos.rename(moved)
    try:
        assert cli.main(["pretrain", str(moved), *flags(OPTIONS | {"out": whole} | free)]) == 0
    finally:
        moved.rename(photos)


def test_settings_not_given_are_those_of_the_run(whole, photos):
    assert torchmae.pretrain(str(photos), out=str(whole)).path == whole


def test_changed_contents_of_equal_size_are_said_at_a_resume(tmp_path, capfd):
    photos = make_photos(tmp_path / "photos")
    command = ["pretrain", str(photos), *flags(OPTIONS | {"out": tmp_path / "run", "epochs": 1})]
    for _ in range(2):
        assert cli.main(command) == 0
        assert "other times" not in capfd.readouterr().out
    content = bytearray((photos / "1.jpg").read_bytes())
    content[-20] ^= 1
    (photos / "1.jpg").write_bytes(content)
    assert cli.main(command) == 0
    out = capfd.readouterr().out
    assert out.count("warning: the files of the data have other times") == 1 and "--out" in out
