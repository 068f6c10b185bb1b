"""One feature of an image from the tokens of its patches."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from torchmae.errors import UserError, choose

# Tokens [B, prefix + N, D], behind `prefix` tokens that are no patches, to features.
POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda tokens, prefix: tokens[:, prefix:].mean(1),
    "cls": lambda tokens, prefix: tokens[:, 0],
    "cls+mean": lambda tokens, prefix: torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1),
}


@runtime_checkable
class Prefixed(Protocol):
    """An encoder, as far as pooling needs it."""

    num_prefix_tokens: int


def choose_pool(encoder: Prefixed, pool: str) -> Callable[[Tensor, int], Tensor]:
    """A function of `POOLS`; `UserError` where the encoder has no class token for it."""
    pooled = choose(POOLS, pool, "pool")
    if pool != "mean" and not encoder.num_prefix_tokens:
        raise UserError(f"--pool {pool}: this encoder has no class token; use mean")
    return pooled
