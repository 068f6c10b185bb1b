"""The region proposal network: torchvision's, with hashed samples and losses image by image."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

from torchmae.models.detection.sampling import HashedSampler, inside_crowd

ASPECTS = (0.5, 1.0, 2.0)
SAMPLES = 256  # anchors of an image that a step learns from
CONVOLUTIONS = 2  # of the head (ViTDet)


class Anchors(AnchorGenerator):
    """Anchors of three aspects and one size at each cell of a level.

    Args:
        sizes: in pixels, of each level.
        strides: pixels of a cell; torchvision's own class guesses them from the sides of maps,
            which is wrong where a side was rounded up.
    """

    def __init__(self, sizes: Sequence[float], strides: Sequence[float]):
        super().__init__(tuple((size,) for size in sizes), (ASPECTS,) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        # In float32 also under autocast: bfloat16 knows a coordinate of 1,000 to 4 pixels.
        self.set_cell_anchors(torch.float32, device)
        sides = [list(one.shape[-2:]) for one in feature_maps]
        anchors = torch.cat(self.grid_anchors(sides, steps))
        return [anchors] * len(image_list.image_sizes)


class ProposalHead(RPNHead):
    """torchvision's head, whose outputs are float32 also under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in deltas]


def overlaps(objects: Float[Tensor, "N 4"], anchors: Float[Tensor, "A 4"]) -> Float[Tensor, "N A"]:
    """IoU, some objects at a time: of 375 objects at 1,024 px it takes 0.4 GB in place of 2."""
    found = anchors.new_empty(len(objects), len(anchors))
    for first in range(0, len(objects), 16):
        found[first : first + 16] = box_iou(objects[first : first + 16], anchors)
    return found


class Proposals(RegionProposalNetwork):
    """Boxes that may hold an object, and the losses of finding them.

    Args:
        width: channels of the maps.
        sizes: of the anchors of each level, in pixels.
        strides: pixels of a cell of each level.
        count: proposals of an image, after non-maximum suppression.
    """

    def __init__(
        self, width: int, sizes: Sequence[float], strides: Sequence[float], count: int = 1000
    ):
        super().__init__(
            Anchors(sizes, strides),
            ProposalHead(width, len(ASPECTS), CONVOLUTIONS),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=SAMPLES,
            positive_fraction=0.5,
            # Of each level before, and of all levels after the suppression.
            pre_nms_top_n={"training": 2 * count, "testing": count},
            post_nms_top_n={"training": count, "testing": count},
            nms_thresh=0.7,
        )
        self.fg_bg_sampler: Any = HashedSampler(SAMPLES, 0.5, turn=0)
        self.box_similarity = overlaps

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """1 for anchors on objects, 0 for background, -1 between, and inside crowds."""
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        for label, boxes, target in zip(labels, anchors, targets):
            label[(label == 0) & inside_crowd(boxes, target["crowds"])] = -1
        return labels, matched

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: Sequence[Tensor],
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Of each image, over `SAMPLES` (detectron2's): cross-entropy of objectness, and the
        absolute error of boxes (smooth L1 with beta 0, as detectron2; torchvision's beta is 1 / 9).
        """
        picked = [torch.stack(one) for one in self.fg_bg_sampler(labels)]
        positive, either = picked[0].float(), (picked[0] | picked[1]).float()
        logits = objectness.reshape(either.shape)
        deltas = pred_bbox_deltas.reshape(*either.shape, 4)
        truth = torch.stack(labels).clamp(min=0)
        found = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        distance = (deltas - torch.stack(list(regression_targets))).abs().sum(2)
        # Where nothing is matched the target of the box has no meaning, and may be infinite.
        distance = torch.where(positive > 0, distance, 0.0)
        return (found * either).sum(1) / SAMPLES, distance.sum(1) / SAMPLES
