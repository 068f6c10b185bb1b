"""How good label maps are: IoU, Dice, accuracy and boundary F over a whole set, with intervals."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt8
from torch import Tensor

from torchmae.data.dense.masks import IGNORE
from torchmae.data.dense.segmentation import Example, Examples
from torchmae.data.sources.source import BadFile
from torchmae.data.workers import Loading
from torchmae.errors import UserError
from torchmae.eval.classification import (
    BINS,
    DETAILS,
    Bin,
    bins_of,
    calibration_error,
    nonzero,
    sums_by_confidence,
)
from torchmae.eval.extract import shown
from torchmae.settings.defaults import workers_for
from torchmae.train.distributed import available_cores

logger = logging.getLogger(__name__)

RESAMPLES = 1000  # of the images, for an interval
WORST = 8  # images whose predictions are kept
TOLERANCE = 0.0075  # of the image's diagonal, of boundaries (Csurka et al. 2013)

Predictor = Callable[
    [Shaped[Tensor, "B C H W"]], tuple[UInt8[Tensor, "B H W"], Float[Tensor, "B H W"]]
]
"""From uint8 images on the device to the number of the class of each pixel, and its probability."""

Areas = Int64[np.ndarray, "3 classes"]
"""Of one image: pixels of each class that are right, that are predicted, that are labelled."""


@dataclass(frozen=True)
class SegmentationScores:
    """The scores of label maps; all but counts are within 0..1.

    Over the whole set, not image by image: the IoU of a class is that of all its pixels together.
    A class that is neither labelled nor predicted has no score; one that is only predicted has 0.

    Args:
        count: images.
        pixels: labelled pixels.
        miou: the mean of the classes' IoU.
        low: lower end of its 95 % interval, by the bootstrap over images.
        high: upper end.
        dice: the mean of the classes' Dice, 2 right / (predicted + labelled).
        pixel_accuracy: the share of labelled pixels that are right.
        commonest: the mean IoU of a map that has the commonest class everywhere.
        iou: of each class, by name.
        class_dice: likewise.
        boundary_f: the mean over images and classes of the F score of boundaries; None: not asked.
        calibration_error: of the labelled pixels, by 15 bins of their probability. Pixels of an
            image are no independent draws, so it is that of these images.
        confusion: pixels, [true class][predicted class].
        calibration: of each bin of probability pixels, their mean probability, their accuracy.
    """

    count: int
    pixels: int
    miou: float
    low: float
    high: float
    dice: float
    pixel_accuracy: float
    commonest: float
    iou: dict[str, float]
    class_dice: dict[str, float]
    boundary_f: float | None
    calibration_error: float
    confusion: list[list[int]]
    calibration: list[Bin]

    def summary(self) -> dict[str, Any]:
        """The single numbers, and those of classes, for results.json."""
        found = {name: value for name, value in vars(self).items() if name not in DETAILS}
        return {name: value for name, value in found.items() if value is not None}

    def detail(self, of: str, classes: Sequence[str]) -> dict[str, Any]:
        """The others, for classes.json."""
        return {
            "of": of,
            "unit": "pixels",
            "classes": list(classes),
            "confusion": nonzero(self.confusion),
            "calibration": self.calibration,
        }


@dataclass
class Tally:
    """What was counted of the images so far.

    Args:
        classes: how many there are.
        boundaries: whether those are measured too.
    """

    classes: int
    boundaries: bool = False
    confusion: Int64[np.ndarray, "classes classes"] = field(init=False)
    sure: Float64[Tensor, "3 bins"] = field(init=False)
    areas: list[Areas] = field(default_factory=list)
    boundary: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.classes, self.classes), dtype=np.int64)
        self.sure = torch.zeros(3, BINS, dtype=torch.float64)

    def add(
        self,
        predicted: UInt8[Tensor, "H W"],
        probability: Float[Tensor, "H W"],
        labels: UInt8[Tensor, "H W"],
    ) -> Int64[np.ndarray, "classes classes"]:
        """Counts one image; returns its own confusion matrix."""
        known = labels != IGNORE
        self.sure += sums_by_confidence(probability[known], (predicted == labels)[known])
        own = confusion_of(predicted, labels, self.classes)
        self.confusion += own
        self.areas.append(np.stack([own.diagonal(), own.sum(0), own.sum(1)]))
        if self.boundaries:
            self.boundary += boundary_scores(predicted, labels, self.classes)
        return own

    def scores(self, names: Sequence[str]) -> SegmentationScores:
        """Of all images so far; `UserError` where no pixel is labelled."""
        total = self.confusion.sum()
        if not total:
            raise UserError("no pixel of the images to measure on is labelled")
        labelled = self.confusion.sum(1)
        areas = np.stack(self.areas)
        iou, dice = overlaps(areas.sum(0))
        low, high = bootstrap(areas)
        scored = [(name, i) for i, name in enumerate(names) if not np.isnan(iou[i])]
        return SegmentationScores(
            count=len(areas),
            pixels=int(total),
            miou=float(np.nanmean(iou)),
            low=low,
            high=high,
            dice=float(np.nanmean(dice)),
            pixel_accuracy=float(self.confusion.trace() / total),
            # Right in its own pixels, wrong in those of all other classes that occur.
            commonest=float(labelled.max() / total / np.count_nonzero(labelled)),
            iou={name: float(iou[i]) for name, i in scored},
            class_dice={name: float(dice[i]) for name, i in scored},
            boundary_f=float(np.mean(self.boundary)) if self.boundary else None,
            calibration_error=calibration_error(self.sure),
            confusion=self.confusion.tolist(),
            calibration=bins_of(self.sure),
        )


def confusion_of(
    predicted: UInt8[Tensor, "H W"], labels: UInt8[Tensor, "H W"], classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """Labelled pixels of one image, [true class][predicted class]."""
    known = labels != IGNORE
    pairs = labels[known].long() * classes + predicted[known].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu().numpy()


def overlaps(
    areas: Int64[np.ndarray, "*B 3 classes"] | Float64[np.ndarray, "*B 3 classes"],
) -> tuple[Float64[np.ndarray, "*B classes"], Float64[np.ndarray, "*B classes"]]:
    """IoU and Dice of each class; NaN for one that is neither labelled nor predicted."""
    right, said, true = np.moveaxis(np.asarray(areas, dtype=np.float64), -2, 0)
    union = said + true - right
    with np.errstate(invalid="ignore"):
        return right / union, 2 * right / (said + true)


def image_iou(areas: Areas) -> float | None:
    """The mean IoU of an image over its classes; None where no pixel is labelled."""
    return float(np.nanmean(overlaps(areas)[0])) if areas[2].any() else None


def bootstrap(areas: Int64[np.ndarray, "N 3 classes"], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean IoU: its 2.5 and 97.5 % quantiles over `RESAMPLES` sets of as
    many images, drawn with replacement (Efron 1979)."""
    count = len(areas)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    sums = (draws.astype(np.float64) @ areas.reshape(count, -1)).reshape(
        RESAMPLES, *areas.shape[1:]
    )
    iou, _ = overlaps(sums)
    there = ~np.isnan(iou).all(1)  # a draw may have no labelled pixel
    low, high = np.quantile(np.nanmean(iou[there], axis=1), [0.025, 0.975])
    return float(low), float(high)


def boundary_scores(
    predicted: UInt8[Tensor, "H W"], labels: UInt8[Tensor, "H W"], classes: int
) -> list[float]:
    """The F score of the boundary of each class that an image has (Csurka et al. 2013): how much of
    the predicted boundary is near a true one, and how much of the true one near a predicted one.

    Near is within `TOLERANCE` of the diagonal in both directions, at least one pixel.
    """
    known = labels != IGNORE
    reach = max(1, round(TOLERANCE * float(np.hypot(*labels.shape))))
    found = []
    for number in labels[known].unique().tolist():
        edges = [boundary(one == number) & known for one in (predicted, labels)]
        near = [grown(edge, reach) for edge in edges]
        counts = [int(edge.sum()) for edge in edges]
        if not counts[1]:
            continue  # the class fills the image
        right = [int((edges[i] & near[1 - i]).sum()) for i in range(2)]
        precision, recall = (hit / max(1, count) for hit, count in zip(right, counts))
        found.append(2 * precision * recall / max(precision + recall, 1e-12))
    return found


def boundary(region: Bool[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """The pixels of a region that have a neighbour outside of it, edges of the image left out."""
    return region & grown(~region, 1)


def grown(region: Bool[Tensor, "H W"], reach: int) -> Bool[Tensor, "H W"]:
    """A region and all within so many pixels of it, across and down."""
    side = 2 * reach + 1
    across = F.max_pool2d(region[None, None].float(), (1, side), 1, (0, reach))
    return F.max_pool2d(across, (side, 1), 1, (reach, 0))[0, 0] > 0


class Worst(NamedTuple):
    """An image that is among the worst.

    Attributes:
        score: its mean IoU.
        number: in the set.
        predicted: its map.
    """

    score: float
    number: int
    predicted: UInt8[Tensor, "H W"]


class Measured(NamedTuple):
    """What a pass over labelled images gives.

    Attributes:
        tally: the counts.
        ids: the numbers of the images, in the order of the tally.
        bad: files that cannot be used.
        worst: the images with the lowest mean IoU, the worst first.
    """

    tally: Tally
    ids: list[int]
    bad: list[BadFile]
    worst: list[Worst]


@torch.no_grad()
def measure(
    predict: Predictor,
    examples: Examples,
    classes: int,
    device: torch.device,
    boundaries: bool = False,
) -> Measured:
    """Compares predictions with labels, image by image.

    Args:
        predict: such as `Segmenter.predict_sure`, on the device.
        examples: the images with their labels.
        classes: how many there are.
        device: where it computes.
        boundaries: whether these are measured too.

    Raises:
        UserError: no image can be used.
    """
    tally = Tally(classes, boundaries)
    ids: list[int] = []
    bad: list[BadFile] = []
    worst: list[Worst] = []
    for found in each(examples, device, "measure"):
        if isinstance(found, BadFile):
            bad.append(found)
            continue
        assert found.labels is not None
        predicted, probability = predict(found.image.unsqueeze(0).to(device))
        predicted = predicted[0].cpu()
        tally.add(predicted, probability[0].cpu(), found.labels)
        ids.append(found.number)
        score = image_iou(tally.areas[-1])
        if score is not None:
            worst = [*worst, Worst(score, found.number, predicted)]
            worst = sorted(worst, key=lambda one: one.score)[:WORST]
    if not ids:
        raise UserError(f"none of {len(examples)} images can be measured on; the first: {bad[0]}")
    return Measured(tally, ids, bad, worst)


def each(examples: Examples, device: torch.device, title: str) -> Iterator[Example | BadFile]:
    """The images one by one, loaded by processes where there are many."""
    workers = 0
    if len(examples) > 64:
        cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = workers_for(cores, device.type == "cuda")
    yield from shown(Loading(examples, range(len(examples)), workers), title, len(examples))
