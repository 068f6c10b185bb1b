"""mae watch: beside a real training, on a terminal and in a file; of what is no run."""

import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.small import SMALL

import torchmae
from torchmae.errors import UserError

WATCH = [sys.executable, "-m", "torchmae", "watch"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "90", "LINES": "40"}


def test_once(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert torchmae.watch(run, once=True) == "finished"
    out = capfd.readouterr().out
    assert "step 9 of 9" in out and "last picture:" in out


def test_a_run_that_has_ended_ends_it(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert torchmae.watch(run) == "finished"
    assert capfd.readouterr().out.count("step 9 of 9") == 2  # progress, verdict


def test_beside_a_training(photos: Path, tmp_path: Path) -> None:
    """On a terminal it is drawn over itself, and ends by itself; in a file it is a line each."""
    out = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    train = [sys.executable, "-m", "torchmae", "pretrain", str(photos), "--out", str(out)]
    train += ["--epochs", "150", "--log-every", "5", "--save-minutes", "0.1", *flags]
    ours, theirs = pty.openpty()
    with subprocess.Popen(train, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as training:
        while training.poll() is None and not (out / "log.jsonl").exists():
            time.sleep(0.05)
        watch = [*WATCH, str(out), "--seconds", "0.3"]
        screen = subprocess.Popen(watch, stdout=theirs, env=ENVIRONMENT)
        file = subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        os.close(theirs)
        drawn = b""
        try:
            while part := os.read(ours, 65536):
                drawn += part
        except OSError:  # a terminal whose last writer is gone
            pass
        lines, _ = file.communicate(timeout=120)
        assert (screen.wait(60), file.returncode, training.wait(60)) == (0, 0, 0)
    text = drawn.decode()
    assert "training" in text and "\x1b[J" in text and re.search(r"\x1b\[\d+F", text)
    assert text.rstrip().endswith(".png") and "step 450 of 450" in text
    assert re.search(r"^step \d+ of 450  loss .* images/s", lines, re.MULTILINE)
    assert "finished" in lines.splitlines()[-30:].__str__()
    assert "\x1b" not in lines


def test_what_is_no_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        torchmae.watch(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a run folder"):
        torchmae.watch(tmp_path)
    own = shutil.copytree(run, tmp_path / "own")
    (own / "config.json").write_text("[]")
    with pytest.raises(UserError, match="does not describe"):
        torchmae.watch(own, once=True)
