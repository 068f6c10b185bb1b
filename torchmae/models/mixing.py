"""Mixup and CutMix: each image and its label blended with those of its neighbour in the batch."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchmae.hashing import MIX, hash32


def mix(
    images: Float[Tensor, "B C H W"],
    targets: Float[Tensor, "B classes"],
    mixup: float,
    cutmix: float,
    seed: int,
    step: int,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B classes"]]:
    """Mixup (Zhang et al. 2017) or CutMix (Yun et al. 2019) within pairs of neighbours.

    The first image is mixed with the second and the second with the first, and so on, so that any
    even part of a batch (of a process, a micro-batch) is mixed as in the whole batch. The last of
    an odd number is not changed.

    Args:
        images: normalised floats.
        targets: label distributions.
        mixup: alpha of mixup's Beta distribution, 0 for off.
        cutmix: that of CutMix. Where both are on, each is used in half of the steps.
        seed: of the run.
        step: 0-based; kind, ratio and window are a function of (seed, step).
    """
    kinds = [(kind, alpha) for kind, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha]
    if not kinds:
        return images, targets
    generator = np.random.Generator(np.random.Philox(key=hash32(seed, MIX, step)))
    kind, alpha = kinds[int(generator.integers(len(kinds)))]
    share = float(generator.beta(alpha, alpha))
    pair = (torch.arange(len(images), device=images.device) ^ 1).clamp(max=len(images) - 1)
    other = images[pair]
    if kind == "mixup":
        images = share * images + (1 - share) * other
    else:
        height, width = images.shape[2:]
        h, w = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
        middle, centre = int(generator.integers(height)), int(generator.integers(width))
        rows = slice(max(0, middle - h // 2), min(height, middle - h // 2 + h))
        columns = slice(max(0, centre - w // 2), min(width, centre - w // 2 + w))
        images = images.clone()
        images[:, :, rows, columns] = other[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return images, share * targets + (1 - share) * targets[pair]
