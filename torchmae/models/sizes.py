"""Named sizes of the encoder. Importable without torch."""

from torchmae.errors import choose

SIZES: dict[str, dict[str, int]] = {
    "vit_micro": dict(embed_dim=128, depth=6, num_heads=4),
    "vit_tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "vit_small": dict(embed_dim=384, depth=12, num_heads=6),
    "vit_base": dict(embed_dim=768, depth=12, num_heads=12),
    "vit_large": dict(embed_dim=1024, depth=24, num_heads=16),
    "vit_huge": dict(embed_dim=1280, depth=32, num_heads=16),
}


def size_of(name: str) -> dict[str, int]:
    """Width, depth and heads of a named size, or a `UserError` with the nearest name."""
    return choose(SIZES, name, "model")
