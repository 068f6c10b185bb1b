"""Histograms of oriented gradients as a target."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.models.patches import Size, patchify
from torchmae.models.targets.target import Target

BINS = 9  # of orientations over half a turn
CELL = 8  # pixels a side, where patches are larger


class HOG(Target):
    """Histograms of oriented gradients (MaskFeat, Wei et al. 2022, section 3.2; Dalal & Triggs
    2005): how strong the edges of each direction are, in cells of up to 8 pixels a side.

    Gradients are differences of the next pixels, each channel its own; a pixel's magnitude goes to
    the bin of its direction, of 9 over half a turn. The histogram of a cell and channel has length
    1, so that contrast does not count.
    """

    def __init__(self, patch: Size, channels: int):
        super().__init__(patch, channels)
        side = math.gcd(*patch)
        self.cell = max(n for n in range(1, min(side, CELL) + 1) if side % n == 0)
        self.width = math.prod(patch) // self.cell**2 * channels * BINS

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M V"]:
        """The histograms of the patches `ids`, cell by cell."""
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
        strength = (across.square() + down.square()).sqrt()
        turn = torch.atan2(down, across) / math.pi  # -1 to 1; opposite directions are one
        bins = (turn * BINS).floor().long() % BINS
        height, width = images.shape[2:]
        spread = strength.new_zeros(len(images), self.channels, BINS, height, width)
        spread.scatter_(2, bins.unsqueeze(2), strength.unsqueeze(2))
        cells = F.avg_pool2d(spread.flatten(0, 1), self.cell)
        histograms = F.normalize(cells, dim=1).unflatten(0, (len(images), self.channels))
        size = (self.patch[0] // self.cell, self.patch[1] // self.cell)
        return patchify(histograms.flatten(1, 2), size, ids)
