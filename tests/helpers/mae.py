"""Small masked autoencoders with random weights."""

import math

import torch

from torchmae.models import masking
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.targets import TARGETS
from torchmae.models.vit import ViT

TINY = dict(patch_size=4, embed_dim=32, depth=2, num_heads=4)


DECODER = DecoderConfig("transformer", 16, 2, 2)

# Targets that are made of no run, and those of them that are values of pixels.
PLAIN_TARGETS = sorted(name for name, cls in TARGETS.items() if not cls.run_kinds)
VALUE_TARGETS = [name for name in PLAIN_TARGETS if TARGETS[name].has_pictures()]


def tiny(size=(16, 16), channels=3, encoder=None, decoder=DECODER, **arguments):
    """A small model with random values everywhere, so that no bias is zero and no norm the
    identity."""
    mae = MAE(ViT(size, channels=channels, **(TINY | (encoder or {}))), decoder, **arguments)
    if mae.target.needs_fit:
        mae.target.fit(torch.randn(200, math.prod(mae.encoder.patch) * channels))
    with torch.no_grad():
        for parameter in mae.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return mae


def noise(mae, batch):
    return masking.noise(
        0, torch.zeros(batch, dtype=torch.long), torch.arange(batch), math.prod(mae.encoder.grid)
    )


def some(mae, batch=3, ratio=0.75):
    """Images and a random mask for them."""
    images = torch.randn(batch, mae.encoder.channels, *mae.encoder.image_size)
    images = images.to(mae.encoder.cls_token.dtype)
    return images, masking.random(noise(mae, batch), mae.encoder.grid, ratio)


def gradients(mae):
    return {name: p.grad for name, p in mae.named_parameters() if p.grad is not None}
