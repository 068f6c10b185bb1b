"""The classifier that a fine-tuning starts with."""

from torchmae.data.config import channels_for
from torchmae.data.labels import LabelledSets
from torchmae.errors import UserError
from torchmae.models.encoders import Backbone, new_encoder
from torchmae.models.heads import Classifier
from torchmae.models.vit import ViT
from torchmae.settings.options import parse_size
from torchmae.tasks.finetune.config import Finetune, ResolvedFinetune


def channels_of(config: Finetune, data: LabelledSets, pretrained: Backbone | None) -> int:
    """How many channels the classifier takes, see `channels_for`."""
    ways = f"mae pretrain DATA --from {config.run} does so and trains on; "
    have, requested = data.train.chosen_channels, config.decode.channels
    of_run = None if pretrained is None else pretrained.channels
    return channels_for(have, requested, config.source.data, config.run, of_run, ways)


def untrained(config: ResolvedFinetune) -> Backbone:
    """An encoder of the size that --model names, or with the architecture of the run folder that it
    names."""
    model = config.model
    size = parse_size(model.image_size)
    return new_encoder(model.model, size, model.patch_size, config.decode.channels)


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
