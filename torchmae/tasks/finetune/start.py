"""The classifier that a fine-tuning starts with."""

from torchmae.data.labels import LabelledSets
from torchmae.errors import UserError
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.heads import Classifier
from torchmae.models.vit import ViT
from torchmae.settings.options import parse_size
from torchmae.tasks.finetune.config import Finetune, ResolvedFinetune, architecture


def channels_of(config: Finetune, data: LabelledSets, pretrained: Backbone | None) -> int:
    """How many channels the classifier takes: the run's, to which grey and colour are converted.

    Raises:
        UserError: run and data do not agree and cannot be converted; it names the ways out.
    """
    have, requested, path = data.train.stored_channels, config.decode.channels, config.source.data
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
            f"--channels {have} adapts the run's patch weights; mae pretrain DATA --from "
            f"{config.run} "
            "does so and trains on; or begin with run none"
        )
    return channels


def untrained(config: ResolvedFinetune) -> Backbone:
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


def build_classifier(
    config: ResolvedFinetune, encoder: Backbone, classes: tuple[str, ...]
) -> Classifier:
    """The classifier before its first step, its head drawn from torch's generator."""
    size, rule = parse_size(config.model.image_size), config.model.position_resizing
    if rule is not None:
        if not isinstance(encoder, ViT):
            raise UserError(f"--position-resizing is for a ViT, not {type(encoder).__name__}")
        encoder.position_resizing = rule  # a later training from this run resizes alike
    if size != encoder.image_size:
        encoder.resize(size)
    encoder.restore_norm()
    is_probe = config.model.train == "head"
    pool, queries = config.model.pool, config.model.queries
    return Classifier(encoder, classes, pool, batch_norm=is_probe, queries=queries)
