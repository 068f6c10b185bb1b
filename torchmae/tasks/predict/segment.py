"""`mae predict` of a segmenter: the class of each pixel as PNGs with a palette, and overlays."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from torchmae.data.dense.masks import GRAY
from torchmae.data.dense.segmentation import Examples, stored_classes
from torchmae.data.large.stitch import LabelMaps, stems_of
from torchmae.data.sources.source import BadFile, with_decode
from torchmae.data.sources.tiles import Tiles
from torchmae.disk import refuse_full, whole_folder, write_text
from torchmae.errors import UserError
from torchmae.eval.segmentation import each
from torchmae.models.weights import load_segmenter
from torchmae.report.segmentation import overlay, palette_png
from torchmae.runfolder import read_config
from torchmae.settings.groups import test_as_run
from torchmae.tasks.predict.config import Predict
from torchmae.tasks.predict.images import open_data
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def predict_labels(config: Predict) -> Path:
    """Writes labels/NAME.png and overlays/NAME.jpg of every image, and what the values mean to
    classes.json; returns the folder."""
    out = Path(config.out or "predictions")
    if out.suffix in (".csv", ".parquet"):
        raise UserError(f"--out {out}: {config.run} holds a segmenter, whose --out is a folder")
    refuse_full(out)
    config.test.check()
    stored = read_config(config.run)
    how = test_as_run(config.test, stored["config"])
    model = load_segmenter(config.run, config.best)
    device = find_device(config.runtime.device)
    source = open_data(config)
    if source.left_out:
        logger.info(source.left_out)
    channels = model.encoder.channels
    source = with_decode(source, replace(source.decode, channels=channels))
    classes = stored_classes(stored)
    values = png_values(classes.coding.kind, classes.coding.values, len(model.classes))
    table = np.array(values, dtype=np.uint8)
    colors = dict(zip(values, model.colors))
    clear = [i for i, name in enumerate(model.classes) if name == "background"]
    predict: Callable[[Tensor], Tensor] = partial(model.to(device).predict, **how)
    stems = stems_of(source)
    count = 0
    with whole_folder(out) as folder:
        maps = LabelMaps(folder, source) if isinstance(source, Tiles) else None
        for found in each(Examples(source), device, "predict"):
            if isinstance(found, BadFile):
                logger.info(f"skipped: {found}")
                continue
            labels = predict(found.image.unsqueeze(0).to(device))[0].cpu()
            count += 1
            if maps is not None:
                maps.add(found.number, labels.numpy())
                continue
            label_file = folder / "labels" / f"{stems[found.number]}.png"
            label_file.parent.mkdir(parents=True, exist_ok=True)
            label_file.write_bytes(palette_png(table[labels.numpy()], colors))
            if config.overlays:
                file = folder / "overlays" / f"{stems[found.number]}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                shown = overlay(found.image, labels, model.colors, clear)
                Image.fromarray(shown.permute(1, 2, 0).numpy()).save(file, quality=90)
        if not count:
            raise UserError(f"none of {len(source)} images can be read")
        said = f"of {count} images{', overlays/' if config.overlays else ''}"
        if maps is not None:
            whole, nothing = maps.finish(table, colors)
            said = f"of {whole} images in {count:,} tiles; {nothing} is what was left out"
        meaning = [
            {"name": name, "value": value, "color": "#{:02x}{:02x}{:02x}".format(*color)}
            for name, value, color in zip(model.classes, values, model.colors)
        ]
        write_text(folder / "classes.json", json.dumps(meaning, indent=1))
    logger.info(f"Written to {out}: labels/ (the values of classes.json) {said}")
    return out


def png_values(kind: str, values: Sequence[int], count: int) -> list[int]:
    """The value of each class in a PNG: that of the masks it was learned from, where these are
    numbers that fit; else its own number."""
    if kind == "values" and values and max(values) < GRAY and max(values) <= 255:
        return list(values)
    return list(range(count))
