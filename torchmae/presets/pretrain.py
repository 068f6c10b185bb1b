"""Recipes of `mae pretrain`: one function each; its docstring holds the source, what to expect, the
cost, the command."""

from typing import Any


def demo() -> dict[str, Any]:
    """scikit-learn's 1,797 handwritten digits at 32x32, in a minute or two on two CPU
    cores.

    Expect (docs/results.md): a loss of about 0.35 where predicting each patch's mean gives 0.81,
    and a k-NN accuracy of about 95 %, against 81 % for the untrained encoder.

        mae pretrain --preset demo
    """
    return dict(
        data="digits",
        out="runs/demo",
        model="vit_micro",
        image_size=32,
        patch_size=4,
        epochs=24,
        batch_size=32,
        base_lr=8e-3,
        decoder_dim=64,
        decoder_depth=1,
        crop_scale=(0.8, 1.0),
        flip=False,
    )


def paper_base() -> dict[str, Any]:
    """ViT-B/16 on ImageNet-1K, the paper's main recipe (appendix Table 8; Table 3 with 1,600
    epochs): fine-tuned 83.6 %.

    Not run by this project yet. The reference's cost: about 42 h for ViT-L at 800 epochs on 64
    V100.

        torchrun --nproc-per-node 8 -m torchmae pretrain IMAGENET/train --preset paper_base
    """
    return dict(
        model="vit_base",
        image_size=224,
        patch_size=16,
        epochs=1600,
        warmup_epochs=40,
        batch_size=4096,
        base_lr=1.5e-4,
        weight_decay=0.05,
        mask_ratio=0.75,
        decoder_dim=512,
        decoder_depth=8,
        decoder_heads=16,
        normalize="imagenet",
    )


def paper_large() -> dict[str, Any]:
    """ViT-L/16 on ImageNet-1K (as `paper_base`): fine-tuned 85.9 %, linear probe 75.8 %. Not run by
    this project yet.

    torchrun --nproc-per-node 8 -m torchmae pretrain IMAGENET/train --preset paper_large
    """
    return paper_base() | dict(model="vit_large")


def paper_huge() -> dict[str, Any]:
    """ViT-H/14 on ImageNet-1K (as `paper_base`): fine-tuned 86.9 %, 87.8 % at 448 px. Not run by
    this project yet.

    torchrun --nproc-per-node 8 -m torchmae pretrain IMAGENET/train --preset paper_huge
    """
    return paper_base() | dict(model="vit_huge", patch_size=14)


def beit_like() -> dict[str, Any]:
    """As BEiT's ViT-B/16 on ImageNet-1K (Bao et al. 2021, section 3.1): tokens of a discrete VAE,
    blocks of patches hidden, mask tokens in the encoder, no decoder. BEiT fine-tuned: 83.2 % (the
    paper's Table 3).

    The tokenizer is a run of your own, which `mae tokenizer IMAGENET/train --patch-size 16` makes,
    and which is named by --target; BEiT's has 8192 tokens and was trained on 250 million images.
    BEiT's layer scale and stochastic depth are left out. Not run by this project yet.

        torchrun --nproc-per-node 8 -m torchmae pretrain IMAGENET/train --preset beit_like \\
          --target tokens:TOKENIZER
    """
    return dict(
        model="vit_base",
        image_size=224,
        patch_size=16,
        target="tokens",
        masking="block",
        mask_ratio=0.4,
        encode_all=True,
        decoder="linear",
        decoder_dim=768,
        epochs=800,
        warmup_epochs=10,
        batch_size=2048,
        base_lr=1.875e-4,
        weight_decay=0.05,
        clip_grad=3.0,
        normalize="imagenet",
    )


def dae() -> dict[str, Any]:
    """A denoising autoencoder (Vincent et al. 2008), of which MAE is a special kind (section 2 of
    the paper): noise on all patches in place of hidden ones (0 % are hidden), the loss on all.

    For comparison, at the sizes and the length that are chosen for your data. There is no published
    figure for a ViT; not measured by this project yet. A step of ViT-B has 2.4 times the operations
    of one with 75 % hidden.

        mae pretrain DATA --preset dae
    """
    return dict(noise=0.5, mask_ratio=0.0, loss_on="all", target="pixels")


PRESETS = {
    recipe.__name__: recipe
    for recipe in (demo, paper_base, paper_large, paper_huge, beit_like, dae)
}
