"""`mae reconstruct`: what a model makes of the hidden patches, as a picture that says whose brightness it used."""

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from torchmae.data.decode import BadImage, decode
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import RunError, UserError
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, mask_from_bool
from torchmae.models.patches import Size
from torchmae.models.weights import load_mae
from torchmae.report.pictures import caption, draw, draw_mask
from torchmae.runfolder import read_config
from torchmae.tasks.reconstruct.config import Reconstruct

logger = logging.getLogger(__name__)


def run(config: Reconstruct) -> Path:
    """Writes the picture and gives its path."""
    if not config.images:
        raise UserError("name at least one image file: mae reconstruct RUN IMAGE...")
    out = Path(config.out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"the picture must be a .png or .jpg file, not '{config.out}'")
    settings = read_config(config.run)["config"]
    model = load_mae(config.run)
    limits = settings.get("max_megapixels", 100.0), settings.get("white", 65535)
    pixels = torch.stack([read_image(path, model, *limits) for path in config.images])
    if config.mask is not None:
        mask = mask_from_image(config.mask, model.encoder.grid, len(pixels))
    else:
        name = settings["masking"] if config.masking is None else config.masking
        ratio = settings["mask_ratio"] if config.mask_ratio is None else config.mask_ratio
        mask = draw_mask(model, name, ratio, config.seed, torch.arange(len(pixels)))
    picture = draw(model, pixels, mask, config.true_statistics)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    logger.info(f"{out}: {len(pixels)} images; {caption(model, config.true_statistics)}")
    return out


def read_image(
    path: str, model: MAE, max_megapixels: float = 100.0, white: int = 65535
) -> UInt8[Tensor, "C H W"]:
    """A file as uint8 pixels of the model's size: the largest centred window of the right shape."""
    try:
        pixels = decode(Path(path).read_bytes(), model.encoder.channels, max_megapixels, white)
        return CenterCropResize(model.encoder.image_size)(pixels)
    except IsADirectoryError as error:
        raise UserError(
            f"{path} is a folder: name image files, such as {path.rstrip('/')}/*.jpg"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except BadImage as error:
        raise UserError(f"cannot read {path}: {error}") from error


def mask_from_image(path: str, grid: Size, count: int) -> Mask:
    """One mask for all images: a patch is hidden where the mask image, shrunk to the grid, is more white than black."""
    try:
        picture = Image.fromarray(decode(Path(path).read_bytes(), 1)[:, :, 0])
    except (OSError, BadImage) as error:
        raise UserError(f"cannot read the mask {path}: {error}") from error
    shrunk = picture.resize((grid[1], grid[0]), Image.Resampling.BOX)
    hidden = torch.from_numpy(np.array(shrunk)).flatten() > 127
    return mask_from_bool(hidden.expand(count, -1))
