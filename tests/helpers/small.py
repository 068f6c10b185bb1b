"""A small labelled folder of pictures, and settings of a small model."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_photos(folder: Path, each: int = 8) -> Path:
    """Three classes of 40x48 JPEGs: stripes across, stripes down, blobs."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:40, 0:48]
    for name in ("across", "down", "blob"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            phase, tint = generator.uniform(0, 6), generator.uniform(60, 195, 3)
            wave = {
                "across": np.sin(rows + phase),
                "down": np.sin(columns + phase),
                "blob": np.cos(rows / 9 + columns / 9 + phase),
            }
            pixels = tint + 60 * wave[name][..., None] + generator.normal(0, 4, (40, 48, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{i}.jpg", quality=92
            )
    return folder


SMALL = dict(
    model="vit_micro",
    image_size=32,
    patch_size=8,
    batch_size=8,
    decoder_dim=32,
    decoder_depth=1,
    workers=0,
    device="cpu",
)


QUICK = dict(epochs=2, batch_size=6, workers=0, device="cpu", precision="fp32")  # to fine-tune
