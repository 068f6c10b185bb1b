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
from torchmae.report.console import look
from torchmae.tasks.watch.run import on_terminal

WATCH = [sys.executable, "-m", "torchmae", "watch"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "90", "LINES": "40"}


def test_once(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert torchmae.watch(run, once=True) == "finished"
    out = capfd.readouterr().out
    assert "step 9 of 9" in out and "last picture:" in out


def test_a_run_that_has_ended_ends_it(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert torchmae.watch(run) == "finished"
    assert capfd.readouterr().out.count("step 9 of 9") == 2  # progress, verdict


def test_beside_a_training(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On a terminal it is drawn over itself, and ends by itself; in a file it is a line each."""
    out = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    train = [sys.executable, "-m", "torchmae", "pretrain", str(photos), "--out", str(out)]
    train += ["--epochs", "70", "--log-every", "3", *flags]
    ours, theirs = pty.openpty()
    with subprocess.Popen(train, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as training:
        while training.poll() is None and not (out / "log.jsonl").exists():
            time.sleep(0.05)
        watch = [*WATCH, str(out), "--seconds", "0.3"]
        screen = subprocess.Popen(watch, stdout=theirs, env=ENVIRONMENT)
        os.close(theirs)
        assert torchmae.watch(out, seconds=0.1) == "finished"
        drawn = b""
        try:
            while part := os.read(ours, 65536):
                drawn += part
        except OSError:  # a terminal whose last writer is gone
            pass
        assert (screen.wait(120), training.wait(120)) == (0, 0)
    text, lines = drawn.decode(), capfd.readouterr().out
    assert text.startswith("\x1b[J") and "step 210 of 210" in text
    assert text.rstrip().endswith("step-00000210.png"), "the path of the picture is whole"
    assert "\x1b" not in lines and "finished: pretrain, vit_micro, /" in lines
    assert re.search(r"^step \d+ of 210  loss .* images/s", lines, re.MULTILINE)


def test_it_is_drawn_over_itself(run: Path, tmp_path: Path, capfd) -> None:
    """As many lines up as were drawn, those that the terminal wraps included."""
    first, second = look(run, True), look(run, False)
    assert on_terminal(iter([first, second])) == "finished"
    before, _, after = capfd.readouterr().out.partition("\x1b[J")[2].partition("\x1b[")
    width = shutil.get_terminal_size().columns
    rows = sum(-(-max(1, len(line)) // width) for line in before.splitlines())
    assert after.startswith(f"{rows}F\x1b[J")


def test_what_is_no_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        torchmae.watch(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a run folder"):
        torchmae.watch(tmp_path)
    own = shutil.copytree(run, tmp_path / "own")
    (own / "config.json").write_text("[]")
    with pytest.raises(UserError, match="does not describe"):
        torchmae.watch(own, once=True)
