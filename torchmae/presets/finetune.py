"""Recipes of `mae finetune`: one function each; its docstring holds the source, what to expect, the
cost, the command."""

from typing import Any


def finetune_base() -> dict[str, Any]:
    """ViT-B/16, end to end on ImageNet-1K: the paper's Table 9, whose table goes with the raw-pixel
    baseline. Paper, after 1,600 epochs: 83.6 %. Not run by this project yet; the reference took
    about 7 h on 32 V100.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset finetune_base
    """
    return dict(
        pool="mean",
        image_size=224,
        position_resizing="reference",
        epochs=100,
        warmup_epochs=5,
        batch_size=1024,
        optimizer="adamw",
        base_lr=1e-3,
        min_lr=1e-6,
        beta2=0.999,
        weight_decay=0.05,
        layer_decay=0.75,
        drop_path=0.1,
        augment="strong",
        randaug_magnitude=9,
        random_erasing=0.0,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        ema=0.0,
        crop_pct=0.875,
    )


def finetune_base_repo() -> dict[str, Any]:
    """As `finetune_base` with the reference repository's values, found for weights that were
    pre-trained with normalized
    pixels: base lr 5e-4, layer decay 0.65, random erasing 0.25. Its four seeds: 83.57 %, std
        0.08. Not run here yet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset finetune_base_repo
    """
    return finetune_base() | dict(base_lr=5e-4, layer_decay=0.65, random_erasing=0.25)


def finetune_large() -> dict[str, Any]:
    """ViT-L/16, the paper's Table 9: 50 epochs. Paper: 85.9 %. Not run by this project yet;
    reference: 9 h on 32 V100.

    torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset finetune_large
    """
    return finetune_base() | dict(epochs=50)


def finetune_large_repo() -> dict[str, Any]:
    """As `finetune_large` with the reference repository's drop path of 0.2 and random erasing of
    0.25. Its four seeds: 85.87 %, std 0.07. Not run by this project yet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset finetune_large_repo
    """
    return finetune_large() | dict(drop_path=0.2, random_erasing=0.25)


def finetune_huge() -> dict[str, Any]:
    """ViT-H/14, the paper's Table 9: 50 epochs, drop path 0.2. Paper: 86.9 %. Not run by this
    project yet; reference: 13 h on 64 V100.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset finetune_huge
    """
    return finetune_large() | dict(drop_path=0.2)


def finetune_huge_repo() -> dict[str, Any]:
    """As `finetune_huge` with the reference repository's drop path of 0.3 and random erasing of
    0.25: 86.9 %. Not run by this project yet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset finetune_huge_repo
    """
    return finetune_huge() | dict(drop_path=0.3, random_erasing=0.25)


def finetune_huge_448() -> dict[str, Any]:
    """ViT-H/14 at 448 px, the paper's best figure: 87.8 %. Neither paper nor repository gives its
    settings: these are `finetune_huge_repo` at 448 px with the whole image validated, which agrees
        with the one published configuration
    (mmpretrain's: lr 4e-3 at 1,024 images, layer decay 0.75, drop path 0.3, 50 epochs). Not run by
    this project yet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset finetune_huge_448
    """
    return finetune_huge_repo() | dict(image_size=448, crop_pct=1.0)


def finetune_inat2017() -> dict[str, Any]:
    """iNaturalist 2017 (5,089 species), the paper's Table 6: 70.5 % with ViT-B, 75.7 % with ViT-L,
    79.3 % with ViT-H, 83.4 % at 448 px. Its settings for this set are not published (issue 44 of
    the reference): these are ImageNet's for ViT-B, as in `finetune_base_repo`; for a larger encoder
    name that one's preset. Not run by this project yet; 579,184 training images, so about 45 % of
    the cost of ImageNet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN train2017.csv --val val2017.csv \\
          --preset finetune_inat2017
    """
    return finetune_base_repo()


def finetune_inat2018() -> dict[str, Any]:
    """iNaturalist 2018 (8,142 species), the paper's Table 6: 75.4 % with ViT-B, 80.1 % with ViT-L,
    83.0 % with ViT-H, 86.8 % at 448 px. Settings: as `finetune_inat2017`, not published. Not run by
    this project yet; 437,513 training images, so about a third of the cost of ImageNet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN train2018.csv --val val2018.csv \\
          --preset finetune_inat2018
    """
    return finetune_base_repo()


def finetune_inat2019() -> dict[str, Any]:
    """iNaturalist 2019 (1,010 species), the paper's Table 6: 80.5 % with ViT-B, 83.4 % with ViT-L,
    85.7 % with ViT-H, 88.3 % at 448 px. Settings: as `finetune_inat2017`, not published. Not run by
    this project yet; 265,213 training images, so about a fifth of the cost of ImageNet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN train2019.csv --val val2019.csv \\
          --preset finetune_inat2019
    """
    return finetune_base_repo()


def finetune_places205() -> dict[str, Any]:
    """Places205 (205 scenes), the paper's Table 6: 63.9 % with ViT-B, 65.8 % with ViT-L, 65.9 %
    with ViT-H, 66.8 % at 448 px. Settings: as `finetune_inat2017`, not published. Not run by this
    project yet; 2.4 million training images, so about twice the cost of ImageNet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN train_places205.csv \\
          --val val_places205.csv --preset finetune_places205
    """
    return finetune_base_repo()


def finetune_places365() -> dict[str, Any]:
    """Places365 (365 scenes), the paper's Table 6: 57.9 % with ViT-B, 59.4 % with ViT-L, 59.8 %
    with ViT-H, 60.3 % at 448 px. Settings: as `finetune_inat2017`, not published. Not run by this
    project yet; 1.8 million training images, so about 1.4 times the cost of ImageNet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN "torchvision:Places365?root=DIR" \\
          --val "torchvision:Places365?root=DIR&split=val" --preset finetune_places365
    """
    return finetune_base_repo()


def scratch_base() -> dict[str, Any]:
    """ViT-B/16 from scratch, the paper's Table 11: 300 epochs, strong decay, an moving average of
    the weights. Paper: 82.3 % (82.1 without the average). Not run by this project yet.

        torchrun --nproc-per-node 8 -m torchmae finetune none IMAGENET --preset scratch_base
    """
    return finetune_base() | dict(
        run="none",
        model="vit_base",
        patch_size=16,
        pool="cls",
        epochs=300,
        warmup_epochs=20,
        batch_size=4096,
        base_lr=1e-4,
        min_lr=0.0,
        beta2=0.95,
        weight_decay=0.3,
        layer_decay=1.0,
        ema=0.9999,
    )


def scratch_large() -> dict[str, Any]:
    """ViT-L/16 from scratch, the paper's Table 11: 200 epochs, drop path 0.2. Paper: 82.6 % (81.5
    without the average of the weights). Not run by this project yet.

        torchrun --nproc-per-node 8 -m torchmae finetune none IMAGENET --preset scratch_large
    """
    return scratch_base() | dict(model="vit_large", epochs=200, drop_path=0.2)


def scratch_huge() -> dict[str, Any]:
    """ViT-H/14 from scratch, the paper's Table 11. Paper: 83.1 % (80.9 without the moving average
    of the weights). Not run by this project yet.

        torchrun --nproc-per-node 8 -m torchmae finetune none IMAGENET --preset scratch_huge
    """
    return scratch_large() | dict(model="vit_huge", patch_size=14)


def probe_base() -> dict[str, Any]:
    """Linear probe of ViT-B/16, the paper's Table 10: LARS at 16,384 images a step, 90 epochs,
    flips and crops only, these the reference's (one draw, cut to the image). Paper: 68.0 %. Not run
    by this project yet; the reference took 2 h 20 min on 32 V100.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset probe_base
    """
    return dict(
        train="head",
        pool="cls",
        image_size=224,
        position_resizing="reference",
        clamp_crops=True,
        epochs=90,
        warmup_epochs=10,
        batch_size=16384,
        optimizer="lars",
        base_lr=0.1,
        min_lr=0.0,
        weight_decay=0.0,
        crop_pct=0.875,
    )


def probe_large() -> dict[str, Any]:
    """Linear probe of ViT-L/16 or ViT-H/14, for which 50 epochs suffice (Table 10). Paper: 75.8 %
    and 76.6 %. Not run by this project yet.

        torchrun --nproc-per-node 8 -m torchmae finetune RUN IMAGENET --preset probe_large
    """
    return probe_base() | dict(epochs=50)


PRESETS = {
    recipe.__name__: recipe
    for recipe in (
        *(finetune_base, finetune_base_repo, finetune_large, finetune_large_repo),
        *(finetune_huge, finetune_huge_repo, finetune_huge_448),
        *(finetune_inat2017, finetune_inat2018, finetune_inat2019),
        *(finetune_places205, finetune_places365),
        *(scratch_base, scratch_large, scratch_huge, probe_base, probe_large),
    )
}
