"""Frozen features of an RGB run on images of other bands: which patch weights should bands get?

Synthetic bands: each is a random mix of red, green and blue, bent by a power, with its own noise.
k-NN accuracy by labelled folders, for three seeds of the bands.

    python bench/inflation.py RUN FOLDER [BANDS] [IMAGES]
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source
from torchmae.data.transforms import CenterCropResize
from torchmae.eval.probes.knn import knn
from torchmae.models.vit import initialize
from torchmae.models.weights import load

SEEDS, NEIGHBORS = 3, 10

# Of weights [D, 3, p, q], those of so many bands.
INFLATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda w, n: w.sum(1, keepdim=True).expand(-1, n, -1, -1) / n,
    "tile": lambda w, n: w[:, torch.arange(n) % 3] * 3 / n,
    "new": lambda w, n: new(w, n),
}


def new(weight: Tensor, bands: int) -> Tensor:
    layer = nn.Conv2d(bands, len(weight), weight.shape[2], weight.shape[2])
    initialize(layer)
    return layer.weight.data


def bands_of(images: Tensor, count: int, seed: int) -> Tensor:
    """[N, 3, H, W] in 0..1 to bands [N, count, H, W], each of mean 0 and std 1."""
    draw = np.random.default_rng(seed)
    mix = torch.tensor(draw.dirichlet((0.5, 0.5, 0.5), count), dtype=torch.float32)
    power = torch.tensor(draw.uniform(0.5, 2, count), dtype=torch.float32).view(-1, 1, 1)
    bands = torch.einsum("nchw,kc->nkhw", images, mix) ** power
    bands += 0.03 * torch.randn(bands.shape, generator=torch.Generator().manual_seed(seed))
    mean, std = bands.mean((0, 2, 3), keepdim=True), bands.std((0, 2, 3), keepdim=True)
    return (bands - mean) / std


@torch.no_grad()
def accuracy(encoder: nn.Module, images: Tensor, labels: Tensor, classes: int) -> float:
    """Of every third image, by the two others."""
    rows = torch.cat([encoder(part)[:, 1:].mean(1) for part in images.split(32)])
    test = torch.arange(len(rows)) % 3 == 0
    found = knn(rows[~test], rows[test], labels[~test], classes, NEIGHBORS)
    return float((found == labels[test]).float().mean())


def main(run: str, folder: str, count: int = 5, most: int = 1200) -> None:
    encoder, source = load(run), open_source(folder)
    ids = np.unique(np.linspace(0, len(source) - 1, most).astype(int)).tolist()
    crop = CenterCropResize(encoder.image_size)
    images = torch.stack([crop(read_pixels(source, i))[0] for i in ids]).float() / 255
    names = sorted({str(source.label(i)) for i in ids})
    labels = torch.tensor([names.index(str(source.label(i))) for i in ids])
    weight = encoder.patch_projection().weight.data.clone()
    rgb = encoder.normalize((images * 255).to(torch.uint8))
    print(f"{len(ids)} images, {len(names)} classes, {count} bands")
    print(f"RGB, its own weights: {accuracy(encoder, rgb, labels, len(names)):.3f}", flush=True)
    channels = (0.0,) * count, (1.0,) * count
    encoder.adapt(count, *channels)
    for name, inflated in INFLATIONS.items():
        found = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            encoder.patch_projection().weight.data = inflated(weight, count).contiguous()
            found.append(accuracy(encoder, bands_of(images, count, seed), labels, len(names)))
        each = ", ".join(f"{value:.3f}" for value in found)
        print(f"{name}: {np.mean(found):.3f} ± {np.std(found, ddof=1):.3f} ({each})", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
