"""What was measured of a segmenter or a detector, in sentences for its card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmae.report.words.limits import markdown, name_of
from torchmae.runfolder import read_config, read_results

INTERVAL = "95 % interval by the bootstrap over images"


def measured(run: Path, what: str) -> list[str]:
    """A line for each measurement in results.json: how good, on which images, how.

    Args:
        run: the run folder.
        what: "segmenter" or "detector"; of anything else there is no line.
    """
    if what not in SENTENCES:
        return []
    verb, sentence = SENTENCES[what]
    trained_on = name_of(read_config(run)["config"].get("data"))
    lines = []
    for record in read_results(run):
        found = record["results"]
        if record["verb"] == verb:
            for name in ("last", "best") if found["best"] != found["last"] else ("last",):
                chosen = ", chosen on these same images, which flatters" * (name == "best")
                lines.append(
                    f"Validation images of {trained_on}, which were not trained on; the {name} "
                    f"weights{chosen}: {sentence(found[name])}"
                )
        elif record["verb"] == "evaluate":
            name = "best" if record["settings"].get("best") else "last"
            data = name_of(record["settings"].get("data"))
            lines.append(f"mae evaluate on {data}, the {name} weights: {sentence(found)}")
    return lines


def of_segmenter(found: Mapping[str, Any]) -> str:
    """The scores of `SegmentationScores.summary`."""
    return (
        f"mean IoU {found['miou']:.1%} over all pixels of {found['count']} images together "
        f"({INTERVAL}: {found['low']:.1%} to {found['high']:.1%}), Dice {found['dice']:.1%}, pixel "
        f"accuracy {found['pixel_accuracy']:.1%}; IoU of {of_classes(found['iou'])}."
    )


def of_detector(found: Mapping[str, Any]) -> str:
    """The scores of `DetectionScores.summary`, of boxes and of masks."""
    parts = []
    for kind in ("masks", "boxes"):
        if kind in found:
            one = found[kind]
            parts.append(
                f"COCO's AP of {kind} {one['ap']:.1%} ({INTERVAL}: {one['low']:.1%} to "
                f"{one['high']:.1%}), AP50 {one['ap50']:.1%}, AP75 {one['ap75']:.1%}; AP of "
                f"{of_classes(one['by_class'])}"
            )
    one = found["boxes"]
    return (
        f"{'. '.join(parts)}. {one['images']} images, {one['objects']} objects, at most "
        f"{one['max_detections']} detections an image."
    )


def of_classes(scores: Mapping[str, float]) -> str:
    """The score of each class, the best first."""
    order = sorted(scores.items(), key=lambda item: -item[1])
    return ", ".join(f"{markdown(name)} {score:.1%}" for name, score in order)


# By what a run holds: the verb that trains it, and the words for its scores.
SENTENCES = {"segmenter": ("segment", of_segmenter), "detector": ("detect", of_detector)}
