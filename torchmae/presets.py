"""Named recipes. One function each: the docstring holds where it comes from, what to expect, what it costs, the command."""

from collections.abc import Callable
from typing import Any

from torchmae.tasks.pretrain import Pretrain


def demo() -> Pretrain:
    """`make demo`: the 1,797 handwritten digits of scikit-learn, 32x32, on two CPU cores in about a minute."""
    return Pretrain(
        data="digits",
        out="runs/demo",
        model="vit_micro",
        image_size=32,
        patch_size=4,
        epochs=30,
        batch_size=128,
        base_lr=3e-3,
        crop_scale=(0.6, 1.0),
        flip=False,
        decoder_dim=64,
        decoder_depth=1,
    )


PRESETS: dict[str, Callable[[], Any]] = {f.__name__: f for f in (demo,)}
