"""The same command again: after kills, with other workers, when finished, when settings changed."""

import json
import os
import random
import shutil
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
from torchmae.errors import UserError
from torchmae.train.checkpoint import return_to

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
        assert process.poll() is None, process.communicate()[0].decode()
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0].decode()
        assert process.returncode == -signal.SIGKILL, output
        assert "Traceback" not in output
        kills.append(steps_saved(run))
        if (run / "model.safetensors").exists():  # what is published can be used, whenever
            torchmae.load(run)
    assert kills == sorted(kills) and 0 < kills[-1] < STEPS, kills
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stdout, "a kill must not leave a damaged checkpoint"
    assert weights(run) == weights(whole)
    states = {p.name for p in (run / "state").iterdir()}
    assert states == {f"step-{STEPS:08d}", f"step-{STEPS - 1:08d}"}
    drop = ("images_per_s", "wait", "peak_memory_mb")
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


def damage(run):
    for folder in (run / "state").glob("step-*"):
        os.truncate(folder / "model.safetensors", 1000)


def empty(run):
    for file in (run / "state").rglob("*.*"):
        file.unlink()


@pytest.mark.parametrize("harm", [damage, empty])
def test_when_every_checkpoint_is_damaged_nothing_is_trained(whole, photos, tmp_path, capfd, harm):
    run = shutil.copytree(whole, tmp_path / "run")
    harm(run)
    before = contents(run)
    for more in ({}, {"workers": 1}):
        assert cli.main(["pretrain", str(photos), *flags(OPTIONS | {"out": run} | more)]) == 2
        out, err = capfd.readouterr()
        assert "no checkpoint that is not damaged" in err and "choose a new --out" in err
        assert "resuming" not in out and contents(run) == before
    shutil.rmtree(run / "state")  # the ways out: start again, ...
    (run / "model.safetensors").unlink()
    torchmae.pretrain(str(photos), **(OPTIONS | {"out": str(run)}))
    assert weights(run) == weights(whole)


def test_a_classifier_whose_checkpoints_are_damaged_is_not_trained_on(
    whole, photos, tmp_path, capfd
):
    table = tmp_path / "labels.csv"
    files = sorted(photos.rglob("*.*g"))
    rows = [f"{file},{'ab'[i % 2]}" for i, file in enumerate(files)]
    table.write_text("\n".join(["path,label", *rows]))
    run = tmp_path / "run"
    command = ["finetune", str(whole), str(table), "--out", str(run), "--device", "cpu"]
    command += ["--epochs", "2", "--batch-size", "6", "--workers", "0"]
    assert cli.main(command) == 0
    damage(run)
    before = contents(run)
    assert cli.main(command) == 2
    assert "no checkpoint that is not damaged" in capfd.readouterr().err
    assert contents(run) == before


def test_an_empty_checkpoint_folder_does_not_make_a_random_run(whole, photos, tmp_path, capfd):
    """Before any checkpoint was saved, beside the run's config: once it was 'resumed'."""
    run = tmp_path / "run"
    (run / f"state/step-{STEPS - 1:08d}").mkdir(parents=True)
    for name in ("config.json", "bad-files.jsonl"):
        (run / name).write_bytes((whole / name).read_bytes())
    command = ["pretrain", str(photos), *flags(OPTIONS | {"out": run})]
    assert cli.main(command) == 2
    assert f"delete {run}/state" in capfd.readouterr().err
    shutil.rmtree(run / "state")
    assert cli.main(command) == 0
    assert weights(run) == weights(whole)


def test_strange_bytes_and_names_do_not_block_a_resume(whole, photos, tmp_path):
    options = OPTIONS | {"save_minutes": 1e-6, "out": str(tmp_path / "run")}
    run = torchmae.pretrain(str(photos), **options).path
    shutil.rmtree(run / f"state/step-{STEPS:08d}")
    shutil.copytree(run / f"state/step-{STEPS - 1:08d}", run / f"state/step-{STEPS - 1:08d}.bak")
    (run / "state/step-x").mkdir()
    lines = (run / "log.jsonl").read_bytes().splitlines()
    strange = [b"\xff\xfe", b"\0" * 8, b"[]", b'{"loss": 1}', b"[" * 100_000, b'{"step": ']
    (run / "log.jsonl").write_bytes(b"\n".join([*strange, *lines]) + b"\n")
    (run / "bad-files.jsonl").write_bytes(b'\xff\n{"file": "a", "rea')
    torchmae.pretrain(str(photos), **options)
    assert weights(run) == weights(whole)
    kept = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert kept == [4, 8, 12, 16, 20, 24, 27]


def test_a_resume_under_another_torch_says_so_in_one_line(whole, photos, tmp_path, capfd):
    options = OPTIONS | {"save_minutes": 1e-6, "out": str(tmp_path / "run")}
    run = torchmae.pretrain(str(photos), **options).path
    config = json.loads((run / "config.json").read_text())
    assert config["torch"] == torch.__version__ and config["torchmae"] == torchmae.__version__
    shutil.rmtree(run / f"state/step-{STEPS:08d}")
    (run / "config.json").write_text(json.dumps(config | {"torch": "2.0.1"}))
    capfd.readouterr()
    torchmae.pretrain(str(photos), verify=False, **options)
    said = f"{run} began with torchmae {torchmae.__version__} and torch 2.0.1; now "
    out = capfd.readouterr().out
    assert out.count("weights may differ in their last bits") == 1 and said in out
    assert weights(run) == weights(whole)
    torchmae.pretrain(str(photos), verify=False, **options)  # finished: nothing is computed
    assert "weights may differ" not in capfd.readouterr().out


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


# --- wsd: one trunk for all lengths

WSD = OPTIONS | dict(schedule="wsd", warmup_epochs=1, epochs=4)  # 12 steps, falling from 10 on


@pytest.fixture(scope="module")
def longer(photos, tmp_path_factory):
    """8 epochs from the start: 24 steps, falling from 19 on."""
    out = str(tmp_path_factory.mktemp("longer") / "run")
    return torchmae.pretrain(str(photos), **(WSD | dict(out=out, epochs=8))).path


@pytest.fixture(scope="module")
def short(photos, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("short") / "run")
    return torchmae.pretrain(str(photos), **(WSD | dict(out=out))).path


def records(run):
    drop = ("images_per_s", "wait", "peak_memory_mb")
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]


def saved(run):
    return sorted(int(p.name[5:]) for p in (run / "state").iterdir())


def test_a_lengthened_wsd_run_is_the_longer_run_bit_for_bit(short, longer, photos, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    assert saved(run) == [10, 12] and saved(longer) == [19, 24]
    assert records(short)[-1]["step"] == 12 and records(short)[-1]["lr"] < records(longer)[0]["lr"]
    torchmae.pretrain(str(photos), **(WSD | dict(out=str(run))))
    said = capfd.readouterr().out
    assert "continues it from step 10, before the decay, and replaces its weights" in said
    torchmae.pretrain(str(photos), **(WSD | dict(out=str(run), epochs=8)))
    said = capfd.readouterr().out
    assert f"{run}: back to step 10, before the learning rate fell" in said
    assert "start  from scratch; this run goes on from step 10\n" in said
    assert weights(run) == weights(longer) != weights(short)
    assert records(run) == records(longer) and saved(run) == [19, 24]
    torchmae.pretrain(str(photos), **(WSD | dict(out=str(run), epochs=8)))  # the same: finished
    assert weights(run) == weights(longer)
    with pytest.raises(UserError, match="epochs was 8, is 4"):
        torchmae.pretrain(str(photos), **(WSD | dict(out=str(run))))


@pytest.mark.parametrize("stop", [11, 14, 20])
def test_a_wsd_run_that_is_killed_and_lengthened_is_the_longer_run(longer, photos, tmp_path, stop):
    """In the first decay, in the part that both share, in the second decay."""
    run = tmp_path / "run"
    options = WSD | {"out": run, "save_minutes": 1e-6}
    for epochs in (4, 8):
        command = [sys.executable, "-m", "torchmae", "pretrain", str(photos)]
        command += flags(options | {"epochs": epochs})
        process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if steps_saved(run) >= stop and epochs == (4 if stop < 12 else 8):
                process.kill()
            time.sleep(0.001)
        process.wait()
    assert steps_saved(run) < 24 or stop < 12
    torchmae.pretrain(str(photos), **(WSD | dict(out=str(run), epochs=8)))
    assert weights(run) == weights(longer) and records(run) == records(longer)


def test_a_kill_between_going_back_and_the_new_length_changes_nothing(
    short, longer, photos, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    return_to(run, 10)
    assert saved(run) == [10]
    again = tmp_path / "again"
    shutil.copytree(run, again)
    torchmae.pretrain(str(photos), **(WSD | dict(out=str(again))))  # as if nothing had been asked
    assert weights(again) == weights(short)
    torchmae.pretrain(str(photos), **(WSD | dict(out=str(run), epochs=8)))
    assert weights(run) == weights(longer)


def test_without_its_trunk_a_decayed_wsd_run_is_not_lengthened(short, photos, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    (run / "state" / "step-00000010" / "state.json").write_text("{}")
    before = contents(run)
    assert cli.main(["pretrain", str(photos), *flags(WSD | {"out": run, "epochs": 8})]) == 2
    err = capfd.readouterr().err
    assert f"{run} can be lengthened from step 10 only, and that checkpoint is gone or" in err
    assert len(err.splitlines()) == 1 and contents(run) == before
