"""What the files of a run say about it; each thing that is wrong is put there on purpose."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from torchmae.report.words.health import words_of
from torchmae.runfolder import read_any_config


def record(step: int, loss: float | None, **more: object) -> dict[str, object]:
    """A line of log.jsonl of a pre-training."""
    usual = {"loss of patch mean": 0.9, "loss of visible mean": 1.0, "skipped": 0, "wait": 0.01}
    return {"step": step, "loss": loss, "lr": 1e-3, **usual, **more}


def log(run: Path, *records: dict[str, object]) -> None:
    (run / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


@pytest.fixture
def healthy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run with a log and settings in which nothing is wrong."""
    own = shutil.copytree(run, tmp_path / "own")
    log(own, *(record(20 * k, 1 - 0.02 * k) for k in range(1, 20)))
    change(own, batch_size=32, base_lr=1.5e-4 * 128**0.75)
    return own


def change(run: Path, **settings: object) -> None:
    config = json.loads((run / "config.json").read_text())
    config["config"] |= settings
    (run / "config.json").write_text(json.dumps(config))
    (run / "manifest.json").unlink(missing_ok=True)


def said(run: Path, kind: str) -> str:
    return "\n".join(w.text for w in words_of(run, read_any_config(run)) if w.kind == kind)


def test_a_good_run_has_a_good_verdict(healthy: Path) -> None:
    assert "learning: loss 0.6600, the patch mean's 0.9000" in said(healthy, "good")
    assert "(mean of the last 100 steps)" in said(healthy, "good")  # of five records
    assert said(healthy, "bad") == ""
    assert "last logged: step 380" in said(healthy, "") or "finished" in said(healthy, "")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "worse than means": (
        lambda run: log(run, *(record(100 * k, 1.2) for k in range(1, 9))),
        "not better than a trivial baseline after 800 steps",
    ),
    "not finite": (
        lambda run: log(run, record(20, None, skipped=20)),
        "(loss not finite; mean of the last 20",
    ),
    "skipped": (lambda run: log(run, record(20, 0.5, skipped=3)), "3 steps were skipped"),
    "collapse": (
        lambda run: log(run, {"step": 0, "RankMe": 40.0}, record(9, 0.5), {"step": 9, "RankMe": 3}),
        "features collapse: RankMe is 3.0 and was 40.0",
    ),
    "learning rate": (lambda run: change(run, base_lr=1.0), "--base-lr 1 is far from the recipe"),
    "batch": (lambda run: change(run, batch_size=4, base_lr=0.02), "--batch-size 4 is small"),
    "ratio": (lambda run: change(run, mask_ratio=0.1), "--mask-ratio 0.1 is far from"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(healthy: Path, name: str) -> None:
    damage, message = WRONG[name]
    damage(healthy)
    assert message in said(healthy, "bad")


def test_waiting_is_slow_and_not_wrong(healthy: Path) -> None:
    log(healthy, record(20, 0.5, wait=0.6))
    assert "waiting for data 60%" in said(healthy, "")
    assert said(healthy, "bad") == ""


def test_a_full_disk_and_bad_files(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(healthy)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "the disk has room for 0.0 GB" in said(healthy, "bad")
    (healthy / "bad-files.jsonl").write_text('{"file": "a.jpg", "reason": "cut"}\n')
    assert "1 images cannot be read" in said(healthy, "")


def test_a_run_that_has_just_begun(healthy: Path) -> None:
    (healthy / "log.jsonl").unlink()
    assert "no step has been logged yet" in said(healthy, "")


SCORES = dict(low=0.4, high=0.6, count=20, step=90)


@pytest.mark.parametrize(
    "last, words",
    [
        (
            dict(top1=0.5, calibration_error=0.1, **SCORES),
            "top 1 50.0% of 20 images (95 % interval 40.0% to 60.0%) at step 90, calibration error",
        ),
        (dict(score=0.5, miou=0.5, **SCORES), "validation: mIoU 50.0% of 20 images"),
        (
            dict(score=0.3, step=90, boxes=dict(ap=0.3, low=0.2, high=0.4, images=20)),
            "validation: AP of boxes 30.0% of 20 images (95 % interval 20.0% to 40.0%) at step 90",
        ),
        (dict(top1="x", **SCORES), ""),
        ([], ""),
    ],
)
def test_the_last_validation_is_said(healthy: Path, last: object, words: str) -> None:
    (healthy / "last.json").write_text(json.dumps(last))
    good = said(healthy, "")
    assert words in good if words else "validation" not in good


def test_a_classifier_is_compared_with_the_commonest_class(healthy: Path) -> None:
    """12 of 20 images have one class: 40 % to 60 % is not clearly better, 70 % would be."""
    (healthy / "last.json").write_text(json.dumps(dict(top1=0.5, **SCORES)))
    detail = {"confusion": [[0, 0, 8], [0, 1, 4], [1, 1, 8]]}
    (healthy / "classes.json").write_text(json.dumps({"finetune": detail}))
    assert "not clearly better than always the commonest class, 60.0%" in said(healthy, "bad")
    (healthy / "last.json").write_text(json.dumps(dict(top1=0.8, **SCORES | dict(low=0.7))))
    assert "always the commonest class: 60.0%" in said(healthy, "good")
    (healthy / "classes.json").write_text(json.dumps({"evaluate": detail}))  # of other images
    assert "commonest" not in said(healthy, "good") + said(healthy, "bad")


def test_a_segmenter_is_compared_with_the_commonest_class_everywhere(healthy: Path) -> None:
    last = dict(score=0.5, miou=0.5, commonest=0.45, **SCORES)
    (healthy / "last.json").write_text(json.dumps(last))
    bad = said(healthy, "bad")
    assert "mIoU 50.0% of 20 images" in bad
    assert "not clearly better than the commonest class everywhere, 45.0%" in bad
    (healthy / "last.json").write_text(json.dumps(last | dict(low=0.46)))
    assert "the commonest class everywhere: 45.0%" in said(healthy, "good")
