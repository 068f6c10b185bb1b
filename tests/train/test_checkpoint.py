"""Checkpoints: complete or not there, verified, at most two, no pickle; the lock of a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs_on_disk import contents
from safetensors.torch import load_file

from torchmae import disk, manifest
from torchmae.errors import RunError, UserError
from torchmae.runfolder import checkpoints, last_step, step_of
from torchmae.train import checkpoint
from torchmae.train.checkpoint import Checkpoint

FILES = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def make(step):
    generator = torch.Generator().manual_seed(step)
    weights = {
        "a.weight": torch.randn(5, 3, generator=generator),
        "a.bias": torch.tensor([-0.0, 3e38, 1e-42]),
    }
    moments = {
        "exp_avg.a.weight": torch.randn(5, 3, generator=generator),
        "exp_avg_sq.a.bias": torch.tensor([float("inf"), 0.0, 1.0]),
        "step.a.weight": torch.tensor(float(step)),
    }
    return Checkpoint(step, weights, moments, {"parts": 2, "scaler": {"scale": 0.1 + 0.2}})


def assert_same(a, b):
    assert a.step == b.step and a.metadata == b.metadata
    for left, right in ((a.model, b.model), (a.optimizer, b.optimizer)):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype and left[name].shape == right[name].shape
            assert left[name].numpy().tobytes() == right[name].numpy().tobytes()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_round_trip_is_bit_for_bit(tmp_path):
    checkpoint.save(tmp_path, make(7))
    assert_same(checkpoint.newest(tmp_path), make(7))


def test_an_empty_run_has_none(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    (tmp_path / "state").mkdir()
    assert checkpoint.newest(tmp_path) is None


def test_only_safetensors_and_json_no_pickle(tmp_path):
    checkpoint.save(tmp_path, make(1))
    checkpoint.save(tmp_path, make(2))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    assert {p.name for p in (tmp_path / "state/step-00000001").iterdir()} == FILES
    assert all(load_file(p) for p in files if p.suffix == ".safetensors")
    assert all(json.loads(p.read_text()) for p in files if p.suffix == ".json")
    assert len({p.stat().st_mode for p in files}) == 1, "weights are as readable as the other files"
    assert len({p.stat().st_ino for p in files}) == len(files), "no write damages two of them"


def test_the_last_two_are_kept_and_the_run_shows_the_newest_weights(tmp_path):
    for step in (5, 10, 15, 20):
        checkpoint.save(tmp_path, make(step))
        newest = load_file(tmp_path / "model.safetensors")
        assert torch.equal(newest["a.weight"], make(step).model["a.weight"])
    assert names(tmp_path / "state") == ["step-00000015", "step-00000020"]
    assert names(tmp_path) == ["manifest.json", "model.safetensors", "state"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, make(3))
    again = make(4)._replace(step=3)
    checkpoint.save(tmp_path, again)
    assert_same(checkpoint.newest(tmp_path), again)
    assert names(tmp_path / "state") == ["step-00000003"]


def flip_a_byte(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def truncate(folder):
    os.truncate(folder / "optimizer.safetensors", 40)


def truncate_and_empty_manifest(folder):
    os.truncate(folder / "model.safetensors", 40)
    (folder / "manifest.json").write_text("{}")


DAMAGES = {
    "a byte flipped": flip_a_byte,
    "truncated": truncate,
    "emptied": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "weights deleted": lambda folder: (folder / "model.safetensors").unlink(),
    "state deleted": lambda folder: (folder / "state.json").unlink(),
    "state changed": lambda folder: (folder / "state.json").write_text('{"step": 1}'),
    "manifest deleted": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: os.truncate(folder / "manifest.json", 30),
    "manifest a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest null": lambda folder: (folder / "manifest.json").write_text("null"),
    "manifest bytes": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest empty, weights cut": truncate_and_empty_manifest,
    "everything deleted": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_renamed_with_one_warning_and_the_older_one_is_used(
    tmp_path, capfd, damage
):
    checkpoint.save(tmp_path, make(5))
    checkpoint.save(tmp_path, make(10))
    DAMAGES[damage](tmp_path / "state/step-00000010")
    found = checkpoint.newest(tmp_path)
    out, err = capfd.readouterr()
    assert_same(found, make(5))
    assert (
        (out + err).count("warning") == 1
        and "step-00000010" in out + err
        and "renamed to damaged-step-00000010" in out + err
    )
    assert names(tmp_path / "state") == ["damaged-step-00000010", "step-00000005"]
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["a.weight"], make(5).model["a.weight"]
    )
    assert_same(checkpoint.newest(tmp_path), make(5))  # and the second look is silent
    assert capfd.readouterr() == ("", "")


def test_when_all_are_damaged_it_says_so_each_time_and_touches_nothing(tmp_path):
    for step in (5, 10):
        checkpoint.save(tmp_path, make(step))
        truncate(tmp_path / f"state/step-{step:08d}")
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError) as error:
            checkpoint.newest(tmp_path)
        for part in (
            "no checkpoint that is not damaged",
            "step-00000010: optimizer.safetensors changed after saving; step-00000005: ",
            f"or delete {tmp_path}/state and {tmp_path}/model.safetensors to start again",
            f"{tmp_path}/model.safetensors is good",
        ):
            assert part in str(error.value)
        assert contents(tmp_path) == before
    flip_a_byte(tmp_path)
    with pytest.raises(UserError, match="to start again$"):
        checkpoint.newest(tmp_path)


def test_an_empty_folder_is_a_damaged_checkpoint_and_other_names_are_none(tmp_path):
    (tmp_path / "state/step-00000005.bak").mkdir(parents=True)
    (tmp_path / "state/step-7").mkdir()
    (tmp_path / "state/step-00000009").write_text("a file")
    assert checkpoint.newest(tmp_path) is None
    assert last_step(tmp_path) == 0
    (tmp_path / "state/step-00000005").mkdir()
    with pytest.raises(UserError, match=r"step-00000005: .*No such file"):
        checkpoint.newest(tmp_path)


def test_a_write_into_the_published_weights_leaves_the_checkpoint_which_repairs_them(tmp_path):
    checkpoint.save(tmp_path, make(5))
    flip_a_byte(tmp_path)
    assert_same(checkpoint.newest(tmp_path), make(5))
    published = load_file(tmp_path / "model.safetensors")
    assert torch.equal(published["a.weight"], make(5).model["a.weight"])
    manifest.check(tmp_path, "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    checkpoint.save(tmp_path, make(5))
    before, broken = contents(tmp_path), make(6)
    broken.model["a.bias"][1] = value
    with pytest.raises(RunError, match=r"weights are not finite \(a.bias, 1 of 2") as error:
        checkpoint.save(tmp_path, broken)
    assert error.value.exit_code == 65
    assert contents(tmp_path) == before


def test_a_partial_folder_is_ignored_and_cleaned_by_the_next_save(tmp_path, capfd):
    checkpoint.save(tmp_path, make(5))
    shutil.copytree(tmp_path / "state/step-00000005", tmp_path / "state/.partial")
    (tmp_path / "state/.partial/manifest.json").unlink()
    assert_same(checkpoint.newest(tmp_path), make(5))
    assert capfd.readouterr() == ("", "")
    checkpoint.save(tmp_path, make(6))
    assert names(tmp_path / "state") == ["step-00000005", "step-00000006"]


def test_weights_that_a_kill_left_unpublished_are_published_by_newest(tmp_path):
    """A kill can fall between the renaming of the last checkpoint and the naming of its weights."""
    checkpoint.save(tmp_path, make(5))
    old = (tmp_path / "model.safetensors").read_bytes()
    checkpoint.save(tmp_path, make(6))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(old)
    checkpoint.newest(tmp_path)
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["a.weight"], make(6).model["a.weight"]
    )
    (tmp_path / "model.safetensors").unlink()
    checkpoint.newest(tmp_path)
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["a.weight"], make(6).model["a.weight"]
    )


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from torchmae.errors import RunError
from torchmae.train import checkpoint
run, kind = Path(sys.argv[1]), sys.argv[2]
small, large = {"w": torch.zeros(10)}, {"w": torch.zeros(200_000)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoint.save(run, checkpoint.Checkpoint(1, small, small, {}))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
numbers = {"long": "x" * 200_000} if kind == "numbers" else {}
weights, moments = large if kind == "weights" else small, large if kind == "moments" else small
try:
    checkpoint.save(run, checkpoint.Checkpoint(2, weights, moments, numbers))
except RunError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("kind", ["weights", "numbers"])
def test_a_disk_that_takes_no_more_leaves_the_earlier_checkpoint_and_nothing_partial(
    tmp_path, kind
):
    """A real failure of write(): a limit on the size of files, EFBIG instead of ENOSPC."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV)
    assert done.returncode == 1, done.stderr
    assert (
        "could not save a checkpoint" in done.stdout
        and "Earlier checkpoints are untouched" in done.stdout
    )
    assert names(tmp_path / "state") == ["step-00000001"]
    assert names(tmp_path) == ["manifest.json", "model.safetensors", "state"]
    assert checkpoint.newest(tmp_path).step == 1


def test_a_state_folder_that_cannot_be_made_is_a_run_error(tmp_path):
    from torchmae.errors import RunError

    (tmp_path / "state").write_text("in the way")
    with pytest.raises(RunError, match="could not save a checkpoint"):
        checkpoint.save(tmp_path, make(1))
    assert (tmp_path / "state").read_text() == "in the way"


HOLD = """
import sys, time
from pathlib import Path
from torchmae.train.checkpoint import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_lock_keeps_a_second_process_out_and_ends_with_the_first_even_by_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENV
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match="another process is training"),
            checkpoint.lock(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with checkpoint.lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_write_text_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file.json"
    disk.write_text(path, "old")
    old = path.open()  # whoever reads the old file keeps reading the old file
    disk.write_text(path, json.dumps({"umlaut": "ä", "new": "y" * 1000}, ensure_ascii=False))
    assert old.read() == "old"
    old.close()
    assert json.loads(path.read_text(encoding="utf-8"))["umlaut"] == "ä"
    assert names(tmp_path) == ["file.json"]
    (tmp_path / ".file.json.partial").write_text("what a kill left behind")
    disk.write_text(path, "third")
    assert path.read_text() == "third" and names(tmp_path) == ["file.json"]


class Recorder:
    """Records the order of fsync and rename calls, by name of file, while they do their work."""

    def __init__(self, patch):
        self.calls = []
        for name in ("fsync", "rename", "replace"):
            patch.setattr(os, name, self.recording(name, getattr(os, name)))

    def recording(self, name, work):
        def call(*arguments):
            if name == "fsync":
                target = Path(f"/proc/self/fd/{arguments[0]}").readlink()
                self.calls.append(f"fsync {target.parent.name}/{target.name}")
            else:
                self.calls.append(f"rename {arguments[0].name} {arguments[1].name}")
            return work(*arguments)

        return call

    def in_order(self, *wanted):
        places = [self.calls.index(call) for call in wanted]
        return places == sorted(places)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    recorder = Recorder(monkeypatch)
    checkpoint.save(run, make(5))
    named = "rename .partial step-00000005"
    for file in FILES:
        assert recorder.in_order(f"fsync .partial/{file}", named), file
    assert recorder.in_order("fsync state/.partial", named, "fsync run/state")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_published_weights_are_listed_then_on_the_disk_then_named(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    checkpoint.save(run, make(5))
    recorder = Recorder(monkeypatch)
    checkpoint.publish(run / "state/step-00000005", run)
    folder, calls = f"fsync {tmp_path.name}/run", []
    for name in ("manifest.json", "model.safetensors", "manifest.json"):
        calls += [f"fsync run/.{name}.partial", f"rename .{name}.partial {name}", folder]
    assert recorder.calls == calls


def test_save_tensors_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_kept_step_stays_and_training_may_return_to_it(tmp_path):
    for step in (3, 5, 7, 9):
        checkpoint.save(tmp_path, make(step), kept=5)
    assert [step_of(folder) for folder in checkpoints(tmp_path)] == [9, 7, 5]
    checkpoint.return_to(tmp_path, 5)
    assert [folder.name for folder in (tmp_path / "state").iterdir()] == ["step-00000005"]
    assert_same(checkpoint.newest(tmp_path), make(5))
    published = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(published[name], value) for name, value in make(5).model.items())
    with pytest.raises(UserError, match="can be lengthened from step 4 only"):
        checkpoint.return_to(tmp_path, 4)
    checkpoint.save(tmp_path, make(6), kept=6)
    checkpoint.save(tmp_path, make(8), kept=6)
    assert [step_of(folder) for folder in checkpoints(tmp_path)] == [8, 6]
