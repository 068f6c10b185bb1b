"""The demo over several seeds: final loss and k-NN accuracy beside trivial baselines.

python bench/demo_seeds.py [SEED ...]      (0 1 2 by default; about two minutes a seed on two cores)

Writes bench/results/demo-seeds.json: every single number.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torchmae
from torchmae.presets.pretrain import demo
from torchmae.runfolder import read_log

MEASURED = ("features", "untrained encoder", "raw pixels")

rows = []
for seed in [int(text) for text in sys.argv[1:]] or [0, 1, 2]:
    with TemporaryDirectory() as folder:
        began = time.monotonic()
        run = torchmae.pretrain(**demo() | {"out": Path(folder) / "run", "seed": seed})
        seconds = time.monotonic() - began
        last = next(record for record in reversed(read_log(run.path)) if "loss" in record)
        scores = torchmae.knn(run.path, "digits", seed=seed)["knn"]
        losses = [last[name] for name in ("loss", "loss of patch mean", "loss of visible mean")]
        rows.append([*losses, *(100 * scores[name]["accuracy"] for name in MEASURED), seconds])
names = [
    "loss",
    "patch mean",
    "visible mean",
    "k-NN features",
    "k-NN untrained",
    "k-NN raw pixels",
    "seconds",
]
print(f"{'':<16}{'mean':>9}{'std':>11}   each seed")
for name, values in zip(names, zip(*rows)):
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    each = "  ".join(f"{value:.3f}" for value in values)
    print(f"{name:<16}{statistics.mean(values):9.3f}{spread:11.3f}   {each}")

busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
raw = {"torchmae": torchmae.__version__, "load": busy, "each seed": dict(zip(names, zip(*rows)))}
out = Path(__file__).parent / "results" / "demo-seeds.json"
out.write_text(json.dumps(raw, indent=1))
