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
    """Mixup (Zhang et al. 2017) or CutMix (Yun et al. 2019) within pairs: the first image with the second, the third with the
    fourth, ... and both ways, so that any even share of a batch (a process's, a micro-batch) mixes as the whole would. The
    last of an odd number stays as it is.

    `mixup` and `cutmix` are the alphas of their Beta distributions, 0 for off; where both are on, one of them at even
    chances. Kind, share and window of a step are a function of (seed, step), the same for the whole batch.
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
