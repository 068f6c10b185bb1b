"""Masked Autoencoders in PyTorch: pre-train a Vision Transformer on unlabelled images, and use it.

run = torchmae.pretrain("photos/", out="runs/photos", epochs=50)     # the same names as the flags of `mae pretrain`
encoder = torchmae.load(run)                                         # an nn.Module: encoder(images) is [B, 1 + N, D]
features = encoder(encoder.normalize(uint8_images))[:, 1:].mean(1)
torchmae.reconstruct(run, ["cat.jpg"], out="cat.png", mask_ratio=0.85)
torchmae.embed(run, "photos/", out="features.npz")
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchmae.version import __version__ as __version__

if TYPE_CHECKING:
    from torchmae.models.mae import MAE as MAE
    from torchmae.models.masking import Mask as Mask
    from torchmae.models.vit import ViT as ViT
    from torchmae.models.weights import load as load
    from torchmae.models.weights import load_mae as load_mae

__all__ = [
    "MAE",
    "Mask",
    "ViT",
    "__version__",
    "embed",
    "load",
    "load_mae",
    "knn",
    "presets",
    "pretrain",
    "reconstruct",
]

PLACES = {
    "MAE": "torchmae.models.mae",
    "Mask": "torchmae.models.masking",
    "ViT": "torchmae.models.vit",
    "load": "torchmae.models.weights",
    "load_mae": "torchmae.models.weights",
}


def __getattr__(name: str) -> Any:
    """Imports torch only when something that needs it is asked for, so that `mae --help` answers at once."""
    if name == "presets":
        return importlib.import_module("torchmae.presets")
    if name in PLACES:
        return getattr(importlib.import_module(PLACES[name]), name)
    raise AttributeError(f"module 'torchmae' has no attribute '{name}'")


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the command line would give them: paths as text, lists as tuples."""
    plainer = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in plainer.items()
    }


def pretrain(data: str | Path, **options: Any) -> Path:
    """Pre-trains on images and gives the run folder; the options are the fields of `torchmae.tasks.pretrain.Pretrain`."""
    from torchmae.tasks.pretrain.config import Pretrain
    from torchmae.tasks.pretrain.run import run

    return run(Pretrain(str(data), **plain(options)))


def reconstruct(run: str | Path, images: Sequence[str | Path], **options: Any) -> Path:
    """Draws reconstructions and gives the picture's path; the options are those of `torchmae.tasks.reconstruct.Reconstruct`."""
    from torchmae.tasks.reconstruct.config import Reconstruct
    from torchmae.tasks.reconstruct.run import run as task

    return task(Reconstruct(str(run), tuple(map(str, images)), **plain(options)))


def embed(run: str | Path, data: str | Path, **options: Any) -> Path:
    """Writes features and gives the file's path; the options are those of `torchmae.tasks.embed.Embed`."""
    from torchmae.tasks.embed.config import Embed
    from torchmae.tasks.embed.run import run as task

    return task(Embed(str(run), str(data), **plain(options)))


def neighbours(run: str | Path, data: str | Path, **options: Any) -> dict[str, Any]:
    """k-NN accuracies and their intervals; the options are those of `torchmae.tasks.neighbours.Knn`."""
    from torchmae.tasks.knn.config import Knn
    from torchmae.tasks.knn.run import run as task

    return task(Knn(str(run), str(data), **plain(options)))
