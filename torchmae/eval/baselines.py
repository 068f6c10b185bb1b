"""What frozen features are measured beside: an untrained encoder, and raw pixels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from torchmae.data.sources.source import BadFile, Source
from torchmae.eval.extract import Function, collect, features_of
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.weights import load, seeded
from torchmae.runfolder import read_config

FeatureExtractor = Callable[
    [Source], tuple[list[int], dict[str, Float[Tensor, "N F"]], list[BadFile]]
]


def baseline_features(
    run: str, layer: int | None, pool: str, side: int, seed: int, device: torch.device
) -> FeatureExtractor:
    """The function from a source to the run's features and those of the two baselines, in one pass.

    Args:
        run: a run folder.
        layer: as for `features_of`, of both encoders.
        pool: as for `features_of`, of both encoders.
        side: raw pixels are those of images reduced to at most so many px a side.
        seed: of the untrained encoder.
        device: where the encoders compute.

    Returns:
        A function that returns the numbers of the readable images; float32 features on the CPU of
        these, by name ("features", "untrained encoder", "raw pixels"); the unreadable files.

    Raises:
        UserError: no such run, layer or pool; before any image is read.
    """
    encoder = load(run)
    functions: dict[str, Function] = {
        "features": features_of(encoder, layer, pool, device),
        "untrained encoder": features_of(untrained(run, seed), layer, pool, device),
        "raw pixels": lambda images: raw_pixels(images, side),
    }

    def extract(
        images: Source,
    ) -> tuple[list[int], dict[str, Float[Tensor, "N F"]], list[BadFile]]:
        ids, rows, bad = collect(images, encoder, run, list(functions.values()), device)
        return ids, dict(zip(functions, rows)), bad

    return extract


def raw_pixels(images: UInt8[Tensor, "B C H W"], side: int) -> Float[Tensor, "B F"]:
    """The pixels, 0..255, of images reduced to at most `side` px a side (memory)."""
    size = [min(side, length) for length in images.shape[2:]]
    return F.interpolate(images.float(), size, mode="area").flatten(1)


def untrained(run: str, seed: int) -> Backbone:
    """An encoder of the run's architecture with the initial weights of a seed."""
    with seeded(seed):
        return build_encoder(read_config(run)["model"]["encoder"]).eval()
