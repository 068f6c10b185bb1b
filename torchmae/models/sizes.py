"""Named sizes of the encoder. Importable without torch."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torchmae.errors import UserError, choose
from torchmae.runfolder import read_config
from torchmae.settings.options import parse_patch, patch_text

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


def architecture(model: str | None) -> dict[str, Any]:
    """Arguments of an encoder: those of a named size, or the whole description of a run folder's
    encoder; None: of the smallest size."""
    model = model or "vit_micro"
    if not Path(model).is_dir():
        return dict(size_of(model))
    described = read_config(model)["model"]["encoder"]
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in described.items()
    }


def check_from_scratch(
    run: str, model: str | None, patch_size: str | int | None, train: str
) -> None:
    """Raises UserError for flags of an encoder from scratch beside a run, and the other way round.

    Args:
        run: "none": from scratch.
        model: --model.
        patch_size: --patch-size.
        train: --train.
    """
    if run == "none":
        named = architecture(model).get("patch_size")
        if patch_size is not None and named not in (None, parse_patch(patch_size)):
            raise UserError(f"--patch-size {patch_size}: that of {model} is {patch_text(named)}")
        if train != "all":
            raise UserError(
                f"--train {train}: from scratch (run none) everything has to be trained"
            )
    elif model is not None or patch_size is not None:
        flag = f"--model {model}" if model is not None else f"--patch-size {patch_size}"
        raise UserError(
            f"{flag} is for training from scratch (run none); {run} has an encoder of its own"
        )


def size_of(name: str) -> dict[str, int]:
    """Width, depth and heads of a named size, or a `UserError` with the nearest name."""
    return choose(SIZES, name, "model")
