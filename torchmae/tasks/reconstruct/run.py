"""`mae reconstruct`: the hidden patches of images as a model predicts them, in a picture."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torchmae.data.config import DecodeOptions, decode_as_run, split_bands
from torchmae.data.decode import BadImage, decode
from torchmae.data.sources.single import read_named
from torchmae.data.sources.source import read_file
from torchmae.data.view import center_crop
from torchmae.errors import RunError, UserError
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, MaskGenerator, mask_from_bool
from torchmae.models.patches import Size, grid_of
from torchmae.models.weights import load_mae
from torchmae.report.pictures import About, caption, draw, draw_mask
from torchmae.report.sheet import bands_shown
from torchmae.runfolder import last_step, read_config
from torchmae.tasks.reconstruct.config import Reconstruct, check
from torchmae.tasks.reconstruct.sheet import draw_sheet
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

MOST_DRAWN = 32  # of all images: four bands of eight still fit a screen's width and some scrolling


def run(config: Reconstruct) -> Path:
    """Draws the picture, and returns its path."""
    check(config)
    out = Path(config.out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"the picture must be a .png or .jpg file, not '{config.out}'")
    model = load_mae(config.run)
    if not model.target.has_pictures():
        raise UserError(
            f"{config.run} predicts {model.target_name}, not pixels: there is nothing to draw. Its "
            "encoder is as any other: mae knn, mae finetune"
        )
    decoding = decode_as_run(config.run, config.decode)
    bands = bands_of(config, model, decoding)
    draws = draw_sheet if config.sheet else draw_named
    picture, said = draws(config, model, decoding, bands)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    notes = [caption(model, config.true_statistics), bands_shown(model.encoder.channels, bands)]
    logger.info(f"{out}: {said}; {'; '.join(note for note in notes if note)}")
    return out


def draw_named(
    config: Reconstruct, model: MAE, decoding: DecodeOptions, bands: tuple[int, ...]
) -> tuple[Image.Image, str]:
    """The picture of the images that are named, and what is on it in words."""
    settings = read_config(config.run)["config"]
    options = replace(decoding, channels=model.encoder.channels)
    images, cut = read_named(config.images, options, MOST_DRAWN)
    crop = center_crop(config.run, model.encoder.image_size).fitted(*images[0].pixels.shape[:2])
    pixels = torch.stack([crop(image.pixels)[0] for image in images])
    if cut:
        logger.info(
            f"{cut}: more make a picture that nobody can look at; --sheet draws some of a whole "
            "set, chosen by hash"
        )
    grid = grid_of(crop.size, model.encoder.patch)
    own = MaskGenerator.of(settings)
    ratio = own.ratio if config.mask_ratio is None else config.mask_ratio
    masks = replace(own, name=config.masking or own.name, ratio=ratio)
    name = masks.words()
    if config.mask is not None:
        name = "own mask"
        mask = mask_from_image(config.mask, grid, len(pixels))
    else:
        mask = draw_mask(model, masks, config.seed, torch.arange(len(pixels)), grid)
    model = model.to(find_device(config.runtime.device))
    step, noise = last_step(Path(config.run)), settings.get("noise", 0.0)
    names = [image.name for image in images]
    about = About(Path(config.run).resolve().name, step, name, names, noise, bands)
    picture = draw(model, pixels, mask, about, config.true_statistics, config.scale)
    return picture, f"{len(pixels)} image{'s' * (len(pixels) != 1)}"


def bands_of(config: Reconstruct, model: MAE, decoding: DecodeOptions) -> tuple[int, ...]:
    """The channels of --show, by their numbers from 0; () where it is not given.

    Raises:
        UserError: these are not three channels of the run.
    """
    wanted, channels = split_bands(config.show), model.encoder.channels
    if wanted is None:
        return ()
    known = decoding.bands or map(str, range(1, channels + 1))
    names = {name: i for i, name in enumerate(known)}
    if len(wanted) != 3 or not all(one in names for one in wanted):
        raise UserError(
            f"--show {','.join(wanted)}: three of {', '.join(names)}, for red, green and blue"
        )
    return tuple(names[one] for one in wanted)


def mask_from_image(path: str, grid: Size, count: int) -> Mask:
    """One mask for all images: hidden where the mask image, reduced to the grid, is mostly white.

    Args:
        path: an image file of any size.
        grid: patches a column, patches a row.
        count: of the images.
    """
    try:
        pixels = decode(read_file(path, DecodeOptions()), DecodeOptions(channels=1))[:, :, 0]
    except (OSError, BadImage) as error:
        raise UserError(f"cannot read the mask {path}: {error}") from error
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1.0
    picture = Image.fromarray(pixels.astype(np.float32) / np.float32(white))
    shrunk = picture.resize((grid[1], grid[0]), Image.Resampling.BOX)
    hidden = torch.from_numpy(np.array(shrunk)).flatten() > 0.5
    return mask_from_bool(hidden.expand(count, -1))
