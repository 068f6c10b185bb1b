"""What the encoder tells apart: its patch tokens as colors."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from torchmae.models.mae import MAE

NOTE = (
    "Tokens: the three largest principal components of the patch tokens of all these images as "
    "red, green and blue; equal colors are similar features."
)


@torch.no_grad()
def token_map(model: MAE, images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B 3 H W"] | None:
    """The tokens of whole images as colors, each patch in one; None where they are not finite.

    Args:
        model: its encoder is looked at, and its mode (train or eval) left as it was.
        images: on any device.
    """
    was_training = model.training
    device, encoder = next(model.parameters()).device, model.eval().encoder
    tokens = encoder(encoder.normalize(images.to(device)))[:, encoder.num_prefix_tokens :]
    model.train(was_training)
    colors = principal_colors(tokens.flatten(0, 1).double().cpu())
    if colors is None:
        return None
    grid, (height, width) = encoder.grid, images.shape[-2:]
    small = (255 * colors).round().to(torch.uint8).view(len(images), *grid, 3).permute(0, 3, 1, 2)
    rows = torch.arange(height) * grid[0] // height
    columns = torch.arange(width) * grid[1] // width
    return small[:, :, rows][:, :, :, columns]


def principal_colors(tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N 3"] | None:
    """Three principal components, each from its 2nd to its 98th percentile as 0 to 1.

    The sign of a component, which is arbitrary, is that of its third moment: pictures of one
    training do not turn over between two steps.
    """
    if not tokens.isfinite().all():
        return None
    centered = tokens - tokens.mean(0)
    _, vectors = torch.linalg.eigh(centered.T @ centered)
    parts = centered @ vectors[:, -3:].flip(1)
    parts = parts * torch.where(parts.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = parts.quantile(torch.tensor([0.02, 0.98], dtype=parts.dtype), dim=0)
    return ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
