"""What the card of a segmenter or a detector says was measured, and what it cannot do."""

import json
from pathlib import Path
from typing import Any

from torchmae.report.words.limits import limits
from torchmae.report.words.measured import measured
from torchmae.runfolder import add_result

ENCODER = dict(image_size=[64, 64], patch_size=16, channels=3)


def a_run(folder: Path, verb: str, **model: Any) -> Path:
    folder.mkdir()
    about: dict[str, Any] = dict(
        torchmae="0.1.0", verb=verb, config={"data": "/home/me/cells", "run": "none"}
    )
    about |= dict(model=dict(encoder=ENCODER, **model))
    about |= dict(data=dict(count=100, val=dict(count=30)))
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def test_a_segmenter(tmp_path: Path) -> None:
    run = a_run(tmp_path / "r", "segment", segmenter="fpn", classes=["sky", "r*d"])
    assert measured(run, "segmenter") == [] and measured(run, "encoder") == []
    found: dict[str, Any] = dict(
        miou=0.625, low=0.5, high=0.7, dice=0.75, pixel_accuracy=0.9, count=30
    )
    found |= dict(iou={"r*d": 0.35, "sky": 0.9})
    add_result(run, "segment", {}, dict(last=found, best=found | {"miou": 0.64}))
    add_result(run, "evaluate", dict(data="/x/test", best=True), found)
    last, best, evaluated = measured(run, "segmenter")
    assert last.startswith('Validation images of "cells", which were not trained on; the last we')
    assert "mean IoU 62.5% over all pixels of 30 images together (95 % interval by the boot" in last
    assert r"50.0% to 70.0%), Dice 75.0%" in last and r"IoU of sky 90.0%, r\*d 35.0%." in last
    assert "chosen on these same images, which flatters: mean IoU 64.0%" in best
    assert evaluated.startswith('mae evaluate on "test", the best weights: mean IoU 62.5%')
    said = " ".join(limits(run, "segmenter"))
    assert "100 images with masks of 2 classes" in said and "30 others were for validation" in said
    assert "patches of 16 px" in said and "Every pixel gets one of the 2 classes" in said
    assert "Reconstructions are invented" not in said and "mean IoU on images" not in said


def test_a_detector(tmp_path: Path) -> None:
    model = dict(detector="mask_rcnn", classes=["cell"], max_detections=400)
    run = a_run(tmp_path / "r", "detect", **model)
    boxes: dict[str, Any] = dict(
        ap=0.5, low=0.4, high=0.6, ap50=0.8, ap75=0.55, by_class={"cell": 0.5}
    )
    boxes |= dict(images=30, objects=900, max_detections=400)
    found = dict(count=30, boxes=boxes, masks=boxes | dict(ap=0.45))
    add_result(run, "detect", {}, dict(last=found, best=found))
    (line,) = measured(run, "detector")
    assert "COCO's AP of masks 45.0% (95 % interval by the bootstrap over images: 40.0% to" in line
    assert "AP of boxes 50.0%" in line and "AP of cell 50.0%. 30 images, 900 objects, at" in line
    said = " ".join(limits(run, "detector"))
    assert "It finds its 1 class only" in said and "more than 400 objects" in said
    assert "AP on images without a part in training" in said and "It always answers" not in said
