"""The encoder that a training of dense prediction starts with."""

import math

from torchmae.data.config import channels_for
from torchmae.data.sources.source import Source
from torchmae.errors import UserError
from torchmae.models.encoders import Backbone, new_encoder
from torchmae.models.vit import ViT
from torchmae.scaling import Scaling
from torchmae.settings.options import parse_size
from torchmae.tasks.dense.config import Dense, ResolvedDense, check_size


def channels_of(config: Dense, source: Source, pretrained: Backbone | None) -> int:
    """How many channels the model takes, see `channels_for`."""
    have, requested = source.chosen_channels, config.decode.channels
    of_run = None if pretrained is None else pretrained.channels
    return channels_for(have, requested, config.source.data, config.run, of_run, "")


def encoder_of(
    config: ResolvedDense,
    pretrained: Backbone | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scaling: Scaling | None,
) -> Backbone:
    """The encoder before the first step, drawn from torch's generator where it is new.

    Args:
        config: the settings.
        pretrained: the run's; None: from scratch.
        mean: of the training images, for an encoder that is new or gets other channels.
        std: likewise.
        scaling: likewise.
    """
    model, size = config.model, parse_size(config.model.image_size)
    encoder = pretrained
    if encoder is None:
        encoder = new_encoder(model.model, size, model.patch_size, config.decode.channels)
    channels, floats = config.decode.channels, scaling is not None
    if pretrained is None or (channels, floats) != (encoder.channels, bool(encoder.scaling)):
        encoder.adapt(channels, mean, std, *([scaling] if scaling else []))
    check_size(config, encoder.patch)
    if size != encoder.image_size:
        encoder.resize(size)
    if model.window or model.relative_positions:
        if not isinstance(encoder, ViT):
            kind = type(encoder).__name__
            raise UserError(f"--window and --relative-positions are for a ViT, not {kind}")
        encoder.set_windows(model.window, model.global_blocks, model.relative_positions)
    return encoder


def padding_of(encoder: Backbone) -> tuple[float, ...]:
    """What padding is, for each channel: the mean, of floats no value."""
    if encoder.scaling is not None:
        return (math.nan,) * encoder.channels
    return tuple(round(255 * value) for value in encoder.mean)
