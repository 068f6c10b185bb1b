"""What the decoder predicts for a patch: one file a kind. `TARGETS["mine"] = cls` adds one."""

from collections.abc import Callable
from typing import Any

from torchmae.errors import UserError, choose
from torchmae.models.encoders import Backbone
from torchmae.models.patches import Size
from torchmae.models.targets.ema import EMA
from torchmae.models.targets.features import Features
from torchmae.models.targets.hog import HOG
from torchmae.models.targets.pca import PCA
from torchmae.models.targets.pixels import NormalizedPixels, Pixels
from torchmae.models.targets.target import Target as Target
from torchmae.models.targets.tokens import Tokens

TARGETS: dict[str, type[Target]] = {
    "norm-pixels": NormalizedPixels,
    "pixels": Pixels,
    "pca": PCA,
    "hog": HOG,
    "tokens": Tokens,
    "run": Features,
    "ema": EMA,
}


def split_target(text: str) -> tuple[str, str | None]:
    """`NAME` or `NAME:RUN` as a name in `TARGETS` and the run folder that it is made of.

    Raises:
        UserError: no such name, or a run where none is needed or none where one is.
    """
    name, colon, run = text.partition(":")
    cls = choose(TARGETS, name, "target")
    if not cls.run_kinds and colon:
        raise UserError(f"target {text}: {name} is made of no run: leave :{run} out")
    if cls.run_kinds and not run:
        raise UserError(f"--target {name} needs {cls.run_words}: --target {name}:RUN")
    return name, run or None


def described_target(target: str | dict[str, Any], encoder: Backbone) -> str | dict[str, Any]:
    """A target as `build_target` takes it: one that follows an encoder with its description."""
    if isinstance(target, str) and choose(TARGETS, target, "target").follows_encoder:
        return {"name": target, "model": {"encoder": encoder.config()}}
    return target


def build_target(
    described: str | dict[str, Any],
    patch: Size,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Target:
    """A target for images that are normalised by `mean` and `std`.

    Args:
        described: a name in `TARGETS`; for one that is made of a run or of the encoder itself its
            "name", and the "model" of that run's config.json or of this one's.
        patch: height and width of a patch in pixels.
        channels: of the images.
        mean: that the images are normalised by, by channel.
        std: likewise.
    """
    if isinstance(described, str):
        return choose(TARGETS, split_target(described)[0], "target")(patch, channels)
    # Classes of targets that are made of a model take more than the contract's.
    cls: Callable[..., Target] = choose(TARGETS, described["name"], "target")
    return cls(patch, channels, described["model"], mean, std)
