"""Named sizes of the encoder. Importable without torch."""

from collections.abc import Collection, Mapping
from typing import Any

from torchmae.errors import UserError, choose

SIZES: dict[str, dict[str, int]] = {
    "vit_micro": dict(embed_dim=128, depth=6, num_heads=4),
    "vit_tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "vit_small": dict(embed_dim=384, depth=12, num_heads=6),
    "vit_base": dict(embed_dim=768, depth=12, num_heads=12),
    "vit_large": dict(embed_dim=1024, depth=24, num_heads=16),
    "vit_huge": dict(embed_dim=1280, depth=32, num_heads=16),
}


# Far above any published model. A description from elsewhere with more would take hours or all
# memory before it fails.
LARGEST = {
    "embed_dim": 65536,
    "dim": 65536,
    "depth": 1000,
    "num_heads": 4096,
    "heads": 4096,
    "registers": 4096,
    "channels": 4096,
    "mlp_ratio": 256,
}


def check_sizes(described: Mapping[str, Any], zero: Collection[str] = ()) -> None:
    """Raises UserError for sizes of a model that none can have.

    Args:
        described: sizes by name; other names are ignored.
        zero: names that may be 0.
    """
    for name in LARGEST.keys() & described.keys():
        value, least = described[name], 0 if name in zero else 1
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = number and (name == "mlp_ratio" or isinstance(value, int))
        if not whole or not (value > 0 if name == "mlp_ratio" else least <= value):
            raise UserError(f"{name} {value!r} of a model: a number of at least {least} is needed")
        if value > LARGEST[name]:
            raise UserError(f"{name} {value} of a model: at most {LARGEST[name]}")


def size_of(name: str) -> dict[str, int]:
    """Width, depth and heads of a named size, or a `UserError` with the nearest name."""
    return choose(SIZES, name, "model")
