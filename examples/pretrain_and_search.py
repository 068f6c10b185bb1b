"""Pre-train on a folder of images, embed all of them, and print the nearest images of one.

python examples/pretrain_and_search.py photos/ --query photos/cat.jpg
python examples/pretrain_and_search.py --quick      # generated images and a tiny model: seconds
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import torchmae

TINY: dict[str, Any] = {
    **{"model": "vit_micro", "image_size": 32, "patch_size": 8, "epochs": 3, "batch_size": 8},
    **{"decoder_dim": 32, "decoder_depth": 1, "workers": 0, "device": "cpu"},
}


def generate_stripes(folder: Path, count: int = 24) -> None:
    """Writes small images of stripes: half of them horizontal, half vertical."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:40, 0:40]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        name, axis = ("horizontal", rows) if i % 2 else ("vertical", columns)
        gray = 128 + 100 * np.sin(axis / 2 + generator.uniform(0, 6))
        pixels = gray[..., None] + generator.normal(0, 8, (40, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{name}-{i:02d}.png")


def nearest(features: np.ndarray, query: int, count: int) -> np.ndarray:
    """Indices of the rows of `features` [n, D] with the highest cosine similarity to one row."""
    unit = features - features.mean(0)  # the common part of all images says nothing about them
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[query]))
    return order[order != query][:count]


def main() -> None:
    """Runs the example; `--help` lists its options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="?", help="a folder of images")
    parser.add_argument("--query", help="an image of that folder (default: the first)")
    parser.add_argument("--out", default="runs/search", help="run folder")
    parser.add_argument("--quick", action="store_true", help="generated images, a tiny model")
    arguments = parser.parse_args()
    images, options = arguments.images, {}
    if arguments.quick:
        images, options = images or "runs/stripes", TINY
        generate_stripes(Path("runs/stripes"))
    if images is None:
        parser.error("name a folder of images, or use --quick")

    run = torchmae.pretrain(images, out=arguments.out, **options)
    path = torchmae.embed(run, images, out=Path(arguments.out) / "features.npz")
    with np.load(path) as stored:
        paths, features = stored["paths"], stored["features"]
    query = 0
    if arguments.query:
        query = next(i for i, p in enumerate(paths) if Path(arguments.query).name == Path(p).name)
    print(f"nearest to {paths[query]}:")
    for i in nearest(features, query, 5):
        print(f"  {paths[i]}")


if __name__ == "__main__":
    main()
