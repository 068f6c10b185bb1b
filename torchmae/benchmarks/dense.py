"""`mae bench dense`: segmenters and detectors, a training step and a prediction, beside
torchvision's Mask R-CNN on a ResNet-50."""

import logging
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from torchmae.benchmarks.config import Bench, models, patch_size
from torchmae.benchmarks.timing import (
    Candidate,
    benchmark_interleaved,
    speed_beside,
    spread,
    step_memory_mb,
)
from torchmae.errors import library
from torchmae.models.detection.detector import Detector, image_keys
from torchmae.models.segmentation.losses import pixel_cross_entropy
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.models.sizes import size_of
from torchmae.models.vit import ViT
from torchmae.models.weights import seeded
from torchmae.train.optim import param_groups_weight_decay

logger = logging.getLogger(__name__)

CLASSES = 20
OBJECTS = 20  # of an image
PEER = "torchvision's maskrcnn_resnet50_fpn_v2"
LR = 1e-4
WEIGHT_DECAY = 0.05

Loss = Callable[[], Tensor]


def dense(config: Bench, device: torch.device) -> dict[str, Any]:
    """Images/s and memory of both heads of a segmenter and both detectors, for each model."""
    library("torchvision", "detection")
    return {"models": {name: one_model(config, name, device) for name in models(config.model)}}


def one_model(config: Bench, name: str, device: torch.device) -> dict[str, Any]:
    shape = (config.batch_size or 1, 3, config.image_size, config.image_size)
    with seeded(0):
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        kinds: dict[str, Callable[[], Case]] = {
            "segmenter, fpn": lambda: segmenter(config, name, "fpn", images),
            "segmenter, upernet": lambda: segmenter(config, name, "upernet", images),
            "Faster R-CNN": lambda: detector(config, name, "faster_rcnn", images),
            "Mask R-CNN": lambda: detector(config, name, "mask_rcnn", images),
            PEER: lambda: peer(images),
        }
        cases = {kind: make() for kind, make in kinds.items()}
        rows = []
        for what in ("train", "predict"):
            found = [case.candidate(kind, what, config) for kind, case in cases.items()]
            seconds = benchmark_interleaved(found, config.rounds, device)
            for one in found:
                own = seconds[one.name]
                beside = None if one.name == PEER else speed_beside(own, seconds[PEER])
                rows.append(
                    {
                        "name": one.name,
                        "what": what,
                        "images_per_s": median(len(images) / s for s in own),
                        "parameters": sum(p.numel() for p in cases[one.name].model.parameters()),
                        "peak_memory_mb": step_memory_mb(one, device),
                        "speed": beside,
                        "seconds": own,
                    }
                )
    logger.info("\n".join(table(name, config, rows)))
    return {"rows": rows}


class Case:
    """A model with what it does in a step of training and in a prediction.

    Args:
        model: on the device.
        loss: of the batch, in training mode.
        predict: of the batch, in evaluation mode.
    """

    def __init__(self, model: nn.Module, loss: Loss, predict: Callable[[], object]):
        self.model = model
        self.loss = loss
        self.predict = predict
        groups = param_groups_weight_decay(model, WEIGHT_DECAY)
        self.optimizer = torch.optim.AdamW(groups, LR, fused=True)

    def candidate(self, name: str, what: str, config: Bench) -> Candidate:
        """What is timed: "train" or "predict"."""
        kind = next(self.model.parameters()).device.type
        autocast = torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bf16")

        def train() -> None:
            self.model.train()
            self.optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = self.loss()
            loss.backward()
            self.optimizer.step()

        def predict() -> None:
            self.model.eval()
            with autocast, torch.no_grad():
                self.predict()

        if what == "train":
            return Candidate(name, train, 0.0, self.model, self.optimizer)
        return Candidate(name, predict, 0.0, self.model)


def encoder(config: Bench, name: str) -> ViT:
    sizes: dict[str, Any] = size_of(name)
    return ViT((config.image_size,) * 2, patch_size(config, name), 3, **sizes)


def segmenter(config: Bench, name: str, head: str, images: Tensor) -> Case:
    """With the widths of `mae segment` on a GPU, and UperNet's second head."""
    model = Segmenter(
        encoder(config, name),
        [str(i) for i in range(CLASSES)],
        head,
        width=256 if head == "fpn" else 512,
        auxiliary=head == "upernet",
    ).to(images.device)
    labels = torch.randint(0, CLASSES, (len(images), *images.shape[2:]), device=images.device)

    def loss() -> Tensor:
        main, *others = model.outputs(model.encoder.normalize(images))
        found = [
            pixel_cross_entropy(model.to_image(one, labels.shape[1:]), labels)
            for one in (main, *others)
        ]
        return found[0] + 0.4 * sum(found[1:], torch.zeros_like(found[0]))

    return Case(model, loss, lambda: model.predict(images))


def boxes_of(images: Tensor) -> Tensor:
    """Random boxes of an eighth to a quarter of the side: float32 [OBJECTS, 4]."""
    side = images.shape[2]
    corner = torch.rand(OBJECTS, 2, device=images.device) * side * 3 / 4
    length = (1 + torch.rand(OBJECTS, 2, device=images.device)) * side / 8
    return torch.cat([corner, corner + length], dim=1)


def detector(config: Bench, name: str, kind: str, images: Tensor) -> Case:
    """ViTDet's widths and 512 sampled proposals."""
    model = Detector(encoder(config, name), [str(i) for i in range(CLASSES)], kind)
    model.to(images.device)
    device = images.device
    targets = []
    for _ in images:
        target = {
            "boxes": boxes_of(images),
            "labels": torch.randint(1, CLASSES + 1, (OBJECTS,), device=device),
            "crowds": torch.zeros(0, 4, device=device),
        }
        if model.has_masks:
            target["masks"] = torch.ones(OBJECTS, 56, 56, dtype=torch.uint8, device=device)
            target["has_mask"] = torch.ones(OBJECTS, dtype=torch.bool, device=device)
        targets.append(target)
    number = torch.arange(len(images), device=device)
    keys = image_keys(0, torch.zeros_like(number), number)

    def loss() -> Tensor:
        found = model.losses(model.encoder.normalize(images), targets, keys)
        return torch.stack(list(found.values())).sum(0).mean()

    return Case(model, loss, lambda: model.predict(images))


def peer(images: Tensor) -> Case:
    """torchvision's model with new weights, at the size of the images; its masks are dense."""
    from torchvision.models import detection

    side, device = images.shape[2], images.device
    model: nn.Module = detection.maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=side,
        max_size=side,
    ).to(device)
    pixels = [image.float() / 255 for image in images]
    targets = []
    for _ in images:
        boxes = boxes_of(images)
        masks = torch.zeros(OBJECTS, side, side, dtype=torch.uint8, device=device)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), device=device)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})

    def loss() -> Tensor:
        found: dict[str, Tensor] = model(pixels, targets)
        return torch.stack([one.float() for one in found.values()]).sum()

    return Case(model, loss, lambda: model(pixels))


def table(name: str, config: Bench, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"\n{name}, {config.image_size} px, {OBJECTS} objects an image, weights not trained"
    head = f"{'images/s':>10}{'memory MB':>11}{'parameters':>12}"
    for what, title in (("train", "training step"), ("predict", "prediction")):
        yield f"{title:<42}{head}   speed beside {PEER} (least to most)"
        for row in rows:
            if row["what"] == what:
                memory = row["peak_memory_mb"]
                text = "-" if memory is None else f"{memory:.0f}"
                line = f"{row['name']:<42}{row['images_per_s']:>10.3g}{text:>11}"
                beside = "1" if row["speed"] is None else spread(row["speed"])
                yield f"{line}{row['parameters'] / 1e6:>10.1f} M   {beside}"
