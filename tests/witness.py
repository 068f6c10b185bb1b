"""Small real runs reduced to hashes of their weights, features and figures, to compare commits.

    python tests/witness.py before.json            # on the commit before
    python tests/witness.py after.json before.json # prints differences; exit code 1 if any

Bits depend on the machine, so both files have to come from the same one.
"""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
MODEL = "--model vit_micro --image-size 32 --patch-size 8 --decoder-dim 32 --decoder-depth 2"
CPU = "--device cpu --precision fp32 --workers 0"
TUNE = f"{CPU} --epochs 2 --batch-size 8 --crop-scale 0.08 1 --randaug-magnitude 5"


def photos(folder: Path) -> None:
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:40, 0:48]
    for kind, wave in (("across", rows), ("down", columns), ("both", rows + columns)):
        (folder / kind).mkdir(parents=True)
        for i in range(10):
            pixels = (
                120
                + 60 * np.sin(wave * (0.3 + 0.02 * i))[..., None]
                + draw.normal(0, 8, (40, 48, 3))
            )
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / kind / f"{i}.jpg", quality=92
            )


def mae(line: str, place: Path) -> str:
    command = [sys.executable, "-m", "torchmae", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=place)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def weights(run: Path) -> str:
    state = hashlib.sha256()
    for name, value in sorted(load_file(run / "model.safetensors").items()):
        state.update(name.encode() + str((value.dtype, value.shape)).encode() + value.tobytes())
    return state.hexdigest()[:16]


def features(file: Path) -> str:
    return hashlib.sha256(np.load(file)["features"].tobytes()).hexdigest()[:16]


def shares(text: str) -> list[str]:
    return re.findall(r"\d+\.\d %|\d+\.\d%", text)


def witness(place: Path) -> dict[str, object]:
    photos(place / "photos")
    found: dict[str, object] = {}
    mae(f"pretrain digits?part=test --preset demo --epochs 2 --out demo {CPU}", place)
    found["digits"] = weights(place / "demo")
    mae(f"pretrain photos --epochs 6 --batch-size 8 --out photos-run {MODEL} {CPU}", place)
    found["photos"] = weights(place / "photos-run")
    block = f"--masking block {CPU}"
    mae(
        f"pretrain photos --epochs 2 --batch-size 8 --out from-run --from photos-run {block}", place
    )
    found["from"] = weights(place / "from-run")
    raw = f"--target pixels --loss-on all {MODEL} {CPU}"
    mae(f"pretrain photos --epochs 2 --batch-size 8 --out raw {raw}", place)
    found["pixels, all"] = weights(place / "raw")
    mae(f"pretrain photos --epochs 2 --batch-size 8 --out masked --encode-all {MODEL} {CPU}", place)
    found["encode all"] = weights(place / "masked")
    for train in ("all", "head", "0.5"):
        mae(f"finetune photos-run photos --train {train} --out tune-{train} {TUNE}", place)
        found[f"finetune {train}"] = weights(place / f"tune-{train}")
    strong = "--randaug-magnitude 7 --mixup 0.8 --cutmix 1 --drop-path 0.2"
    scratch = f"--model vit_micro --patch-size 8 --ema 0.9 {strong}"
    mae(f"finetune none photos {scratch} --out scratch {TUNE}", place)
    found["scratch"] = weights(place / "scratch")
    found["evaluate"] = shares(mae("evaluate tune-all photos --device cpu", place))
    mae("predict tune-all photos --out p.csv --device cpu", place)
    with (place / "p.csv").open() as file:
        found["predict"] = hashlib.sha256(repr(sorted(csv.reader(file))).encode()).hexdigest()[:16]
    found["probe --fast"] = shares(mae("probe photos-run photos --fast --device cpu", place))
    found["knn"] = shares(mae("knn photos-run photos --device cpu", place))
    for run in ("photos-run", "tune-all", "demo"):
        data = "digits?part=test" if run == "demo" else "photos"
        mae(f"embed {run} {data} --out {run}.npz --device cpu", place)
        found[f"embed {run}"] = features(place / f"{run}.npz")
    mae("export photos-run --to timm --only encoder --out timm", place)
    mae("import timm --out back", place)
    found["export to timm and import"] = weights(place / "back")
    mae("export photos-run --to transformers --out hf", place)
    mae("import hf --out hf-back", place)
    found["export to transformers and import"] = weights(place / "hf-back")
    mae("pack photos --out shards --size 36", place)
    mae(f"pretrain shards --epochs 2 --batch-size 8 --out packed-run {MODEL} {CPU}", place)
    found["packed"] = weights(place / "packed-run")
    mae(
        "compare photos-run photos --labels-per-class 4 --seeds 0 1 --trials 0 --out comparison "
        + TUNE,
        place,
    )
    mae("partial photos-run photos --train 0 1 --out parts " + TUNE, place)
    for folder in ("comparison", "parts"):
        found[folder] = sorted(
            weights(p.parent) for p in (place / folder).glob("*/model.safetensors")
        )
    line = f"pretrain photos --epochs 60 --batch-size 8 --log-every 1 --out {{}} {MODEL} {CPU}"
    mae(line.format("whole"), place)
    command = [sys.executable, "-m", "torchmae", *line.format("stopped").split()]
    process = subprocess.Popen(
        command, env=ENV, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = place / "stopped/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    found["stopped in the middle"] = process.wait() == 143
    mae(line.format("stopped"), place)
    found["whole"], found["resumed"] = weights(place / "whole"), weights(place / "stopped")
    return found


def main(out: str, before: str | None = None) -> int:
    with tempfile.TemporaryDirectory() as place:
        found = witness(Path(place))
    Path(out).write_text(json.dumps(found, indent=1))
    assert found["whole"] == found["resumed"]
    if before is None:
        return 0
    was = json.loads(Path(before).read_text())
    wrong = [name for name in was if was[name] != found.get(name)]
    for name in wrong:
        print(f"{name}: was {was[name]}, is {found.get(name)}")
    print(f"witness: {len(was) - len(wrong)} of {len(was)} as before")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
