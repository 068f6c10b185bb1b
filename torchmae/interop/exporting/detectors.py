"""A detector as a graph: results of a fixed size, since what is found in an image has none."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from torchmae.errors import RunError
from torchmae.interop.exporting.check import ExportInput, ExportResult, random_images
from torchmae.models.detection.detector import Detector
from torchmae.models.detection.pooling import AlignedPool
from torchmae.models.detection.rois import SCORE

LEAST_PROPOSAL, LEAST_BOX = 1e-3, 1e-2  # sides in pixels: torchvision's
CANDIDATES = 10  # times the detections: boxes of classes that are left to the last suppression
OTHERS = 0.02  # share of the objects that the reloaded graph may find otherwise: a score or an
# overlap at a limit is on either side of it by rounding


def outputs(detector: Detector) -> tuple[str, ...]:
    """The names of what a graph returns, see `DetectorGraph.forward`."""
    masks = ("masks",) if detector.has_masks else ()
    return ("boxes", "scores", "labels", *masks, "count")


class DetectorGraph(nn.Module):
    """The function of `Detector.forward` on one image of the encoder's size, without sizes that
    depend on what is in it.

    Where the detector leaves boxes out, their score becomes 0 here; the most probable
    `CANDIDATES * max_detections` boxes of classes take part in the last suppression.

    Args:
        detector: in eval mode.
        pixels: takes uint8 pixels and normalizes them.
    """

    def __init__(self, detector: Detector, pixels: bool):
        super().__init__()
        self.detector = detector
        self.pixels = pixels
        self.size = (int(detector.encoder.image_size[0]), int(detector.encoder.image_size[1]))
        images = torch.zeros(1, detector.encoder.channels, *self.size)
        with torch.no_grad():
            maps = detector.maps(images)
            anchors = detector.proposals.anchor_generator(ImageList(images, [self.size]), maps)[0]
        shapes = [m.shape[-2] * m.shape[-1] for m in maps]
        each = len(anchors) // sum(shapes)
        for i, part in enumerate(anchors.split([each * cells for cells in shapes])):
            self.register_buffer(f"anchors{i}", part.clone())

    def forward(self, images: Shaped[Tensor, "1 C H W"]) -> tuple[Tensor, ...]:
        """What is found in one image of normalized floats, or of pixels.

        Returns:
            Of the K objects with the highest scores, these first: boxes x1 y1 x2 y2 `[K, 4]` in
            pixels; scores `[K]`, 0 where nothing is; labels `[K]`, numbers of classes; of a
            detector with masks `[K, s, s]` within 0..1 over the boxes; and how many of these
            objects a detector returns, `[]`: those behind have a score of 0.05 or less.
        """
        detector, heads = self.detector, self.detector.heads
        maps = detector.maps(detector.encoder.normalize(images) if self.pixels else images)
        proposals, there = self.proposals(maps)
        levels = maps[:-1]
        logits, deltas = heads.box_predictor(
            heads.box_head(pooled(heads.box_roi_pool, levels, proposals))
        )
        boxes = clip_boxes_to_image(heads.box_coder.decode(deltas, [proposals]), self.size)
        boxes = boxes[:, 1:].reshape(-1, 4)
        scores = (logits.softmax(1)[:, 1:] * there[:, None]).reshape(-1)
        scores = scores * is_large(boxes, LEAST_BOX)
        classes = len(detector.classes)
        kept = min(detector.max_detections, len(scores))
        scores, at = scores.topk(min(CANDIDATES * kept, len(scores)))
        boxes, labels = boxes[at], at % classes
        # Boxes of other classes are moved to where they touch nobody (torchvision's trick too).
        moved = boxes + (labels * (max(self.size) + 1.0))[:, None]
        scores = scores * survivors(moved, scores, heads.nms_thresh)
        scores, at = scores.topk(kept)
        boxes, labels = boxes[at], labels[at]
        found = [boxes, scores, labels]
        if heads.has_mask():
            features = heads.mask_head(pooled(heads.mask_roi_pool, levels, boxes))
            masks = heads.mask_predictor(features)
            which = (labels + 1)[:, None, None, None].expand(-1, 1, *masks.shape[2:])
            found.append(masks.gather(1, which)[:, 0].sigmoid())
        return (*found, (scores > SCORE).sum())

    def proposals(
        self, maps: list[Float[Tensor, "1 D _h _w"]]
    ) -> tuple[Float[Tensor, "P 4"], Bool[Tensor, " P"]]:
        """The boxes that may hold an object, and which of them are some."""
        own = self.detector.proposals
        boxes, scores = [], []
        for i, (logits, deltas) in enumerate(zip(*own.head(maps))):
            anchors = self.get_buffer(f"anchors{i}")
            flat = logits[0].permute(1, 2, 0).reshape(-1)
            each = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            top, at = flat.topk(min(own.pre_nms_top_n(), len(flat)))
            box = own.box_coder.decode_single(each[at], anchors[at])
            box = clip_boxes_to_image(box, self.size)
            score = top.sigmoid() * is_large(box, LEAST_PROPOSAL)
            boxes.append(box)
            scores.append(score * survivors(box, score, own.nms_thresh))
        whole = torch.cat(scores)
        best, at = whole.topk(min(own.post_nms_top_n(), len(whole)))
        return torch.cat(boxes)[at], best > 0


def pooled(
    pool: AlignedPool, maps: Sequence[Float[Tensor, "1 D _h _w"]], boxes: Float[Tensor, "R 4"]
) -> Float[Tensor, "R D s s"]:
    """As `AlignedPool.forward`. Boxes of other levels have no size at a level: they cost nothing
    there and pool zeros, so that the sum over levels is what the right one pools."""
    levels = pool.levels(boxes)
    total = boxes.new_zeros(len(boxes), maps[0].shape[1], pool.size, pool.size)
    for i, (one, stride) in enumerate(zip(maps, pool.strides)):
        here = (levels == i)[:, None]
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), torch.where(here, boxes, 0.0)], dim=1)
        found = roi_align(one, rois, pool.size, 1 / stride, sampling_ratio=0, aligned=True)
        total = total + torch.where(here[:, :, None, None], found, 0.0)
    return total


def is_large(boxes: Float[Tensor, "N 4"], side: float) -> Float[Tensor, " N"]:
    """1 for boxes with both sides of so many pixels, 0 for others."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= side).all(1).float()


def survivors(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], threshold: float
) -> Float[Tensor, " N"]:
    """1 for boxes that non-maximum suppression keeps, 0 for others."""
    # With two more that touch nobody: torchvision tells torch.export that at least two are kept,
    # and the program asserts it.
    apart = torch.tensor([[-4.0, -4.0, -3.0, -3.0], [-8.0, -8.0, -7.0, -7.0]], device=boxes.device)
    kept = nms(
        torch.cat([boxes, apart]), torch.cat([scores, scores.new_zeros(len(apart))]), threshold
    )
    found = boxes.new_zeros(len(scores) + len(apart))
    found = found.scatter(0, kept, torch.ones_like(kept, dtype=boxes.dtype))
    return found[: len(scores)]


@torch.no_grad()
def compare_found(subject: ExportInput, made: ExportResult) -> str:
    """How far the objects in 16 random images differ from those that the detector finds, in words.

    Objects of all scores are compared: noise shows hardly any that is sure. An object is the same
    if class, score, mask, and box (in sides of the image) are, within the tolerance.

    Raises:
        RunError: more than `OTHERS` of the objects differ by more.
    """
    detector, names = subject.model, outputs(subject.model)
    least, detector.heads.score_thresh = detector.heads.score_thresh, 0.0
    worst, others, total = [0.0], 0, 0
    for image in random_images(subject, (subject.encoder.image_size,))[0]:
        one = image.unsqueeze(0)
        floats = detector.encoder.normalize(one) if subject.serving is not None else one
        (expected,) = detector(floats)
        found = dict(zip(names, made.reloaded(one), strict=True))
        # A graph has no object below those of its `CANDIDATES`.
        there = found["scores"][found["scores"] > 0]
        if 0 < len(there) < len(found["scores"]):
            shown = expected["scores"] >= there.min()
            expected = {name: value[shown] for name, value in expected.items()}
        gaps = differences(expected, found, max(subject.encoder.image_size))
        same = gaps[gaps <= made.tolerance]
        total, others = total + len(gaps), others + len(gaps) - len(same)
        worst += same.tolist()
    detector.heads.score_thresh = least
    if not total or others > OTHERS * total:
        raise RunError(
            f"reloaded, the export finds {others} of {total} objects otherwise, by more than "
            f"{made.tolerance:.0e}: nothing written"
        )
    words = f"by at most {max(worst):.1e} (scores, masks, boxes in sides of the image) "
    return f"{words}in {total - others} of {total} objects of all scores"


def differences(
    expected: dict[str, Tensor], found: dict[str, Tensor], side: int
) -> Float[Tensor, " N"]:
    """By how much each expected object differs from the one of its class that is most like it."""
    boxes = (expected["boxes"][:, None] - found["boxes"][None]).abs().amax(2) / side
    gaps = torch.maximum(boxes, (expected["scores"][:, None] - found["scores"][None]).abs())
    gaps = gaps.masked_fill(expected["labels"][:, None] != found["labels"][None] + 1, torch.inf)
    least, at = gaps.min(1)
    if "masks" in expected:
        masks = (expected["masks"] - found["masks"][at]).abs().flatten(1).amax(1)
        least = torch.maximum(least, masks)
    return least
