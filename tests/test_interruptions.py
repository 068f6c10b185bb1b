"""The command in trouble: signals in a pipe, reads that never end, killed workers, a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers.runs_on_disk import ENV, flags, make_photos, steps_saved, weights

import torchmae

OPTIONS = dict(
    **dict(model="vit_micro", image_size=32, patch_size=8, decoder_dim=32, decoder_depth=1),
    **dict(batch_size=8, epochs=400, base_lr=0.02, precision="fp32", device="cpu", workers=1),
    **dict(log_every=1, save_minutes=1000, picture_minutes=1000, cache="none"),
)
STEPS = 1200  # 400 epochs of 24 images, 8 a step
LIMIT = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("interruptions") / "photos")


class Training:
    """`mae pretrain` in a process group of its own, until it has done some steps."""

    def __init__(self, photos, run, **options):
        self.run = run
        self.said = run.with_name(f"{run.name}.txt")
        words = [*flags(OPTIONS | {"out": run} | options)]
        command = [sys.executable, "-m", "torchmae", "pretrain", str(photos), *words]
        self.process = subprocess.Popen(
            command,
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        pipe = self.process.stdout
        self.tee = subprocess.Popen(["tee", self.said], stdin=pipe, stdout=subprocess.DEVNULL)
        pipe.close()

    def __enter__(self):
        self.wait_for(3)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.tee.kill()
        self.tee.wait()

    def steps(self):
        log = self.run / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def wait_for(self, steps):
        end = time.monotonic() + LIMIT
        while self.steps() < steps:
            assert self.process.poll() is None and time.monotonic() < end, self.said.read_text()
            time.sleep(0.02)

    def ends(self):
        return self.process.wait(LIMIT)


@pytest.fixture(scope="module")
def stopped(photos, tmp_path_factory):
    """A run that was stopped: by Ctrl-C in `mae ... 2>&1 | tee`, which ends tee too."""
    run = tmp_path_factory.mktemp("pipe") / "run"
    with Training(photos, run) as training:
        training.tee.kill()
        training.tee.wait()
        os.killpg(training.process.pid, signal.SIGINT)
        assert training.ends() == 130
    return run


def test_ctrl_c_in_a_pipe_saves_and_the_run_resumes_bit_for_bit(stopped, photos, tmp_path):
    """Both go on to the end of this step's epochs, one of them without an interruption."""
    done = steps_saved(stopped)
    assert 3 <= done < STEPS
    assert [json.loads(line)["step"] for line in (stopped / "log.jsonl").open()][-1] == done
    resumed = tmp_path / "resumed"
    shutil.copytree(stopped, resumed)
    with Training(photos, resumed) as training:
        training.wait_for(done + 3)
        os.killpg(training.process.pid, signal.SIGTERM)
        assert training.ends() == 143
    done = steps_saved(resumed)
    alone = tmp_path / "alone"
    assert stop_at(photos, alone, done) == done
    assert weights(alone) == weights(resumed)


def stop_at(photos, run, step):
    """The same training in this process, without an interruption before that step."""
    from torchmae.train.loop import Session

    arrived = Session.next_batch

    def next_batch(self, loader, at):
        if at == step:
            self.heard.number = signal.SIGTERM
        return arrived(self, loader, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "next_batch", next_batch)
        with pytest.raises(torchmae.RunError, match=f"stopped at step {step} "):
            torchmae.pretrain(str(photos), **(OPTIONS | {"out": str(run), "workers": 0}))
    return steps_saved(run)


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_is_heard_while_nothing_can_be_read(photos, tmp_path, workers):
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    with Training(data, tmp_path / "run", workers=workers) as training:
        for file in (*data.glob("*.jpg"), *data.glob("nested/*.png")):
            file.unlink()
            os.mkfifo(file)  # nobody writes into it: as a file server that is gone
        time.sleep(1)  # what was read ahead is used up
        os.kill(training.process.pid, signal.SIGTERM)
        assert training.ends() == 143
    assert steps_saved(tmp_path / "run") == training.steps() >= 3
    assert "stopped at step" in training.said.read_text()


def test_killed_workers_sigusr1_and_a_closed_terminal(photos, tmp_path):
    """One after the other, in one training."""
    run = tmp_path / "run"
    with Training(photos, run) as training:
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(training.process.pid)],
            capture_output=True,
            text=True,
        ).stdout.split()
        assert children
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        training.wait_for(training.steps() + 10)
        os.killpg(training.process.pid, signal.SIGUSR1)  # the worker must live too
        end = time.monotonic() + LIMIT
        while not (run / "state").exists() or not steps_saved(run):
            assert time.monotonic() < end
            time.sleep(0.02)
        saved = steps_saved(run)
        training.wait_for(saved + 10)
        for _ in range(2):  # from the system, and from the shell
            os.killpg(training.process.pid, signal.SIGHUP)
        assert training.ends() == 129
    said = training.said.read_text()
    assert "a loading process was killed by SIGKILL" in said
    assert f"SIGUSR1: saved at step {saved}" in said
    assert steps_saved(run) > saved
    assert stop_at(photos, tmp_path / "alone", steps_saved(run)) == steps_saved(run)
    assert weights(tmp_path / "alone") == weights(run)


def test_a_full_disk_behind_stdout_changes_no_exit_code(photos, tmp_path):
    words = flags(OPTIONS | {"out": tmp_path / "run", "epochs": 1})
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "torchmae", "pretrain", str(photos), *words],
            env=ENV,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0 and steps_saved(tmp_path / "run") == 3
    assert done.stderr.splitlines() == [
        "mae: messages could not be written to stdout: No space left on device"
    ]
