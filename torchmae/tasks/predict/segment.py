"""`mae predict` of a segmenter: the class of each pixel as PNGs with a palette, and overlays."""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from torchmae.data.dense.masks import GRAY
from torchmae.data.dense.segmentation import Examples, stored_classes
from torchmae.data.sources.source import BadFile, Source, with_decode
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
    channels = model.encoder.channels
    source = with_decode(source, replace(source.decode, channels=channels))
    classes = stored_classes(stored)
    values = png_values(classes.coding.kind, classes.coding.values, len(model.classes))
    table = np.array(values, dtype=np.uint8)
    colors = dict(zip(values, model.colors))
    clear = [i for i, name in enumerate(model.classes) if name == "background"]
    predict = partial(model.to(device).predict, **how)
    stems = stems_of(source)
    count = 0
    with whole_folder(out) as folder:
        for found in each(Examples(source), device, "predict"):
            if isinstance(found, BadFile):
                logger.info(f"skipped: {found}")
                continue
            labels = predict(found.image.unsqueeze(0).to(device))[0].cpu()
            label_file = folder / "labels" / f"{stems[found.number]}.png"
            label_file.parent.mkdir(parents=True, exist_ok=True)
            label_file.write_bytes(palette_png(table[labels.numpy()], colors))
            if config.overlays:
                file = folder / "overlays" / f"{stems[found.number]}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                shown = overlay(found.image, labels, model.colors, clear)
                Image.fromarray(shown.permute(1, 2, 0).numpy()).save(file, quality=90)
            count += 1
        if not count:
            raise UserError(f"none of {len(source)} images can be read")
        meaning = [
            {"name": name, "value": value, "color": "#{:02x}{:02x}{:02x}".format(*color)}
            for name, value, color in zip(model.classes, values, model.colors)
        ]
        write_text(folder / "classes.json", json.dumps(meaning, indent=1))
    logger.info(
        f"Written to {out}: labels/ (the values of classes.json) of {count} images"
        f"{', overlays/' if config.overlays else ''}"
    )
    return out


def png_values(kind: str, values: Sequence[int], count: int) -> list[int]:
    """The value of each class in a PNG: that of the masks it was learned from, where these are
    numbers that fit; else its own number."""
    if kind == "values" and values and max(values) < GRAY and max(values) <= 255:
        return list(values)
    return list(range(count))


def stems_of(source: Source) -> list[str]:
    """A path for the results of each image: its name without the suffix; with it where two would
    be the same. Of files that are named by whole paths, without the folder of all of them."""
    names = [source.name(i) for i in range(len(source))]
    if all(name.startswith("/") for name in names):
        top = os.path.commonpath([os.path.dirname(name) for name in names])
        names = [os.path.relpath(name, top) for name in names]
    inside = [
        "/".join(part for part in name.split("/") if part not in ("", "..")) for name in names
    ]
    stems = [os.path.splitext(name)[0] for name in inside]
    often = Counter(stems)
    return [name if often[stem] > 1 else stem for name, stem in zip(inside, stems)]
