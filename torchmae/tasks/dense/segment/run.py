"""`mae segment`: a class for each pixel, from a run and images with masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.dense.placement import ScaleJitterCrop
from torchmae.data.dense.segmentation import (
    Examples,
    SegmentationCrop,
    SegmentationSets,
    look,
    open_sets,
    stored_classes,
)
from torchmae.data.loader import Batches
from torchmae.errors import UserError, printable
from torchmae.eval.segmentation import Measured, SegmentationScores, measure
from torchmae.models.encoders import Backbone
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.report.sheets.worst import draw_worst_maps
from torchmae.settings.defaults import Rule
from torchmae.settings.groups import test_as_run
from torchmae.tasks.dense import run as dense
from torchmae.tasks.dense.job import Looked, split_of
from torchmae.tasks.dense.segment.config import RULES, ResolvedSegment, Segment, check
from torchmae.tasks.dense.segment.task import SegmentTask
from torchmae.tasks.dense.start import padding_of
from torchmae.train.distributed import World

LARGEST_WEIGHT = 10.0  # of a rare class


def run(config: Segment, quiet: bool = False) -> Path:
    """Trains a segmenter, or resumes its training; returns the run folder."""
    return dense.run(config, Segmentation(), quiet)


@dataclass(frozen=True)
class SegmentScores:
    """The scores of a validation."""

    found: SegmentationScores
    measured: Measured

    @property
    def score(self) -> float:
        return self.found.miou

    def logged(self) -> dict[str, float]:
        return {"mIoU": self.found.miou}

    def summary(self) -> dict[str, Any]:
        return self.found.summary()

    def detail(self, of: str, classes: Sequence[str]) -> dict[str, Any]:
        return self.found.detail(of, classes)

    def draw_worst(self, sets: SegmentationSets, model: Segmenter, path: Path) -> None:
        draw_worst_maps(sets.val, model, self.measured.worst, len(self.measured.ids), path)


class Segmentation:
    """What `mae segment` brings to the runner of dense prediction."""

    name: str = "segment"
    resolved: type[ResolvedSegment] = ResolvedSegment
    rules: Mapping[str, Rule] = RULES

    def check(self, config: Segment, /) -> None:
        check(config)

    def open(self, config: Segment, decode: DecodeOptions, listing: Listing, /) -> SegmentationSets:
        source = config.source
        return open_sets(source.data, source.val, decode, split_of(config), listing)

    def look(self, sets: SegmentationSets, config: Segment, /) -> Looked[SegmentationSets]:
        table, names = named_classes(config.segment.classes)
        found = look(sets, table, names, config.segment.ignore, config.source.data)
        coding = found.classes.coding
        settings: dict[str, Any] = {
            "coding": coding.kind,
            "values": coding.values,
            "ignored": coding.ignored,
        }
        if config.segment.class_weights == "balanced":
            settings["weights"] = balanced(found.pixels)
        return Looked(sets.with_classes(found.classes), settings, found.bad, found.notes)

    def known(self, sets: SegmentationSets, stored: Mapping[str, Any], /) -> SegmentationSets:
        return sets.with_classes(stored_classes(stored))

    def build(
        self, config: ResolvedSegment, encoder: Backbone, sets: SegmentationSets, /
    ) -> Segmenter:
        own = config.segment
        return Segmenter(
            encoder,
            sets.names,
            own.head,
            own.head_width,
            config.model.pyramid,
            auxiliary=own.head == "upernet" and own.auxiliary > 0,
            short_side=own.short_side,
            colors=sets.colors,
        )

    def rebuild(self, described: dict[str, Any], /) -> Segmenter:
        return Segmenter.build(described)

    def batches(
        self, config: ResolvedSegment, sets: SegmentationSets, model: Segmenter, world: World, /
    ) -> Batches:
        encoder, seed = model.encoder, config.optim.seed
        size, own = encoder.image_size, config.segment
        scale = 1.0 if own.short_side is None else own.short_side / min(size)
        low, high = config.crop.jitter
        place = ScaleJitterCrop(size, seed, (low * scale, high * scale), "short", config.crop.flip)
        fill = padding_of(encoder)
        crop = SegmentationCrop(place, fill, own.photometric)
        batch, source = config.optim.batch_size, sets.train.source
        return Batches(source, crop, batch, seed, world.rank, world.size, sets.train.labels)

    def task(self, model: Segmenter, config: ResolvedSegment, /) -> SegmentTask:
        return SegmentTask(model, config)

    def measure(
        self, model: Segmenter, sets: SegmentationSets, config: ResolvedSegment, world: World, /
    ) -> SegmentScores:
        examples = Examples(sets.val.source, sets.val.labels)
        predict = partial(model.predict_sure, **test_as_run(config.test, {}))
        found = measure(predict, examples, len(model.classes), world.device)
        return SegmentScores(found.tally.scores(model.classes), found)

    def describe(
        self, config: ResolvedSegment, model: Segmenter, sets: SegmentationSets, /
    ) -> dict[str, str]:
        own = config.segment
        names = ", ".join(map(printable, sets.names[:12]))
        more = ", ..." if len(sets.names) > 12 else ""
        ignored = f"; ignored: {', '.join(map(str, own.ignored))}" if own.ignored else ""
        size = sum(p.numel() for p in model.parameters()) - sum(
            p.numel() for p in model.encoder.parameters()
        )
        return {
            "classes": f"{len(sets.names)} ({names}{more}), by "
            f"{sets.coding.kind} of the masks{ignored}",
            "head": f"{own.head}, {own.head_width} wide ({size:,} parameters)",
        }

    def words(self, scores: Mapping[str, Any], /) -> str:
        simple, warning = scores.get("commonest"), ""
        if simple is not None and scores["low"] <= simple:
            warning = f"; not clearly better than the commonest class everywhere ({simple:.1%})"
        return (
            f"mIoU {scores['miou']:.1%} (95 % interval {scores['low']:.1%} to "
            f"{scores['high']:.1%}), Dice {scores['dice']:.1%}, pixel accuracy "
            f"{scores['pixel_accuracy']:.1%}, {scores['count']} images{warning}"
        )


def named_classes(classes: tuple[str, ...] | None) -> tuple[str | None, tuple[str, ...]]:
    """A file with the classes, or their names."""
    if classes is None:
        return None, ()
    if len(classes) == 1:
        if not Path(classes[0]).expanduser().is_file():
            raise UserError(
                f"--classes {classes[0]}: there is no such file, and one class is too few"
            )
        return str(Path(classes[0]).expanduser()), ()
    return None, classes


def balanced(pixels: tuple[int, ...]) -> tuple[float, ...]:
    """A weight for each class: the root of 1 / its share of the pixels, so that the mean over
    pixels is 1; at most `LARGEST_WEIGHT`, and 1 for a class without pixels."""
    total = sum(pixels)
    roots = [(total / count) ** 0.5 if count else 0.0 for count in pixels]
    mean = sum(root * count for root, count in zip(roots, pixels)) / total
    return tuple(min(LARGEST_WEIGHT, root / mean) if root else 1.0 for root in roots)
