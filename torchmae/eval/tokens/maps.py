"""What the tokens of patches show: principal components as colors, norms, likeness, attention."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Shaped, UInt8
from torch import Tensor

from torchmae.errors import UserError
from torchmae.models.encoders import Backbone
from torchmae.models.heads import AttentivePool

Map = Float[Tensor, "D h w"]

# Registers take over what Darcet et al. (2023, section 2.1) found in such tokens of large models:
# norms several times those of all others.
OUTLIER = 3.0  # times the median


class TokenMaps(NamedTuple):
    """What an image's patches are, after a block, on the CPU.

    `tokens` are after the final norm, `norms` are the lengths of the tokens before it; `attention`
    is that of the class token, by head, in that block; `queries` that of an attentive pooling, by
    query. None: there is no such thing.
    """

    tokens: Map
    norms: Float[Tensor, "h w"]
    attention: Float[Tensor, "heads h w"] | None
    queries: Float[Tensor, "Q h w"] | None


@torch.no_grad()
def token_maps(
    encoder: Backbone,
    image: Shaped[Tensor, "C H W"],
    layer: int,
    pool: AttentivePool | None,
    device: torch.device,
) -> TokenMaps:
    """The maps of an image of any size.

    Args:
        encoder: on the device, in eval mode.
        image: the pixels.
        layer: after this block, 1 to depth.
        pool: an attentive pooling of the tokens after that block; on the device.
        device: where it is computed.
    """
    pixels = encoder.normalize(image[None].to(device))
    (raw,) = encoder.forward_intermediates(pixels, [layer - 1])
    (normed,) = encoder.forward_intermediates(pixels, [layer - 1], norm=True)
    queries = None
    if pool is not None:
        queries = pool.weights(normed.flatten(2).transpose(1, 2))[0].unflatten(1, raw.shape[2:])
    attention = class_attention(encoder, pixels, layer - 1)
    return TokenMaps(
        normed[0].float().cpu(),
        raw[0].float().norm(dim=0).cpu(),
        attention if attention is None else attention[0].float().cpu(),
        queries if queries is None else queries.float().cpu(),
    )


def class_attention(
    encoder: Backbone, pixels: Float[Tensor, "B C H W"], block: int
) -> Float[Tensor, "B heads h w"] | None:
    """The attention of the class token in a block (its number from 0); None where the encoder has
    none, or does not show it."""
    made = getattr(encoder, "class_attention", None)
    try:
        return None if made is None else made(pixels, block)
    except UserError:
        return None


class Components(NamedTuple):
    """The directions in which tokens differ most.

    `mean` [D] is subtracted first; `axes` [K, D] are orthonormal, the largest variance first; that
    entry of each which is largest in size is positive. `shares` [K] are of the variance.
    """

    mean: Float64[Tensor, " D"]
    axes: Float64[Tensor, "K D"]
    shares: Float64[Tensor, " K"]

    def project(self, tokens: Map) -> Float64[Tensor, "K h w"]:
        """The tokens of an image in these directions."""
        rows = tokens.flatten(1).T.double() - self.mean
        return (self.axes @ rows.T).unflatten(1, tokens.shape[1:])


def components(maps: Sequence[Float[Tensor, "D _ _"]], count: int = 3) -> Components:
    """The principal components of the tokens of several images together.

    Args:
        maps: one of each image, of any grid; each token counts the same.
        count: how many components; fewer where tokens are narrower.
    """
    total = sum(each[0].numel() for each in maps)
    mean = sum((each.flatten(1).double().sum(1) for each in maps), torch.zeros(())) / total
    width = maps[0].shape[0]
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for each in maps:
        rows = each.flatten(1).double() - mean[:, None]
        scatter += rows @ rows.T
    values, vectors = torch.linalg.eigh(scatter)  # ascending
    axes = vectors.T.flip(0)[:count]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    shares = values.flip(0)[:count].clamp(min=0) / values.clamp(min=0).sum().clamp(min=1e-300)
    return Components(mean, axes * signs, shares)


def as_colors(
    projected: Sequence[Float64[Tensor, "K _ _"]],
) -> list[Float64[Tensor, "3 _ _"]]:
    """Up to three components as red, green and blue, 0 to 1, on one scale for all images.

    The ends of the scale are the 1st and the 99th percentile of each component, so that a few
    tokens far out do not make all others look alike.
    """
    every = torch.cat([each.flatten(1) for each in projected], dim=1)
    low, high = (quantile(every, q)[:, None, None] for q in (0.01, 0.99))
    colors = [((each - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) for each in projected]
    missing = 3 - len(every)
    return [torch.cat([each, each.new_full((missing, *each.shape[1:]), 0.5)]) for each in colors]


def quantile(rows: Float64[Tensor, "K M"], q: float) -> Float64[Tensor, " K"]:
    """Of each row; `torch.quantile` takes 16 million values at most."""
    return rows.sort(dim=1).values[:, round(q * (rows.shape[1] - 1))]


@torch.no_grad()
def colored_tokens(
    encoder: Backbone, images: Shaped[Tensor, "B C H W"]
) -> UInt8[Tensor, "B 3 H W"] | None:
    """The last tokens of images of the encoder's size as colors, each patch in one; None where a
    token is not finite.

    Args:
        encoder: in eval mode.
        images: on the encoder's device.
    """
    # The module is called, not one of its methods, so that FSDP gathers its weights.
    tokens = encoder(encoder.normalize(images))[:, encoder.num_prefix_tokens :].float().cpu()
    if not tokens.isfinite().all():
        return None
    every = list(tokens.transpose(1, 2).unflatten(2, encoder.grid))
    found = components(every)
    colors = torch.stack(as_colors([found.project(each) for each in every]))
    shown = F.interpolate(colors, images.shape[-2:], mode="nearest")
    return (255 * shown).round().to(torch.uint8)


def likeness(tokens: Map, to: Float[Tensor, " D"]) -> Float[Tensor, "h w"]:
    """The cosine of each token of a map to a token, -1 to 1."""
    return F.cosine_similarity(tokens, to[:, None, None], dim=0)


def outliers(norms: Sequence[Float[Tensor, "_ _"]]) -> int:
    """How many tokens are longer than `OUTLIER` times the median of all."""
    every = torch.cat([each.flatten() for each in norms])
    return int((every > OUTLIER * every.median()).sum())


def most_selective(weights: Sequence[Float[Tensor, "Q _ _"]], count: int) -> list[int]:
    """Those of the queries that look at the fewest patches: the lowest mean entropy, in order."""
    entropies = [torch.special.entr(each.flatten(1)).sum(1) for each in weights]
    mean = torch.stack(entropies).mean(0)
    return mean.argsort(stable=True)[:count].tolist()
