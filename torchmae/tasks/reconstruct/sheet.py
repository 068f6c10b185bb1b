"""`mae reconstruct --sheet`: images of a set that nobody has picked, at several ratios."""

import logging
import math
from dataclasses import replace
from pathlib import Path, PurePath

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from torchmae.data.config import DecodeOptions, listing_as_run
from torchmae.data.decode import BadImage
from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source
from torchmae.data.sources.source import Source
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.hashing import SPLIT, hash32
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, MaskGenerator, units_of
from torchmae.report.pictures import (
    ERROR_NOTE,
    About,
    as_shown,
    draw_mask,
    notes_of,
    of_bands,
    with_errors,
)
from torchmae.report.sheet import sheet, stack
from torchmae.runfolder import last_step, read_config
from torchmae.tasks.reconstruct.config import Reconstruct
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

RATIOS = (0.75, 0.85, 0.95)  # paper, Figure 4
MASKS = 8  # of one image


def draw_sheet(
    config: Reconstruct, model: MAE, decoding: DecodeOptions, bands: tuple[int, ...] = ()
) -> tuple[Image.Image, str]:
    """The picture, and how its images were chosen: each at several ratios, then one of them with
    several masks."""
    (data,) = config.images
    source = open_source(
        data,
        replace(decoding, channels=model.encoder.channels),
        listing_as_run(config.listing, data, config.run),
    )
    ids, pixels = chosen(source, config.count, config.seed, model.encoder.image_size)
    files = [PurePath(source.name(i)).name for i in ids]
    own = MaskGenerator.of(read_config(config.run)["config"])
    own = replace(own, name=config.masking or own.name)
    units = math.prod(units_of(model.encoder.grid, own.unit))
    ratios = [config.mask_ratio] if config.mask_ratio else fitting(units)
    device = find_device(config.runtime.device)
    model, images = model.to(device), pixels.to(device)

    def rows(images: Shaped[Tensor, "B C H W"], masks: list[Mask]) -> dict[str, Tensor]:
        moved = [Mask(*(part.to(device) for part in mask)) for mask in masks]
        named = {f"{100 * ratio:g} % ": mask for ratio, mask in zip(ratios, moved)}
        return with_errors(model, images, named, config.true_statistics)

    how = f"images chosen by hash, seed {config.seed}, of {len(source):,}"
    about = About(Path(config.run).resolve().name, last_step(Path(config.run)), own.words(), files)
    masks = [
        draw_mask(model, replace(own, ratio=r), config.seed, torch.tensor(ids)) for r in ratios
    ]
    parts = [
        (
            about.begin(how, f"{own.words()} masks"),
            {"original": as_shown(model.encoder, images).cpu(), **rows(images, masks)},
            files,
        )
    ]
    several = draw_mask(model, replace(own, ratio=ratios[0]), config.seed, torch.arange(MASKS))
    if len(several.hide.sort().values.unique(dim=0)) > 1:  # all are equal in a regular grid
        of_one = rows(images[:1].expand(MASKS, -1, -1, -1), [several])
        parts.append((f"{MASKS} masks of {files[0]}", of_one, [f"{i + 1}" for i in range(MASKS)]))
    notes = [ERROR_NOTE, *notes_of(model, pixels, config.true_statistics, bands)]
    below: list[list[str]] = [[] for _ in parts[1:]] + [notes]
    drawn = [
        sheet(of_bands(tiles, bands), title, columns, end, config.scale)
        for (title, tiles, columns), end in zip(parts, below)
    ]
    return stack(drawn), f"{len(ids)} {how}"


def chosen(
    source: Source, count: int, seed: int, size: tuple[int, int]
) -> tuple[list[int], Shaped[Tensor, "B C H W"]]:
    """The first images that can be read, in an order that the seed decides: their numbers and
    centre crops of that size."""
    order = hash32(seed, SPLIT, torch.arange(len(source))).argsort(stable=True)
    crop, ids, images = CenterCropResize(size), list[int](), list[Tensor]()
    for i in order.tolist():
        if len(ids) == count:
            break
        try:
            images.append(crop(read_pixels(source, i))[0])
            ids.append(i)
        except BadImage as error:
            logger.info(f"skipped: {source.name(i)} ({error})")
    if not ids:
        raise UserError(f"none of the {len(source)} images can be read")
    return ids, torch.stack(images)


def fitting(patches: int) -> list[float]:
    """Those of `RATIOS` that leave one of so many patches (units of the mask) visible."""
    found = [ratio for ratio in RATIOS if int(patches * (1 - ratio)) > 0]
    if len(found) < len(RATIOS):
        logger.info(
            f"of {patches} patches, {' and '.join(f'{r:.0%}' for r in RATIOS if r not in found)} "
            "hidden would leave none visible: not drawn"
        )
    return found or [0.5]
