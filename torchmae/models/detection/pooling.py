"""Features and masks of boxes: RoIAlign with half-pixel coordinates, from the level that fits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torchvision.ops import roi_align

CANONICAL = 14.0  # sides of a box, in patches, that is pooled from the level of the patches
PATCH_LEVEL = 2


class AlignedPool(nn.Module):
    """Features of boxes, from the level of the pyramid that fits the size of each (Lin et al. 2017,
    equation 1).

    In the place of torchvision's `MultiScaleRoIAlign`, which pools half a pixel beside the box
    (`aligned=False`), and guesses strides from the sides of maps.

    Args:
        size: cells of a side of the result.
        strides: pixels of a cell of each level, the finest first.
    """

    def __init__(self, size: int, strides: Sequence[float]):
        super().__init__()
        self.size = size
        self.strides = tuple(strides)

    def levels(self, boxes: Float[Tensor, "R 4"]) -> Int64[Tensor, " R"]:
        """The number of the level for each box: the finest for small ones."""
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
        canonical = CANONICAL * self.strides[PATCH_LEVEL]
        level = torch.floor(PATCH_LEVEL + torch.log2(sides / canonical + 1e-8))
        return level.clamp(0, len(self.strides) - 1).to(torch.int64)

    def forward(
        self, maps: Sequence[Float[Tensor, "B D _h _w"]], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "R D s s"]:
        """Features of the boxes of all images, one image after the other.

        Args:
            maps: of each level.
            boxes: of each image, in its pixels.
        """
        whole = torch.cat(list(boxes)).float()
        image = torch.cat([torch.full_like(one[:, :1], i) for i, one in enumerate(boxes)]).float()
        rois = torch.cat([image, whole], dim=1)
        level = self.levels(whole)
        pooled = whole.new_zeros(len(rois), maps[0].shape[1], self.size, self.size)
        for i, (one, stride) in enumerate(zip(maps, self.strides)):
            at = (level == i).nonzero()[:, 0]
            # Also of no boxes: every level has a gradient then, which DDP waits for.
            found = roi_align(
                one.float(), rois[at], self.size, 1 / stride, sampling_ratio=0, aligned=True
            )
            pooled = pooled.index_put((at,), found)
        return pooled


def crop_masks(
    masks: UInt8[Tensor, "R S S"],
    of: Float[Tensor, "R 4"],
    boxes: Float[Tensor, "R 4"],
    size: int,
) -> Float[Tensor, "R s s"]:
    """What a mask head should say for boxes: 1 where at least half of a cell is object.

    Args:
        masks: the pixels of objects inside their own boxes, stretched to a square.
        of: these own boxes.
        boxes: those to be looked at.
        size: cells of a side of the result.
    """
    points = (torch.arange(2 * size, device=boxes.device) + 0.5) / (2 * size)
    sides = (of[:, 2:] - of[:, :2]).clamp(min=1e-6)
    # Places of the points (two a cell) in the box of the object, from -1 to 1 as grid_sample's.
    low = 2 * (boxes[:, :2] - of[:, :2]) / sides - 1
    high = 2 * (boxes[:, 2:] - of[:, :2]) / sides - 1
    across, down = (low[:, i, None] + (high - low)[:, i, None] * points for i in range(2))
    grid = torch.stack(
        [
            across[:, None, :].expand(-1, 2 * size, -1),
            down[:, :, None].expand(-1, -1, 2 * size),
        ],
        dim=3,
    )
    found = F.grid_sample(masks[:, None].float(), grid, align_corners=False)
    return (F.avg_pool2d(found, 2)[:, 0] >= 0.5).float()
