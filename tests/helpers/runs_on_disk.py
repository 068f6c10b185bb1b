"""Runs of real processes: their photos, flags, checkpoints and weights."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def flags(options):
    return [
        text
        for name, value in options.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def make_photos(folder):
    """24 small images of several sizes, nested."""
    (folder / "nested").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(24):
        small = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        ending = ("nested/%d.png", "%d.jpg")[i % 2] % i
        small.resize((40 + i, 36), Image.Resampling.BICUBIC).save(folder / ending)
    return folder


def steps_saved(run):
    return max((int(p.name[5:]) for p in (run / "state").glob("step-*")), default=0)


def weights(run):
    return (run / "model.safetensors").read_bytes()


def contents(folder):
    return {
        str(p.relative_to(Path(folder))): p.read_bytes() if p.is_file() else None
        for p in Path(folder).rglob("*")
    }
