"""`mae predict` of a detector: COCO's results, YOLO's labels, and pictures."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from torchmae.data.dense.detection import Detections
from torchmae.data.dense.segmentation import Examples
from torchmae.data.large.stitch import stems_of
from torchmae.data.sources.source import BadFile, with_decode
from torchmae.disk import refuse_full, whole_folder, write_text
from torchmae.errors import UserError
from torchmae.eval.detection import to_detections, to_results
from torchmae.eval.segmentation import each
from torchmae.models.weights import load_detector
from torchmae.report.detection import draw_found
from torchmae.settings.groups import SegmentTestOptions
from torchmae.tasks.predict.config import Predict
from torchmae.tasks.predict.images import open_data
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def predict_objects(config: Predict) -> Path:
    """Writes detections.json (COCO's results) with images.json (the images' ids and names),
    labels/NAME.txt (YOLO's) and overlays/NAME.jpg of every image; returns the folder."""
    out = Path(config.out or "predictions")
    if out.suffix in (".csv", ".parquet", ".json", ".txt"):
        raise UserError(f"--out {out}: {config.run} holds a detector, whose --out is a folder")
    refuse_full(out)
    if config.test != SegmentTestOptions():
        raise UserError(f"--slide, --stride, --tta: for segmenters, and {config.run} holds none")
    model = load_detector(config.run, config.best)
    device = find_device(config.runtime.device)
    source = open_data(config)
    source = with_decode(source, replace(source.decode, channels=model.encoder.channels))
    model.to(device)
    stems = stems_of(source)
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    with whole_folder(out) as folder:
        for one in each(Examples(source), device, "predict"):
            if isinstance(one, BadFile):
                logger.info(f"skipped: {one}")
                continue
            height, width = one.image.shape[1:]
            (raw,) = model.predict(one.image.unsqueeze(0).to(device))
            found = to_detections(raw, height, width)
            name = source.name(one.number)
            entry = {"file_name": name, "height": height, "width": width}
            images.append({"id": one.number + 1, **entry})
            results += entries(found, one.number + 1)
            write_yolo(folder / "labels" / f"{stems[one.number]}.txt", found, height, width, config)
            if config.overlays:
                file = folder / "overlays" / f"{stems[one.number]}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                shown = draw_found(one.image, found, model.classes, config.min_score)
                Image.fromarray(shown.permute(1, 2, 0).numpy()).save(file, quality=90)
        if not images:
            raise UserError(f"none of {len(source)} images can be read")
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(model.classes)]
        listed = {"images": images, "categories": categories}
        write_text(folder / "images.json", json.dumps(listed, indent=1))
        write_text(folder / "detections.json", json.dumps(results))
    sure = sum(one["score"] >= config.min_score for one in results)
    logger.info(
        f"Written to {out}: {sure} objects with a score of {config.min_score:g} and more in "
        f"{len(images)} images to labels/ (YOLO){' and overlays/' if config.overlays else ''}; all "
        f"{len(results)} to detections.json (COCO's results; images.json has the ids)"
    )
    return out


def entries(found: Detections, image: int) -> list[dict[str, Any]]:
    """The results of an image in COCO's format: boxes, and masks where there are any."""
    boxes = to_results(found, image, "boxes")
    masks = boxes if found.masks is None else to_results(found, image, "masks")
    return [{**box, **mask} for box, mask in zip(boxes, masks)]


def write_yolo(path: Path, found: Detections, height: int, width: int, config: Predict) -> None:
    """Writes class, centre, width and height in shares of the image's sides, and the score, a line
    for each object."""
    sides = np.array([width, height, width, height])
    lines = []
    for box, score, number in zip(found.boxes, found.scores, found.classes):
        if score >= config.min_score:
            x1, y1, x2, y2 = (box / sides).tolist()
            numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, float(score))
            lines.append(" ".join([str(int(number)), *(f"{value:.6f}" for value in numbers)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
