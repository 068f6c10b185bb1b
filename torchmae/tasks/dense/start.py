"""The encoder that a training of dense prediction starts with."""

from torchmae.data.sources.source import Source
from torchmae.errors import UserError
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.vit import ViT
from torchmae.settings.options import parse_size
from torchmae.tasks.dense.config import Dense, ResolvedDense, architecture, check_size


def channels_of(config: Dense, source: Source, pretrained: Backbone | None) -> int:
    """How many channels the model takes: the run's, to which gray and color are converted.

    Raises:
        UserError: run and data do not agree and cannot be converted; it names the ways out.
    """
    have, requested, path = source.stored_channels, config.decode.channels, config.source.data
    run = pretrained.channels if pretrained is not None else have
    channels = requested or (run if {run, have} <= {1, 3} else have)
    if channels != have and {channels, have} != {1, 3}:
        raise UserError(
            f"--channels {channels}: {path} has {have}, and only gray and color convert to each "
            "other"
        )
    if requested is None and channels != run:
        raise UserError(
            f"{config.run} takes {run} channel{'s' * (run > 1)}, {path} has {have}: "
            f"--channels {have} adapts the run's patch weights; or begin with run none"
        )
    return channels


def encoder_of(
    config: ResolvedDense,
    pretrained: Backbone | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Backbone:
    """The encoder before the first step, drawn from torch's generator where it is new.

    Args:
        config: the settings.
        pretrained: the run's; None: from scratch.
        mean: of the training images, for an encoder that is new or gets other channels.
        std: likewise.
    """
    encoder = pretrained if pretrained is not None else untrained(config)
    if pretrained is None or config.decode.channels != encoder.channels:
        encoder.adapt(config.decode.channels, mean, std)
    check_size(config, encoder.patch)
    size = parse_size(config.model.image_size)
    if size != encoder.image_size:
        encoder.resize(size)
    model = config.model
    if model.window or model.relative_positions:
        if not isinstance(encoder, ViT):
            kind = type(encoder).__name__
            raise UserError(f"--window and --relative-positions are for a ViT, not {kind}")
        encoder.set_windows(model.window, model.global_blocks, model.relative_positions)
    return encoder


def untrained(config: ResolvedDense) -> Backbone:
    """An encoder of the size that --model names, or with the architecture of the run folder that it
    names."""
    own = {
        "image_size": parse_size(config.model.image_size),
        "patch_size": config.model.patch_size,
        "channels": config.decode.channels,
        "mean": None,
        "std": None,
    }
    return build_encoder({**architecture(config.model.model), **own})
