"""`mae detect`: boxes and masks of objects, from a run and images with annotations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.dense.detection import (
    DetectionCrop,
    DetectionSets,
    notes_of,
    object_sides,
    open_sets,
    other_sizes,
)
from torchmae.data.dense.placement import ScaleJitterCrop
from torchmae.data.loader import Batches
from torchmae.data.scan import scan
from torchmae.data.sources.source import BadFile
from torchmae.errors import UserError, library, printable
from torchmae.eval.detection import (
    SURE,
    DetectionScores,
    Measured,
    all_scores,
    detail,
    measure,
    worst_images,
)
from torchmae.models.detection.detector import Detector
from torchmae.models.encoders import Backbone
from torchmae.report.sheets.worst import draw_worst_objects
from torchmae.settings.defaults import Rule
from torchmae.tasks.dense import run as dense
from torchmae.tasks.dense.detect.config import (
    MOST_DETECTIONS,
    RULES,
    Detect,
    ResolvedDetect,
    check,
)
from torchmae.tasks.dense.detect.task import DetectTask
from torchmae.tasks.dense.job import Looked, split_of
from torchmae.tasks.dense.start import padding_of
from torchmae.train.distributed import World

DIFFERENT = 1.5  # the 90th percentile of the images' sides over the 10th: images of other scales


def run(config: Detect, quiet: bool = False) -> Path:
    """Trains a detector, or resumes its training; returns the run folder."""
    library("torchvision", "detection")
    library("faster_coco_eval", "detection")
    return dense.run(config, Detection(), quiet)


@dataclass(frozen=True)
class DetectScores:
    """The scores of a validation: of "boxes", and with masks of "masks"."""

    found: dict[str, DetectionScores]
    measured: Measured

    @property
    def score(self) -> float:
        return list(self.found.values())[-1].ap

    def logged(self) -> dict[str, float]:
        return {f"AP_{kind}": scores.ap for kind, scores in self.found.items()}

    def summary(self) -> dict[str, Any]:
        count = {"count": self.found["boxes"].images}
        return count | {kind: scores.summary() for kind, scores in self.found.items()}

    def detail(self, of: str, classes: Sequence[str]) -> dict[str, Any]:
        return detail(self.found, of)

    def draw_worst(self, sets: DetectionSets, model: Detector, path: Path) -> None:
        worst = worst_images(self.measured, len(model.classes), SURE)
        draw_worst_objects(sets.val, model, worst, SURE, len(self.measured.ids), path)


class Detection:
    """What `mae detect` brings to the runner of dense prediction."""

    name: str = "detect"
    resolved: type[ResolvedDetect] = ResolvedDetect
    rules: Mapping[str, Rule] = RULES

    def check(self, config: Detect, /) -> None:
        check(config)

    def open(self, config: Detect, decode: DecodeOptions, listing: Listing, /) -> DetectionSets:
        source = config.source
        return open_sets(source.data, source.val, decode, split_of(config), listing)

    def look(self, sets: DetectionSets, config: Detect, /) -> Looked[DetectionSets]:
        unfit = [other_sizes(part) for part in sets.parts]
        bad = [
            BadFile(part.source.name(i), "of another size than its annotations say")
            for part, gone in zip(sets.parts, unfit)
            for i in gone
        ]
        if any(len(gone) == len(part.objects) for part, gone in zip(sets.parts, unfit)):
            raise UserError(
                f"no image of {config.source.data} is of the size that its annotations say; the "
                f"first: {sets.lines()[-1]}"
            )
        sets = sets.without(*unfit)
        own, notes = config.detect, notes_of(sets)
        settings: dict[str, Any] = {"unfit": tuple(unfit[0]), "unfit_val": tuple(unfit[1])}
        if own.masks is None:
            settings["masks"] = sets.train.has_masks
        elif own.masks and not sets.train.has_masks:
            raise UserError(f"--masks: the objects of {config.source.data} have boxes only")
        fit = own.fit
        if fit is None:
            fit, note = chosen_fit(sets)
            notes += note
        settings["fit"] = fit
        settings["object_side"] = small_side(sets, fit)
        if own.max_detections is None:
            settings["max_detections"], note = chosen_detections(sets)
            notes += note
        if sets.lines():
            notes.append("each of these objects and images is named in bad-files.jsonl")
        return Looked(sets, settings, bad, notes, sets.findings)

    def known(self, sets: DetectionSets, stored: Mapping[str, Any], /) -> DetectionSets:
        settings = stored["config"]
        return sets.without(settings.get("unfit") or (), settings.get("unfit_val") or ())

    def build(self, config: ResolvedDetect, encoder: Backbone, sets: DetectionSets, /) -> Detector:
        own = config.detect
        return Detector(
            encoder,
            sets.classes,
            "mask_rcnn" if own.masks else "faster_rcnn",
            own.head_width,
            config.model.pyramid,
            own.anchor,
            own.roi_samples,
            own.fit,
            own.max_detections,
        )

    def rebuild(self, described: dict[str, Any], /) -> Detector:
        return Detector.build(described)

    def batches(
        self, config: ResolvedDetect, sets: DetectionSets, model: Detector, world: World, /
    ) -> Batches:
        encoder, seed, crop = model.encoder, config.optim.seed, config.crop
        place = ScaleJitterCrop(encoder.image_size, seed, crop.jitter, model.fit, crop.flip)
        fill = padding_of(encoder)
        transform = DetectionCrop(place, fill, model.has_masks)
        source, objects = sets.train.source, sets.train.objects
        batch = config.optim.batch_size
        return Batches(source, transform, batch, seed, world.rank, world.size, objects)

    def task(self, model: Detector, config: ResolvedDetect, /) -> DetectTask:
        return DetectTask(model, config)

    def measure(
        self, model: Detector, sets: DetectionSets, config: ResolvedDetect, world: World, /
    ) -> DetectScores:
        found = measure(model.predict, sets.val, world.device)
        scores = all_scores(found, model.classes, model.has_masks, model.max_detections)
        return DetectScores(scores, found)

    def describe(
        self, config: ResolvedDetect, model: Detector, sets: DetectionSets, /
    ) -> dict[str, str]:
        counts = [sum(len(one) for one in part.objects) for part in sets.parts]
        names = ", ".join(map(printable, sets.classes[:12]))
        more = ", ..." if len(sets.classes) > 12 else ""
        heads = sum(p.numel() for p in model.parameters()) - sum(
            p.numel() for p in model.encoder.parameters()
        )
        kind = "Mask R-CNN" if model.has_masks else "Faster R-CNN"
        return {
            "objects": f"{counts[0]:,} to train on, {counts[1]:,} to validate on, of "
            f"{len(sets.classes)} class{'es' * (len(sets.classes) > 1)} ({names}{more})",
            "heads": f"{kind}, {model.width} wide ({heads:,} parameters), images at scale 1: "
            f"{model.fit}, up to {model.max_detections} detections an image",
        }

    def words(self, scores: Mapping[str, Any], /) -> str:
        parts = [
            f"AP {one['ap']:.1%} of {kind} (95 % interval {one['low']:.1%} to {one['high']:.1%}; "
            f"AP50 {one['ap50']:.1%}, AP75 {one['ap75']:.1%})"
            for kind, one in scores.items()
            if kind in ("masks", "boxes")
        ]
        first = scores["boxes"]
        return f"{', '.join(reversed(parts))}, {first['images']} images, {first['objects']} objects"


def image_sides(sets: DetectionSets) -> np.ndarray:
    """The longer side of each training image, in pixels; of those that can be read."""
    sides: np.ndarray = scan(sets.train_source).sizes.max(1)
    return sides[sides > 0]


def chosen_fit(sets: DetectionSets) -> tuple[str, list[str]]:
    """How large images are at scale 1, and a word where that is not the usual way.

    Images of microscopes have one scale and many sizes: fitted to one size, the cells of the larger
    ones would shrink.
    """
    low, high = np.percentile(image_sides(sets), [10, 90])
    if high <= DIFFERENT * low:
        return "long", []
    return "own", [
        f"images have sides of {low:.0f} to {high:.0f} px: they keep their pixels (--fit own); if "
        "they show things at different distances, --fit long"
    ]


def small_side(sets: DetectionSets, fit: str) -> float:
    """The tenth percentile of the objects' sides: in pixels, or with fit "long" as a share of the
    images' longer side."""
    side = float(np.percentile(object_sides(sets.train.objects), 10))
    return side if fit == "own" else side / float(np.median(image_sides(sets)))


def chosen_detections(sets: DetectionSets) -> tuple[int, list[str]]:
    """COCO's 100 detections an image, or a third more than the most objects; and a word then."""
    most = max(len(one) for part in sets.parts for one in part.objects)
    if most <= 75:
        return 100, []
    count = min(MOST_DETECTIONS, -(-most * 4 // 3 // 100) * 100)
    return count, [
        f"an image has {most} objects: up to {count} detections an image (--max-detections), of "
        "which AP counts as many; COCO counts 100"
    ]
