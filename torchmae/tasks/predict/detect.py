"""`mae predict` of a detector: COCO's results, YOLO's labels, and pictures."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchmae.data.dense.detection import Detections
from torchmae.data.dense.segmentation import Examples
from torchmae.data.large.seams import at_seams, without_doubles
from torchmae.data.large.stitch import stems_of
from torchmae.data.large.window import Box
from torchmae.data.sources.source import BadFile, Source, with_decode
from torchmae.data.sources.tiles import Tiles
from torchmae.disk import refuse_full, whole_folder, write_text
from torchmae.errors import UserError
from torchmae.eval.detection import to_detections, to_results
from torchmae.eval.segmentation import each
from torchmae.models.detection.detector import Detector, Found
from torchmae.models.weights import load_detector
from torchmae.report.detection import draw_found
from torchmae.settings.groups import SegmentTestOptions
from torchmae.tasks.predict.config import Predict
from torchmae.tasks.predict.images import open_data
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


class Seen(NamedTuple):
    """What was found in an image, and its pixels where it was read in one piece."""

    number: int
    height: int
    width: int
    found: Detections
    pixels: Tensor | None = None


class InTile(NamedTuple):
    """What was found in a tile: the number of its image, where it is, objects in its pixels."""

    image: int
    box: Box
    found: Found


def predict_objects(config: Predict) -> Path:
    """Writes detections.json (COCO's results) with images.json (the images' ids and names),
    labels/NAME.txt (YOLO's) and overlays/NAME.jpg of every image; returns the folder.

    Of tiles: those of the large images, without overlays.
    """
    out = Path(config.out or "predictions")
    if out.suffix in (".csv", ".parquet", ".json", ".txt"):
        raise UserError(f"--out {out}: {config.run} holds a detector, whose --out is a folder")
    refuse_full(out)
    if config.test != SegmentTestOptions():
        raise UserError(f"--slide, --stride, --tta: for segmenters, and {config.run} holds none")
    model = load_detector(config.run, config.best)
    device = find_device(config.runtime.device)
    source = open_data(config)
    if source.left_out:
        logger.info(source.left_out)
    source = with_decode(source, replace(source.decode, channels=model.encoder.channels))
    model.to(device)
    every = each_large(model, source, device) if isinstance(source, Tiles) else None
    named = source.source if isinstance(source, Tiles) else source
    stems = stems_of(named)
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    with whole_folder(out) as folder:
        for one in every or each_image(model, source, device):
            name = named.name(one.number)
            entry = {"file_name": name, "height": one.height, "width": one.width}
            images.append({"id": one.number + 1, **entry})
            results += entries(one.found, one.number + 1)
            write_yolo(folder / "labels" / f"{stems[one.number]}.txt", one, config.min_score)
            if config.overlays and one.pixels is not None:
                file = folder / "overlays" / f"{stems[one.number]}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                shown = draw_found(one.pixels, one.found, model.classes, config.min_score)
                Image.fromarray(shown.permute(1, 2, 0).numpy()).save(file, quality=90)
        if not images:
            raise UserError(f"none of {len(source)} images can be read")
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(model.classes)]
        listed = {"images": images, "categories": categories}
        write_text(folder / "images.json", json.dumps(listed, indent=1))
        write_text(folder / "detections.json", json.dumps(results))
    sure = sum(one["score"] >= config.min_score for one in results)
    drawn = " and overlays/" if config.overlays and every is None else ""
    logger.info(
        f"Written to {out}: {sure} objects with a score of {config.min_score:g} and more in "
        f"{len(images)} images to labels/ (YOLO){drawn}; all {len(results)} to detections.json "
        "(COCO's results; images.json has the ids)"
    )
    return out


def each_image(model: Detector, source: Source, device: torch.device) -> Iterator[Seen]:
    """The objects in every readable image."""
    for one in each(Examples(source), device, "predict"):
        if isinstance(one, BadFile):
            logger.info(f"skipped: {one}")
            continue
        height, width = one.image.shape[1:]
        (raw,) = model.predict(one.image.unsqueeze(0).to(device))
        found = to_detections(raw, height, width)
        yield Seen(one.number, height, width, found, one.image)


def each_large(model: Detector, tiles: Tiles, device: torch.device) -> Iterator[Seen]:
    """The objects in every image of which a tile can be read; memory holds those of one image."""

    def in_tiles() -> Iterator[InTile]:
        for one in each(Examples(tiles), device, "predict"):
            if isinstance(one, BadFile):
                logger.info(f"skipped: {one}")
                continue
            (found,) = model.predict(one.image.unsqueeze(0).to(device))
            yield InTile(int(tiles.ids[one.number]), tiles.box(one.number), found)

    for number, parts in groupby(in_tiles(), key=lambda part: part.image):
        height, width = tiles.sizes[number].tolist()
        found, cut = put_together(list(parts), height, width)
        if cut:
            logger.info(
                f"{tiles.source.name(number)}: {cut} of {len(found.boxes)} objects end at the edge "
                "of a tile and may be parts of larger ones: more --overlap than they are long"
            )
        yield Seen(number, height, width, found)


def put_together(parts: Sequence[InTile], height: int, width: int) -> tuple[Detections, int]:
    """The objects of an image of which these tiles were looked at, and how many of them may be
    parts: what ends at the edge of a tile, and lies whole in no other."""
    corners = torch.tensor([[part.box.left, part.box.top] * 2 for part in parts])
    every = [part.found for part in parts]
    boxes = torch.cat([one.boxes.cpu() for one in every])
    scores = torch.cat([one.scores.cpu() for one in every])
    classes = torch.cat([one.classes.cpu() for one in every])
    found_in = np.repeat(np.arange(len(every)), [len(one.scores) for one in every])
    boxes = boxes + corners[found_in]
    tiles = np.array([[x, y, x + w, y + h] for (y, x, h, w) in (part.box for part in parts)])
    cut, held = at_seams(boxes.numpy(), found_in, tiles, (height, width))
    own = np.flatnonzero(~held)
    left = own[without_doubles(boxes[own].numpy(), scores[own].numpy(), classes[own].numpy())]
    grids = [one.masks.cpu() for one in every if one.masks is not None]
    masks = torch.cat(grids)[left] if grids else None
    whole = Found(boxes[left], scores[left], classes[left], masks)
    return to_detections(whole, height, width), int(cut[left].sum())


def entries(found: Detections, image: int) -> list[dict[str, Any]]:
    """The results of an image in COCO's format: boxes, and masks where there are any."""
    boxes = to_results(found, image, "boxes")
    masks = boxes if found.masks is None else to_results(found, image, "masks")
    return [{**box, **mask} for box, mask in zip(boxes, masks)]


def write_yolo(path: Path, seen: Seen, least: float) -> None:
    """Writes class, centre, width and height in shares of the image's sides, and the score, a line
    for each object of at least a score."""
    sides = np.array([seen.width, seen.height, seen.width, seen.height])
    lines = []
    for box, score, number in zip(seen.found.boxes, seen.found.scores, seen.found.classes):
        if score >= least:
            x1, y1, x2, y2 = (box / sides).tolist()
            numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, float(score))
            lines.append(" ".join([str(int(number)), *(f"{value:.6f}" for value in numbers)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
