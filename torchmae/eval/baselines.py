"""What frozen features are measured beside: the same images seen by the run, by an untrained encoder, as bare pixels."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from torchmae.data.sources.source import Source
from torchmae.eval.extract import Function, collect, embedding
from torchmae.eval.intervals import interval
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.weights import load, seeded
from torchmae.runfolder import read_config

logger = logging.getLogger(__name__)

Look = Callable[
    [Source, Int64[Tensor, "N"]], tuple[dict[str, Float[Tensor, "M F"]], Int64[Tensor, "M"]]
]


def looker(
    run: str, layer: int | None, pool: str, side: int, seed: int, device: torch.device
) -> Look:
    """The function from images and their labels to the features of each of the three, by name, and the labels.

    Images that cannot be read are named and left out. What is wrong with the settings is said before any is read.
    """
    encoder = load(run)
    functions: dict[str, Function] = {
        "features": embedding(encoder, layer, pool, device),
        "untrained encoder": embedding(fresh(run, seed), layer, pool, device),
        "raw pixels": lambda images: raw_pixels(images, side),
    }

    def look(
        images: Source, labels: Int64[Tensor, "N"]
    ) -> tuple[dict[str, Float[Tensor, "M F"]], Int64[Tensor, "M"]]:
        ids, found, bad = collect(images, encoder, run, list(functions.values()), device)
        for name, reason in bad:
            logger.info(f"left out: {name}: {reason}")
        return dict(zip(functions, found)), labels[ids]

    return look


def raw_pixels(images: UInt8[Tensor, "B C H W"], side: int) -> Float[Tensor, "B F"]:
    """The pixels themselves, of images shrunk to at most `side` px a side (large ones would not fit in memory)."""
    size = [min(side, given) for given in images.shape[2:]]
    return F.interpolate(images.float(), size, mode="area").flatten(1)


def fresh(run: str, seed: int) -> Backbone:
    """The run's encoder as it was before training, up to the seed."""
    with seeded(seed):
        return build_encoder(read_config(run)["model"]["encoder"]).eval()


def accuracy(guesses: Int64[Tensor, "N"], truth: Int64[Tensor, "N"]) -> dict[str, float]:
    """The share of right guesses and its 95 % interval."""
    right = int((guesses == truth).sum())
    low, high = interval(right, len(truth))
    return {"accuracy": right / len(truth), "low": low, "high": high}


def line(name: str, found: dict[str, float]) -> str:
    """An accuracy as it is printed."""
    return f"  {name:<18} {found['accuracy']:6.1%}  (95 % interval {found['low']:.1%} to {found['high']:.1%})"
