"""Is it worth keeping the aspect of images? Pre-trainings of equal time, then k-NN and logistic
regression on frozen features, on one split for all.

keep      mae pretrain --aspect keep; later verbs see the nearest of its shapes
one       the default: random crops of the shape of --image-size, stretched by up to 3/4 to 4/3;
          later the center crop
squashed  the default on images that were resized to squares of as many pixels

    python bench/aspect.py DATA LABELLED MINUTES SEEDS [FLAGS OF mae pretrain, such as
        --image-size 128 --patch-size 16 --model vit_tiny]

DATA and LABELLED are folders; LABELLED has one folder for each class. Writes
bench-aspect/results.json; a run that is finished is not trained again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import torchmae
from torchmae.cli import main as mae
from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source
from torchmae.data.sources.files import Files

OUT = Path("bench-aspect")
ARMS: dict[str, list[str]] = {"keep": ["--aspect", "keep"], "one": [], "squashed": []}
MEASURES = ("knn", "probe")


def squashed(folder: str) -> str:
    """A copy of a folder whose images are squares of as many pixels, with the same names."""
    source = open_source(folder)
    assert isinstance(source, Files), f"{folder} is no folder of images"
    out = OUT / "squashed" / Path(folder).resolve().name
    for i in range(len(source)):
        file = out / source.name(i)
        if file.exists():
            continue
        pixels = read_pixels(source, i)
        side = max(1, round(float(np.sqrt(pixels.shape[0] * pixels.shape[1]))))
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        small.save(file, format="PNG")  # whatever the name says: files are known by their bytes
    return str(out)


def measured(run: Path, labelled: str) -> dict[str, float]:
    """Accuracies of the frozen features, and of raw pixels."""
    knn = torchmae.knn(run, labelled)["knn"]
    probe = torchmae.probe(run, labelled, fast=True)["probe"]
    return {
        "knn": knn["features"]["accuracy"],
        "probe": probe["features"]["accuracy"],
        "knn of an untrained encoder": knn["untrained encoder"]["accuracy"],
    }


def main(data: str, labelled: str, minutes: str, seeds: int, *flags: str) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for arm, own in ARMS.items():
        places = (data, labelled) if arm != "squashed" else (squashed(data), squashed(labelled))
        for seed in range(seeds):
            run = OUT / f"{arm}-{seed}"
            command = ["pretrain", places[0], "--out", str(run), "--minutes", minutes, *own, *flags]
            if mae([*command, "--seed", str(seed), "--labelled", "none"]):
                sys.exit(f"{run}: the training failed")
            found.setdefault(arm, []).append(measured(run, places[1]))
    rows: dict[str, Any] = {"data": data, "labelled": labelled, "minutes": minutes, "flags": flags}
    for arm, scores in found.items():
        rows[arm] = scores
        for name in MEASURES:
            each = [100 * one[name] for one in scores]
            spread = f" ± {np.std(each, ddof=1):.1f}" if len(each) > 1 else ""
            values = ", ".join(f"{value:.1f}" for value in each)
            print(f"{arm:<9} {name:<6} {np.mean(each):.1f}{spread} ({values})", flush=True)
    (OUT / "results.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
