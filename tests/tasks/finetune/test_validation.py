"""What is validated and kept while a classifier is fine-tuned."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs_on_disk import flags, steps_saved
from helpers.small import QUICK, SMALL, make_photos
from safetensors.torch import load_file

import torchmae
from torchmae import manifest
from torchmae.data.labels import labelled_sets
from torchmae.models.weights import load_classifier
from torchmae.runfolder import checkpoints, last_validation
from torchmae.tasks.finetune import validation

STRONG = dict(
    mixup=0.8, cutmix=1.0, ema=0.999, drop_path=0.3, random_erasing=0.5, randaug_magnitude=9.0
)


def test_after_kills_a_classifier_is_the_same_to_the_bit(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    """With all that is random or has a state: real processes, real kills, other workers."""
    options = flags({**STRONG, **QUICK, "epochs": 12, "save_minutes": 0.0})
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(out: Path, *more: str) -> list[str]:
        places = [str(run), str(photos), "--out", str(out)]
        return [sys.executable, "-m", "torchmae", "finetune", *places, *options, *more]

    subprocess.run(command(tmp_path / "whole"), env=env, check=True, capture_output=True)
    for sent in (signal.SIGKILL, signal.SIGTERM):
        before = steps_saved(tmp_path / "killed")
        child = subprocess.Popen(
            command(tmp_path / "killed"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        end = time.monotonic() + 120
        while time.monotonic() < end and child.poll() is None:
            if steps_saved(tmp_path / "killed") > before:
                break
            time.sleep(0.01)
        child.send_signal(sent)
        child.communicate(timeout=120)
    again = command(tmp_path / "killed", "--workers", "1")
    subprocess.run(again, env=env, check=True, capture_output=True)
    for name in ("model.safetensors", "best.safetensors"):
        whole, killed = (load_file(tmp_path / folder / name) for folder in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[key], killed[key]) for key in whole), name
    assert last_validation(tmp_path / "whole") == last_validation(tmp_path / "killed")


def test_the_averaged_weights_are_what_is_kept_and_measured(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    torchmae.finetune("none", photos, out=out, ema=0.9, image_size="16", patch_size=8, **QUICK)
    kept = load_file(out / "model.safetensors")
    optimizer = load_file(checkpoints(out)[0] / "optimizer.safetensors")
    raw = {n.removeprefix("raw."): v for n, v in optimizer.items() if n.startswith("raw.")}
    assert raw
    assert all(not torch.equal(kept[name], value) for name, value in raw.items())

    held_out = labelled_sets(str(photos), None, 0.2, None, 0).val
    for i in range(len(held_out)):
        target = tmp_path / "val" / held_out.name(i)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / held_out.name(i), target)
    measured = last_validation(out)
    again = torchmae.evaluate(out, tmp_path / "val", device="cpu")
    assert again["top1"] == measured["top1"]
    assert again["calibration_error"] == pytest.approx(measured["calibration_error"])


def test_a_classifier_learns(tmp_path: Path) -> None:
    """Not a smoke test: three textures are told apart on images that were held out."""
    photos = make_photos(tmp_path / "photos", 24)
    run = torchmae.pretrain(photos, out=tmp_path / "pre", epochs=3, **SMALL)
    options = {**QUICK, "epochs": 40, "batch_size": 8, "randaug_magnitude": 0.0}
    out = torchmae.finetune(Path(run), photos, out=tmp_path / "ft", **options)
    last = json.loads((out / "last.json").read_text())
    assert last["count"] == 15
    assert last["top1"] >= 0.8


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_the_best_weights_are_on_the_disk_before_they_have_their_name(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And everybody may read them whom the umask lets, as all other files of a run."""
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(handle: int) -> None:
        calls.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        calls.append(f"{Path(old).name} to {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    umask = os.umask(0o022)
    try:
        out = torchmae.finetune(run, photos, out=tmp_path / "run", **QUICK)
    finally:
        os.umask(umask)
    partial = ".best.safetensors.partial"
    at = calls.index(f"{partial} to best.safetensors")
    assert calls[at - 1 : at + 2] == [partial, f"{partial} to best.safetensors", "run"]
    assert {p.stat().st_mode & 0o777 for p in (out.path).glob("*.safetensors")} == {0o644}


def test_a_manifest_that_is_damaged_during_training_does_not_end_it(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = validation.Validation.__call__

    def damaging(self: validation.Validation, step: int) -> Any:
        (self.out / "manifest.json").write_text("{")
        return measured(self, step)

    monkeypatch.setattr(validation.Validation, "__call__", damaging)
    options = {**QUICK, "epochs": 2, "save_minutes": 0}
    out = torchmae.finetune(run, photos, out=tmp_path / "out", **options)
    assert load_classifier(out).classes == ("across", "blob", "down")  # compared with the manifest
    manifest.check(Path(out), "best.safetensors")
