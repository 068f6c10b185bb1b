"""Recipes of `mae segment`: one function each; its docstring holds the source, what to expect, the
cost, the command."""

from typing import Any


def upernet_base() -> dict[str, Any]:
    """UperNet on a ViT-B/16, ADE20K (150 classes): the paper's section 5 and Table 5, 48.1 % mIoU
    after 1,600 epochs of pre-training. Values of mmsegmentation's configuration for MAE (512 px,
    batch 16, AdamW 1e-4, layer decay 0.65, 160,000 steps, windows of 512 px every 341): 48.13 %.
    Not run by this project.

    Unlike there, norms are LayerNorms and the learning rate falls by a cosine.

        torchrun --nproc-per-node 8 -m torchmae segment RUN ADE20K --preset upernet_base --ignore 0
    """
    return dict(
        head="upernet",
        head_width=512,
        auxiliary=0.4,
        pyramid="taps",
        image_size=512,
        jitter=(0.5, 2.0),
        photometric=1.0,
        batch_size=16,
        epochs=160_000 * 16 / 20_210,
        warmup_epochs=1_500 * 16 / 20_210,
        base_lr=1e-4 * 256 / 16,
        min_lr=0.0,
        weight_decay=0.05,
        beta2=0.999,
        layer_decay=0.65,
        drop_path=0.1,
        slide=512,
        stride=341,
    )


def upernet_large() -> dict[str, Any]:
    """As `upernet_base` on a ViT-L/16. Paper (Table 5): 53.6 % mIoU. mmsegmentation has no
    configuration of this size, so only the drop path of 0.2 differs, which is this project's guess
    (the paper's for a ViT-L in classification). Not run by this project.

        torchrun --nproc-per-node 8 -m torchmae segment RUN ADE20K --preset upernet_large --ignore 0
    """
    return upernet_base() | dict(drop_path=0.2)


PRESETS = {recipe.__name__: recipe for recipe in (upernet_base, upernet_large)}
