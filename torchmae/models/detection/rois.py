"""What is in a proposal: class, box and mask, with losses image by image."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from torchmae.models.detection.pooling import AlignedPool, crop_masks
from torchmae.models.detection.sampling import HashedSampler, inside_crowd
from torchmae.models.pyramid import ChannelNorm

CONVOLUTIONS = 4  # of the head of boxes and that of masks (ViTDet)
BOX_CELLS = 7
MASK_CELLS = 14  # 28 after the deconvolution
REGRESSION = (10.0, 10.0, 5.0, 5.0)  # weights of the box's numbers
SCORE = 0.05  # of a box of a class, below which it is left out
POSITIVE = 0.25  # of the proposals of an image that a step learns from


def convolutions(width: int) -> list[nn.Module]:
    """Four times a convolution, LayerNorm over channels and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(CONVOLUTIONS):
        conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, ChannelNorm(width), nn.ReLU()]
    return layers


class BoxHead(nn.Sequential):
    """Four convolutions and a linear layer of four times their width (ViTDet's 256 and 1,024)."""

    def __init__(self, width: int):
        linear = nn.Linear(width * BOX_CELLS**2, 4 * width)
        nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.zeros_(linear.bias)
        super().__init__(*convolutions(width), nn.Flatten(), linear, nn.ReLU())


class BoxPredictor(nn.Module):
    """The logits of background and classes, and a box for each of them."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * (classes + 1))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: Float[Tensor, "R D"]
    ) -> tuple[Float[Tensor, "R classes"], Float[Tensor, "R boxes"]]:
        return self.cls_score(features).float(), self.bbox_pred(features).float()


class MaskHead(nn.Sequential):
    """Four convolutions, then a deconvolution to twice the cells."""

    def __init__(self, width: int):
        up = nn.ConvTranspose2d(width, width, 2, stride=2)
        nn.init.kaiming_normal_(up.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(*convolutions(width), up, nn.ReLU())


class MaskPredictor(nn.Conv2d):
    """A mask for background (which is not used) and each class."""

    def __init__(self, width: int, classes: int):
        super().__init__(width, classes + 1, 1)
        nn.init.normal_(self.weight, std=0.001)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, features: Float[Tensor, "R D s s"]) -> Float[Tensor, "R classes s s"]:
        return super().forward(features).float()


class Heads(RoIHeads):
    """The heads of Faster R-CNN, and with `masks` of Mask R-CNN, configured as ViTDet's.

    Args:
        width: channels of the maps.
        classes: how many, without the background.
        strides: pixels of a cell of the levels that boxes are pooled from.
        samples: proposals of an image that a step learns from.
        max_detections: of an image.
        masks: with a head for masks.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        strides: Sequence[float],
        samples: int,
        max_detections: int,
        masks: bool,
    ):
        super().__init__(
            AlignedPool(BOX_CELLS, strides),
            BoxHead(width),
            BoxPredictor(4 * width, classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=samples,
            positive_fraction=POSITIVE,
            bbox_reg_weights=REGRESSION,
            score_thresh=SCORE,
            nms_thresh=0.5,
            detections_per_img=max_detections,
            mask_roi_pool=AlignedPool(MASK_CELLS, strides) if masks else None,
            mask_head=MaskHead(width) if masks else None,
            mask_predictor=MaskPredictor(width, classes) if masks else None,
        )
        self.fg_bg_sampler: Any = HashedSampler(samples, POSITIVE, turn=1)
        self.crowds: list[Tensor] = []

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Sequence[Tensor]]:
        """Proposals, the object and class of each (0: background), and what their boxes become."""
        assert targets is not None
        self.crowds = [target["crowds"] for target in targets]
        return super().select_training_samples(proposals, targets)

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The object and the class of each proposal; class -1, which is not learned from, inside
        crowds."""
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, boxes, crowds in zip(labels, proposals, self.crowds):
            label[(label == 0) & inside_crowd(boxes, crowds)] = -1
        return matched, labels

    def losses(
        self,
        maps: Sequence[Float[Tensor, "B D _h _w"]],
        proposals: list[Float[Tensor, "_ 4"]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Float[Tensor, " B"]]:
        """The losses of each image: class, box and mask."""
        boxes, matched, labels, truth = self.select_training_samples(proposals, targets)
        features = self.box_head(self.box_roi_pool(maps, boxes))
        logits, deltas = self.box_predictor(features)
        label, counts = torch.cat(labels), [len(one) for one in labels]
        entropy = F.cross_entropy(logits, label, reduction="none")
        chosen = deltas.unflatten(1, (-1, 4))[torch.arange(len(label)), label]
        # Absolute errors (detectron2's), over all proposals of the image.
        distance = (chosen - torch.cat(list(truth))).abs().sum(1)
        distance = torch.where(label > 0, distance, 0.0)
        found = {"class": image_means(entropy, counts), "box": image_means(distance, counts)}
        if self.has_mask():
            found["mask"] = self.mask_losses(maps, boxes, matched, labels, targets)
        return found

    def mask_losses(
        self,
        maps: Sequence[Float[Tensor, "B D _h _w"]],
        proposals: list[Float[Tensor, "_ 4"]],
        matched: list[Int64[Tensor, " _"]],
        labels: list[Int64[Tensor, " _"]],
        targets: list[dict[str, Tensor]],
    ) -> Float[Tensor, " B"]:
        """Cross-entropy of the mask of the class, over the proposals on objects with a mask."""
        boxes, truth, classes = [], [], []
        for proposal, at, label, target in zip(proposals, matched, labels, targets):
            on = (label > 0).nonzero()[:, 0]
            if len(target["boxes"]):
                on = on[target["has_mask"][at[on]]]
            boxes.append(proposal[on])
            classes.append(label[on])
            if len(on):
                own = at[on]
                truth.append((target["masks"][own], target["boxes"][own], proposal[on]))
        features = self.mask_head(self.mask_roi_pool(maps, boxes))
        logits = self.mask_predictor(features)
        size = logits.shape[-1]
        wanted = [crop_masks(*one, size) for one in truth]
        label = torch.cat(classes)
        chosen = logits[torch.arange(len(label)), label]
        whole = torch.cat(wanted) if wanted else torch.zeros_like(chosen)
        entropy = F.binary_cross_entropy_with_logits(chosen, whole, reduction="none")
        return image_means(entropy.mean((1, 2)), [len(one) for one in boxes])

    def detect(
        self,
        maps: Sequence[Float[Tensor, "B D _h _w"]],
        proposals: list[Float[Tensor, "_ 4"]],
        size: tuple[int, int],
    ) -> list[dict[str, Tensor]]:
        """Boxes, labels (from 1), scores, and masks [N 28 28] within 0..1, of each image."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(maps, proposals)))
        sizes = [size] * len(proposals)
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, sizes)
        found = [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(boxes, scores, labels)
        ]
        if self.has_mask():
            logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, boxes)))
            label = torch.cat(labels)
            masks = logits[torch.arange(len(label)), label].sigmoid()
            for one, mask in zip(found, masks.split([len(box) for box in boxes])):
                one["masks"] = mask
        return found


def image_means(values: Float[Tensor, " R"], counts: Sequence[int]) -> Float[Tensor, " B"]:
    """The mean over each image's values, which come one image after the other; 0 without any."""
    sums = [part.sum() / max(1, len(part)) for part in values.split(list(counts))]
    return torch.stack(sums)
