"""How good detections are: COCO's average precision of boxes and masks, with 95 % intervals.

Matching and accumulating are faster-coco-eval's, whose numbers are pycocotools'. The interval is a
bootstrap over images, which weights the matches of each image and matches nothing again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped
from torch import Tensor

from torchmae.data.dense.annotated import Annotated
from torchmae.data.dense.detection import Detections
from torchmae.data.dense.objects import (
    Mask,
    Objects,
    Rle,
    encode_rle,
    rasterize,
    text_of_counts,
)
from torchmae.data.dense.segmentation import Examples
from torchmae.data.sources.source import BadFile
from torchmae.errors import UserError, library
from torchmae.eval.classification import Bin, bins_of, sums_by_confidence
from torchmae.eval.segmentation import each
from torchmae.models.detection.detector import Found

RESAMPLES = 1000  # of the images, for an interval
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap, over which AP is averaged
RECALLS = np.linspace(0, 1, 101)  # at which precision is read (COCO)
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels (COCO)
WORST = 6  # images that are shown
SURE = 0.5  # the score from which on an object counts as found, in pictures
MOST = 1000  # detections of an image, where all of them count
KINDS = {"boxes": "bbox", "masks": "segm"}  # what overlaps; COCO's words


class Truth(NamedTuple):
    """An image to measure on: its sides, and the objects on it."""

    height: int
    width: int
    objects: Objects


class Matches(NamedTuple):
    """How the detections of one class in all images match its objects, by falling score.

    Attributes:
        image: whose detection it is.
        score: of each.
        hit: whether it is an object, for each threshold.
        counts: whether it counts at all: what matches a crowd does not.
        objects: how many each image has.
    """

    image: Int64[np.ndarray, " D"]
    score: Float64[np.ndarray, " D"]
    hit: Bool[np.ndarray, "T D"]
    counts: Bool[np.ndarray, "T D"]
    objects: Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class DetectionScores:
    """COCO's scores of boxes or masks, within 0..1.

    Args:
        ap: average precision: the mean over overlaps of 0.50, 0.55, ... 0.95 and over classes.
        low, high: its 95 % interval, by the bootstrap over images.
        ap50, ap75: at one overlap.
        recall: the largest recall, averaged like `ap` (COCO's AR).
        by_class: the AP of each class that has objects, by name.
        by_size: the AP of small (below 32 x 32 pixels), medium (below 96 x 96) and large objects;
            only of sizes that there are.
        images, objects: how many were measured on; crowds and difficult objects are not counted.
        max_detections: those with the highest scores that count, of each image and class.
        precision: of each bin of scores the detections in it, their mean score, and the share that
            is right: with an object of their class below, at an overlap of 0.5.
    """

    ap: float
    low: float
    high: float
    ap50: float
    ap75: float
    recall: float
    by_class: dict[str, float]
    by_size: dict[str, float]
    images: int
    objects: int
    max_detections: int
    precision: list[Bin]

    def summary(self) -> dict[str, Any]:
        """All but the bins, for results.json."""
        return {name: value for name, value in vars(self).items() if name != "precision"}


class Measured(NamedTuple):
    """What a pass over annotated images gives.

    Attributes:
        found: in each image.
        truth: what is there.
        ids: the numbers of the images.
        bad: files that cannot be read.
    """

    found: list[Detections]
    truth: list[Truth]
    ids: list[int]
    bad: list[BadFile]


def measure(
    predict: Callable[[Shaped[Tensor, "B C H W"]], list[Found]],
    annotated: Annotated,
    device: torch.device,
) -> Measured:
    """Finds objects in annotated images, one by one.

    Args:
        predict: from uint8 images on the device to what is in each.
        annotated: the images, and what is there.
        device: where it computes.

    Raises:
        UserError: no image can be read.
    """
    done = Measured([], [], [], [])
    for one in each(Examples(annotated.source), device, "measure"):
        if isinstance(one, BadFile):
            done.bad.append(one)
            continue
        height, width = one.image.shape[1:]
        (found,) = predict(one.image.unsqueeze(0).to(device))
        done.found.append(to_detections(found, height, width))
        done.truth.append(Truth(height, width, annotated.objects[one.number]))
        done.ids.append(one.number)
    if not done.ids:
        raise UserError(f"none of {len(annotated.source)} images can be measured on: {done.bad[0]}")
    return done


def to_detections(found: Found, height: int, width: int) -> Detections:
    """What a detector found in an image of these sides, on the CPU, with whole masks."""
    masks = None
    if found.masks is not None:
        windows = (found.window(i, height, width) for i in range(len(found.boxes)))
        masks = tuple(
            window_rle(one.numpy(), top, left, height, width) for one, top, left in windows
        )
    boxes, scores, classes = (one.cpu().numpy() for one in found[:3])
    return Detections(boxes, scores, classes, masks)


def window_rle(
    window: Bool[np.ndarray, "h w"], top: int, left: int, height: int, width: int
) -> Rle:
    """The run lengths of a mask that is False outside of a window; takes no memory of the whole."""
    columns = np.zeros((height, window.shape[1]), dtype=bool)
    columns[top : top + window.shape[0]] = window
    first, *rest = encode_rle(columns).counts
    before, after = left * height, (width - left - window.shape[1]) * height
    counts = [before + first, *rest]
    if len(counts) % 2:  # it ends outside of the mask
        counts[-1] += after
    elif after:
        counts.append(after)
    return Rle(height, width, tuple(counts))


def all_scores(
    found: Measured, classes: Sequence[str], masks: bool, max_detections: int
) -> dict[str, DetectionScores]:
    """The scores of "boxes", and with `masks` of "masks"."""
    return {
        kind: detection_scores(found.found, found.truth, classes, kind, max_detections)
        for kind in KINDS
        if kind == "boxes" or masks
    }


def detection_scores(
    found: Sequence[Detections],
    truth: Sequence[Truth],
    classes: Sequence[str],
    kind: str = "boxes",
    max_detections: int = 100,
) -> DetectionScores:
    """Compares what was found in some images with what is there.

    Args:
        found: of each image.
        truth: likewise.
        classes: their names.
        kind: "boxes" or "masks".
        max_detections: of each image and class; COCO's 100 is less than what some images have.

    Raises:
        UserError: there are no objects, or faster-coco-eval is missing.
    """
    count = sum(int((~one.objects.crowd).sum()) for one in truth)
    if not count:
        raise UserError(f"no objects in the {len(truth)} images to measure on: AP needs some")
    evaluation = evaluated(found, truth, len(classes), kind, max_detections)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    whole = precision[:, :, :, 0, -1]
    there = [k for k in range(len(classes)) if (whole[:, :, k] > -1).any()]
    by_size = {name: average(precision[:, :, :, i, -1]) for i, name in enumerate(SIZES, start=1)}
    matched = matches(evaluation, len(classes), len(truth))
    low, high = bootstrap(matched)
    return DetectionScores(
        ap=average(whole) or 0.0,
        low=low,
        high=high,
        ap50=average(whole[:1]) or 0.0,
        ap75=average(whole[5:6]) or 0.0,
        recall=average(recall[:, :, 0, -1]) or 0.0,
        by_class={classes[k]: average(whole[:, :, k]) or 0.0 for k in there},
        by_size={name: value for name, value in by_size.items() if value is not None},
        images=len(truth),
        objects=count,
        max_detections=max_detections,
        precision=precision_by_score(matched),
    )


def precision_by_score(found: Sequence[Matches]) -> list[Bin]:
    """How many detections of a score are right, at an overlap of 0.5, over all classes; crowds are
    left out."""
    scores, hits = (
        np.concatenate([values[one.counts[0]] for one, values in zip(found, columns)])
        for columns in ([one.score for one in found], [one.hit[0] for one in found])
    )
    return bins_of(sums_by_confidence(torch.from_numpy(scores), torch.from_numpy(hits)))


def detail(scores: Mapping[str, DetectionScores], of: str) -> dict[str, Any]:
    """What classes.json holds of a detector: precision by score, of boxes."""
    bins = scores["boxes"].precision
    return {"of": f"{of}, boxes", "unit": "detections", "calibration": bins}


def average(values: np.ndarray) -> float | None:
    """The mean of what is defined, which COCO marks by -1; None where nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def evaluated(
    found: Sequence[Detections],
    truth: Sequence[Truth],
    classes: int,
    kind: str,
    max_detections: int,
) -> Any:
    """faster-coco-eval's evaluation of the kind, with its matches."""
    core = library("faster_coco_eval", "detection")
    faster = library("faster_coco_eval.core.faster_eval_api", "detection")
    known = core.COCO(to_coco(truth, classes, kind))
    results = [one for i, some in enumerate(found) for one in to_results(some, i + 1, kind)]
    evaluation = faster.COCOeval_faster(
        known,
        known.loadRes(results)
        if results
        else core.COCO(to_coco(truth, classes, kind, objects=False)),
        KINDS[kind],
        ranges={name: list(limits) for name, limits in SIZES.items()},
        print_function=lambda *words: None,
        separate_eval=True,
    )
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def to_coco(
    truth: Sequence[Truth], classes: int, kind: str = "boxes", objects: bool = True
) -> dict[str, Any]:
    """The json of some images; their ids are 1, 2, ..., and so are those of classes.

    Args:
        truth: the images and their objects.
        classes: how many there are.
        kind: what is measured: "boxes" or "masks".
        objects: False leaves them out.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (height, width, known) in enumerate(truth, start=1):
        images.append({"id": i, "height": height, "width": width})
        for k in range(len(known) if objects else 0):
            mask = known.masks[k] if known.masks else None
            difficult = len(known.difficult) > 0 and bool(known.difficult[k])
            # Where masks are measured, an object without one is neither found nor missed.
            unknown = kind == "masks" and mask is None
            one = {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": int(known.classes[k]) + 1,
                "bbox": as_coco(known.boxes[k]),
                "area": area_of(mask, known.boxes[k], height, width),
                "iscrowd": int(known.crowd[k] or difficult or unknown),
                "segmentation": segmentation_of(mask, known.boxes[k]),
            }
            annotations.append(one)
    categories = [{"id": k + 1, "name": str(k)} for k in range(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def to_results(found: Detections, image: int, kind: str) -> list[dict[str, Any]]:
    """Entries of COCO's results format; classes are numbered from 1."""
    entries: list[dict[str, Any]] = []
    for k in range(len(found.boxes)):
        one: dict[str, Any] = {
            "image_id": image,
            "category_id": int(found.classes[k]) + 1,
            "score": float(found.scores[k]),
        }
        if kind == "masks":
            assert found.masks is not None
            one["segmentation"] = segmentation_of(found.masks[k], found.boxes[k])
        else:
            one["bbox"] = as_coco(found.boxes[k])
        entries.append(one)
    return entries


def as_coco(box: Float32[np.ndarray, " 4"]) -> list[float]:
    """x1 y1 x2 y2 to x y width height."""
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]


def segmentation_of(mask: Mask, box: Float32[np.ndarray, " 4"]) -> Any:
    """COCO's "segmentation" of a mask; of the box where there is none."""
    if isinstance(mask, Rle):
        return {"size": [mask.height, mask.width], "counts": text_of_counts(mask.counts)}
    if mask is None:
        x1, y1, x2, y2 = map(float, box)
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]
    return [polygon.reshape(-1).astype(float).tolist() for polygon in mask]


def area_of(mask: Mask, box: Float32[np.ndarray, " 4"], height: int, width: int) -> float:
    """Pixels of an object, by which it is small, medium or large."""
    if isinstance(mask, Rle):
        return float(sum(mask.counts[1::2]))
    if mask is None:
        x1, y1, x2, y2 = map(float, box)
        return (x2 - x1) * (y2 - y1)
    return float(rasterize(mask, height, width).sum())


def matches(evaluation: Any, classes: int, images: int) -> list[Matches]:
    """The matches of each class, from the evaluation of every image."""
    found = []
    for k in range(classes):
        # Ordered by class, size (0: all), image.
        first = k * (len(SIZES) + 1) * images
        each = [one.__getstate__() for one in evaluation._evalImgs_cpp[first : first + images]]
        scores = [np.array(state[2], dtype=np.float64) for state in each]
        score = np.concatenate(scores)
        order = np.argsort(-score, kind="mergesort")
        hit, ignored = (
            np.concatenate([np.array(s[at], dtype=bool).reshape(10, -1) for s in each], axis=1)
            for at in (0, 4)
        )
        image = np.repeat(np.arange(images), [len(one) for one in scores])
        objects = np.array([sum(not crowd for crowd in state[3]) for state in each])
        counts = ~ignored[:, order]
        found.append(Matches(image[order], score[order], hit[:, order], counts, objects))
    return found


def image_scores(found: Measured, classes: int, least: float) -> Float64[np.ndarray, " N"]:
    """The F score of each image: of detections with at least this score, matched with objects of
    their class at an overlap of 0.5; 1 where nothing is there and nothing is found.

    Args:
        found: the images.
        classes: how many there are.
        least: the score.
    """
    count = len(found.ids)
    evaluation = evaluated(found.found, found.truth, classes, "boxes", MOST)
    right, said, there = np.zeros((3, count))
    for one in matches(evaluation, classes, count):
        sure = one.counts[0] & (one.score >= least)
        said += np.bincount(one.image[sure], minlength=count)
        right += np.bincount(one.image[sure & one.hit[0]], minlength=count)
        there += one.objects
    both = said + there
    return np.where(both > 0, 2 * right / np.maximum(both, 1), 1.0)


class Worst(NamedTuple):
    """An image that is among the worst.

    Attributes:
        score: its F score.
        number: in the set.
        objects: what is there.
        found: what was found.
    """

    score: float
    number: int
    objects: Objects
    found: Detections


def worst_images(found: Measured, classes: int, least: float) -> list[Worst]:
    """The images with the lowest F score (`image_scores`), the worst first."""
    scores = image_scores(found, classes, least)
    order = np.argsort(scores, kind="stable")[:WORST].tolist()
    return [
        Worst(float(scores[i]), found.ids[i], found.truth[i].objects, found.found[i]) for i in order
    ]


def weighted_ap(
    found: Sequence[Matches], weights: Float64[np.ndarray, " N"]
) -> Float64[np.ndarray, " classes"]:
    """AP of each class in a set that has each image so many times; NaN without objects of it."""
    scores = np.full(len(found), np.nan)
    for k, one in enumerate(found):
        total = (one.objects * weights).sum()
        if not total:
            continue
        weight = weights[one.image]
        right = np.cumsum(one.hit * one.counts * weight, axis=1)
        wrong = np.cumsum(~one.hit * one.counts * weight, axis=1)
        precision = right / np.maximum(right + wrong, np.spacing(1))
        # The best precision at this recall or a higher one.
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        read = np.zeros((len(one.hit), len(RECALLS)))
        for t in range(len(one.hit)):
            at = np.searchsorted(right[t] / total, RECALLS, side="left")
            inside = at < best.shape[1]
            read[t, inside] = best[t, at[inside]]
        scores[k] = read.mean()
    return scores


def bootstrap(found: Sequence[Matches], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of AP by `RESAMPLES` sets of as many images, drawn with replacement (Efron
    1979): the basic one, 2 AP minus the 97.5 and 2.5 % quantiles.

    AP of few images is too high, since precision is read at its best, and that of resamples is
    higher still: the quantiles themselves lie on the wrong side. Of 40 sets of 25 random images,
    60 % held the AP of 2,000, and 90 % with these intervals; of sets of 100 images 88 and 95 %.
    """
    count = len(found[0].objects)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    scores = [weighted_ap(found, draw.astype(np.float64)) for draw in draws]
    means = [np.nanmean(score) for score in scores if not np.isnan(score).all()]
    low, high = np.quantile(means, [0.025, 0.975])
    ap = np.nanmean(weighted_ap(found, np.ones(count)))
    return max(0.0, float(2 * ap - high)), min(1.0, float(2 * ap - low))
