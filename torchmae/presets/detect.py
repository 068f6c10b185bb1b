"""Recipes of `mae detect`: one function each; its docstring holds the source, what to expect, the
cost, the command."""

from typing import Any

COCO = 118_287  # training images


def vitdet_base() -> dict[str, Any]:
    """Mask R-CNN on a ViT-B/16, COCO: Li et al. 2022 (ViTDet), in detectron2's numbers: 1,024 px,
    batch 64, AdamW 1e-4, layer decay 0.7, drop path 0.1, 100 epochs, windows of 14 patches with
    four global blocks, relative positions. detectron2: 51.6 AP of boxes, 45.9 of masks (0.314 s an
    image and step, 10.9 GB, on 64 A100); the MAE paper's own (Table 4, four taps in place of the
    simple pyramid): 50.3 and 44.9. Not run by this project.

    Unlike there, the learning rate falls by a cosine, losses are means image by image, and anchors
    in crowds are ignored.

        torchrun --nproc-per-node 8 -m torchmae detect RUN COCO --preset vitdet_base
    """
    return dict(
        masks=True,
        fit="long",
        max_detections=100,
        head_width=256,
        roi_samples=512,
        anchor=8.0,
        pyramid="simple",
        window=14,
        global_blocks=4,
        relative_positions=True,
        image_size=1024,
        jitter=(0.1, 2.0),
        batch_size=64,
        epochs=100.0,
        warmup_epochs=250 * 64 / COCO,
        base_lr=1e-4 * 256 / 64,
        min_lr=0.0,
        weight_decay=0.1,
        beta2=0.999,
        layer_decay=0.7,
        drop_path=0.1,
    )


def vitdet_large() -> dict[str, Any]:
    """As `vitdet_base` on a ViT-L/16, with layer decay 0.8 and drop path 0.4. detectron2: 55.5 AP
    of boxes, 49.2 of masks; the MAE paper's own (Table 4): 53.3 and 47.2. Not run by this project.

        torchrun --nproc-per-node 8 -m torchmae detect RUN COCO --preset vitdet_large
    """
    return vitdet_base() | dict(layer_decay=0.8, drop_path=0.4)


def vitdet_huge() -> dict[str, Any]:
    """As `vitdet_base` on a ViT-H/16, layer decay 0.9, drop path 0.5, 75 epochs. detectron2:
    56.7 AP of boxes, 50.2 of masks, with the patches of the MAE's ViT-H/14 resized to 16 px first.
    Those of 14 px are taken as they are here (strides 3.5 to 28). Not run by this project.

        torchrun --nproc-per-node 8 -m torchmae detect RUN COCO --preset vitdet_huge
    """
    return vitdet_base() | dict(layer_decay=0.9, drop_path=0.5, epochs=75.0)


PRESETS = {recipe.__name__: recipe for recipe in (vitdet_base, vitdet_large, vitdet_huge)}
