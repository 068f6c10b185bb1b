"""`mae reconstruct`: the hidden patches of images as a model predicts them, in a picture."""

import logging
import os
from dataclasses import replace
from glob import glob
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from torchmae.data.config import KINDS, DecodeOptions, decode_as_run, split_bands
from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source
from torchmae.data.sources.arrays import ARRAY_ERRORS
from torchmae.data.sources.files import is_glob
from torchmae.data.sources.source import read_file, suffix_of
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import RunError, UserError
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, mask_from_bool
from torchmae.models.patches import Size
from torchmae.models.weights import load_mae
from torchmae.report.pictures import About, caption, draw, draw_mask
from torchmae.report.sheet import bands_shown
from torchmae.runfolder import last_step, read_config
from torchmae.tasks.reconstruct.config import Reconstruct, check
from torchmae.tasks.reconstruct.sheet import draw_sheet
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

MOST = 8  # of the images of an array
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
    paths = [path for word in config.images for path in expanded(word)]
    found: list[Tensor] = []
    for path in paths:
        if sum(map(len, found)) < MOST_DRAWN:
            found.append(read_images(path, model, decoding))
    pixels = torch.cat(found)[:MOST_DRAWN]
    if len(paths) > len(found) or sum(map(len, found)) > MOST_DRAWN:
        logger.info(
            f"the first {MOST_DRAWN} images of {len(paths)} files are drawn: more make a picture "
            "that nobody can look at; --sheet draws some of a whole set, chosen by hash"
        )
    name = settings["masking"] if config.masking is None else config.masking
    if config.mask is not None:
        name = "own mask"
        mask = mask_from_image(config.mask, model.encoder.grid, len(pixels))
    else:
        ratio = settings["mask_ratio"] if config.mask_ratio is None else config.mask_ratio
        mask = draw_mask(model, name, ratio, config.seed, torch.arange(len(pixels)))
    model = model.to(find_device(config.runtime.device))
    files = [file for path, images in zip(paths, found) for file in file_names(path, len(images))]
    step, noise = last_step(Path(config.run)), settings.get("noise", 0.0)
    about = About(Path(config.run).resolve().name, step, name, files, noise, bands)
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


def expanded(word: str) -> list[str]:
    """The files that a pattern in quotes names; anything else is itself."""
    return sorted(glob(word, recursive=True)) if is_glob(word) else [word]


def file_names(path: str, count: int) -> list[str]:
    """What the images of a file are called: those of an array are numbered."""
    name = PurePath(path).name
    return [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]


def read_images(path: str, model: MAE, options: DecodeOptions) -> Shaped[Tensor, "N C H W"]:
    """The image of a file, or the first ones of an array (.npy, .npz).

    Args:
        path: what the user named; an array of one image, [H, W, C] or [C, H, W], is one image.
        model: the images get its size and number of channels.
        options: how they are decoded.
    """
    if suffix_of(path.partition("?")[0]) not in (".npy", ".npz"):
        return read_image(path, model, options)[None]
    channels = model.encoder.channels
    one = single_image(path, channels)
    if one is not None:
        try:
            one = decode(one, replace(options, channels=None, bands=None))
        except BadImage as error:
            raise UserError(f"cannot read {path}: {error}") from error
    images = [one] if one is not None else first_images(path, replace(options, channels=channels))
    crop = CenterCropResize(model.encoder.image_size)
    return torch.stack([crop(image)[0] for image in images])


def single_image(path: str, channels: int) -> Shaped[np.ndarray, "H W C"] | None:
    """A .npy file that is one image of so many channels; None for anything else."""
    if suffix_of(path) != ".npy" or not os.path.isfile(path):
        return None
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except ARRAY_ERRORS:
        return None  # `open_source` says why
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype.name not in KINDS
        or pixels.ndim != 3
        or 0 in pixels.shape
    ):
        return None
    if pixels.shape[2] == channels:
        return np.array(pixels)
    if pixels.shape[0] == channels:
        return np.array(pixels.transpose(1, 2, 0))
    if pixels.shape[2] <= 16 < pixels.shape[1]:  # no grey images are so narrow
        raise UserError(
            f"'{path}' has {pixels.shape[2]} channels, the run takes {channels} (gray images in an "
            "array are [N, H, W])"
        )
    return None


def first_images(path: str, options: DecodeOptions) -> list[Shaped[np.ndarray, "H W C"]]:
    """The first images of an array of several."""
    source = open_source(path, options)
    if len(source) > MOST:
        logger.info(f"{path}: the first {MOST} of {len(source)} images")
    return [read_pixels(source, i) for i in range(min(MOST, len(source)))]


def read_image(path: str, model: MAE, options: DecodeOptions) -> Shaped[Tensor, "C H W"]:
    """A file as uint8 pixels of the model's size: the largest centred window of the right shape.

    Args:
        path: an image file.
        model: the image gets its size and number of channels.
        options: how it is decoded.
    """
    try:
        pixels = decode(read_file(path, options), replace(options, channels=model.encoder.channels))
        return CenterCropResize(model.encoder.image_size)(pixels)[0]
    except IsADirectoryError as error:
        raise UserError(
            f"{path} is a folder: name image files, such as {path.rstrip('/')}/*.jpg"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except BadImage as error:
        raise UserError(f"cannot read {path}: {error}") from error


def mask_from_image(path: str, grid: Size, count: int) -> Mask:
    """One mask for all images: hidden where the mask image, reduced to the grid, is mostly white.

    Args:
        path: an image file of any size.
        grid: patches a column, patches a row.
        count: of the images.
    """
    try:
        picture = Image.fromarray(
            decode(read_file(path, DecodeOptions()), DecodeOptions(channels=1))[:, :, 0]
        )
    except (OSError, BadImage) as error:
        raise UserError(f"cannot read the mask {path}: {error}") from error
    shrunk = picture.resize((grid[1], grid[0]), Image.Resampling.BOX)
    hidden = torch.from_numpy(np.array(shrunk)).flatten() > 127
    return mask_from_bool(hidden.expand(count, -1))
