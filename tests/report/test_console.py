"""A run on a text screen: curves, progress, what of a run is missing or damaged."""

import json
import re
import shutil
from pathlib import Path

import pytest

from torchmae.errors import UserError
from torchmae.report.console import (
    ASCII,
    FINISHED,
    STARTING,
    STOPPED,
    TRAINING,
    clock,
    curve,
    look,
    progress_line,
    screen,
)


def test_a_curve_has_its_shape() -> None:
    assert curve([1, 2, 3, 4, 5, 6, 7, 8], 8, 1) == ["▁▂▃▄▅▆▇█"]
    assert curve([8, 1], 4, 2) == ["██  ", "██▁▁"]
    assert curve([0.0] * 50 + [1.0] * 50, 10, 1) == ["▁▁▁▁▁█████"]  # means of ten
    assert curve([5.0], 3, 1) == ["▁▁▁"]
    assert set("".join(curve(range(100), 30, 3, ASCII))) <= set(ASCII)
    rows = curve([0, 1, 2, 3, 4, 3, 2, 1, 0], 9, 5)
    assert len(rows) == 5 and rows[0].strip() == "█" and " " not in rows[-1]


def test_clock() -> None:
    assert [clock(s) for s in (0, 45.4, 61, 3600, 46927)] == [
        *("0:00", "0:45", "1:01", "1:00:00", "13:02:07")
    ]


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "own")


def write_log(run: Path, steps: int) -> None:
    """So many records of a training of 9 steps of 8 images, at 4 images a second."""
    records = [
        {
            "step": k,
            "loss": 1 - k / 20,
            "images_seen": 8 * k,
            "images_per_s": 4.0,
            "wait": 0.1,
            "lr": 1e-3,
            "skipped": 0,
        }
        for k in range(1, steps + 1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def test_a_finished_run(own: Path) -> None:
    state = look(own, False)
    assert (state.what, state.step, state.steps) == (FINISHED, 9, 9)
    text = "\n".join(screen(state, 100))
    assert "finished: pretrain, vit_micro, /" in text and "100%  step 9 of 9" in text
    assert re.search(r"^loss +\d\.\d+, one record so far$", text, re.MULTILINE), text
    assert "last picture: " in text and "step-00000009.png" in text
    assert "left" not in text


def test_one_that_is_trained_says_when_it_ends(own: Path) -> None:
    shutil.rmtree(own / "state")
    write_log(own, 4)
    state = look(own, True)
    text = "\n".join(screen(state, 100))
    assert re.search(r"^loss +\S* +\d\.\d+ to \d\.\d+$", text, re.MULTILINE), text
    assert (state.what, state.step) == (TRAINING, 4)
    assert progress_line(state) == (
        "loss 0.8000  4.0 images/s  waiting for data 10%  about 0:10 left"  # 5 steps of 2 s
    )
    assert look(own, False).what == STOPPED
    assert "left" not in progress_line(look(own, False))


def test_a_run_that_is_half_written(own: Path, tmp_path: Path) -> None:
    with (own / "log.jsonl").open("ab") as log:
        log.write(
            b'{"step": 12, "lo\n\xff\xfe\n{"step": 10, "loss": null}\n{"step": 11, "loss": NaN}\n'
        )
    (own / "pictures" / "step-00000999.png").write_bytes(b"")
    assert any("step-00000999.png" in line for line in screen(look(own, False)))
    shutil.rmtree(own / "state")
    (own / "log.jsonl").unlink()
    assert "nothing has been logged yet" in "".join(screen(look(own, None)))
    assert look(tmp_path, None).what == STARTING
    assert "no config.json yet" in "\n".join(screen(look(tmp_path, None)))
    (own / "config.json").write_text("{")
    with pytest.raises(UserError, match="does not describe"):
        look(own, False)


@pytest.mark.parametrize("width", [40, 79, 200])
def test_no_line_is_wider_than_the_screen(own: Path, width: int) -> None:
    config = json.loads((own / "config.json").read_text())
    config["config"]["model"] = "\x1b[2J" + "x" * 300
    (own / "config.json").write_text(json.dumps(config))
    lines = screen(look(own, False), width)
    assert max(len(line) for line in lines if "picture" not in line) <= width
    assert "\x1b" not in "".join(lines), "a name must not move the cursor"


def test_ten_thousand_records_are_drawn_at_once(own: Path) -> None:
    import time

    write_log(own, 10_000)
    began = time.process_time()
    screen(look(own, True))
    assert time.process_time() - began < 2
