"""`mae reconstruct`: what a model makes of the hidden patches, as a picture that says whose brightness it used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchmae.data.decode import BadImage, decode
from torchmae.data.transforms import Whole
from torchmae.errors import RunError, UserError
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, given, masking, noise
from torchmae.models.patches import denormalize, patchify, put, take, unpatchify
from torchmae.models.targets import patch_statistics
from torchmae.models.weights import load_mae, read_config


@dataclass(frozen=True)
class Reconstruct:
    """Draw original, masked input, reconstruction and prediction of images side by side."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Image files."""
    out: str = "reconstruction.png"
    """The picture to write (.png or .jpg)."""
    mask_ratio: float | None = None
    """Share of hidden patches, 0..1. Default: the run's."""
    masking: str | None = None
    """random, block or grid. Default: the run's."""
    mask: str | None = None
    """A mask image of your own in place of masking and ratio: white is hidden, black is visible; any size."""
    seed: int = 0
    """Of the masks."""
    true_statistics: bool = False
    """With normalised targets: borrow each hidden patch's true mean and deviation (which leaks part of the answer)."""


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
    print(f"{out}: {len(pixels)} images; {caption(model, config.true_statistics)}")
    return out


def read_image(path: str, model: MAE, max_megapixels: float = 100.0, white: int = 65535) -> UInt8[Tensor, "C H W"]:
    """A file as uint8 pixels of the model's size: the largest centred window of the right shape."""
    try:
        pixels = decode(Path(path).read_bytes(), model.encoder.channels, max_megapixels, white)
        return Whole(model.encoder.image_size)(pixels)
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder: name image files, such as {path.rstrip('/')}/*.jpg") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except BadImage as error:
        raise UserError(f"cannot read {path}: {error}") from error


def draw_mask(model: MAE, name: str, ratio: float, seed: int, sample: Tensor) -> Mask:
    """The masks of the samples in epoch 0 of a seed."""
    grid = model.encoder.grid
    return masking(name)(noise(seed, torch.zeros_like(sample), sample, grid[0] * grid[1]), grid, ratio)


def mask_from_image(path: str, grid: tuple[int, int], count: int) -> Mask:
    """One mask for all images: a patch is hidden where the mask image, shrunk to the grid, is more white than black."""
    try:
        picture = Image.fromarray(decode(Path(path).read_bytes(), 1)[:, :, 0])
    except (OSError, BadImage) as error:
        raise UserError(f"cannot read the mask {path}: {error}") from error
    shrunk = picture.resize((grid[1], grid[0]), Image.Resampling.BOX)
    hidden = torch.from_numpy(np.array(shrunk)).flatten() > 127
    return given(hidden.expand(count, -1))


@torch.no_grad()
def predict_pixels(
    model: MAE, images: UInt8[Tensor, "B C H W"], mask: Mask, true_statistics: bool = False
) -> UInt8[Tensor, "3 B C H W"]:
    """Three pictures of each image, uint8: the masked input (hidden patches grey), the input with its hidden patches
    predicted, and the prediction alone (visible patches white).

    Normalised targets have no brightness or contrast: these come from the model's own statistics head, or, if
    `true_statistics`, from the image itself, which leaks part of the answer.
    """
    encoder, size = model.encoder, model.encoder.patch_size
    floats = encoder.normalize(images)
    output = model(floats, mask)
    patches = patchify(floats, size)
    truth = take(patches, mask.hide)
    statistics = patch_statistics(truth) if true_statistics else output.statistics
    predicted = model.target.to_pixels(output.prediction, statistics)
    grey, white = (patchify(encoder.normalize(torch.full_like(images, value)), size) for value in (128, 255))
    rows = [
        put(patches, mask.hide, take(grey, mask.hide)),
        put(patches, mask.hide, predicted),
        put(white, mask.hide, predicted),
    ]
    return torch.stack([denormalize(unpatchify(row, size, encoder.grid), encoder.mean, encoder.std) for row in rows])


def caption(model: MAE, true_statistics: bool) -> str:
    """Whose brightness and contrast a picture shows."""
    if not model.target.loses_statistics:
        return "raw pixels as predicted"
    if true_statistics:
        return "brightness and contrast of hidden patches are the TRUE ones (leaks part of the answer)"
    return "brightness and contrast of hidden patches are predicted"


def draw(model: MAE, images: UInt8[Tensor, "B C H W"], mask: Mask, true_statistics: bool = False) -> Image.Image:
    """One column an image: original, masked, reconstruction, prediction alone; names at the left, a caption below."""
    device = next(model.parameters()).device
    was_training = model.training
    made = predict_pixels(
        model.eval(), images.to(device), Mask(*(ids.to(device) for ids in mask)), true_statistics
    ).cpu()
    model.train(was_training)
    hidden = mask.hide.shape[1] / (mask.hide.shape[1] + mask.keep.shape[1])
    names = ("original", f"{hidden:.0%} hidden", "reconstruction", "prediction")
    return sheet([images.cpu(), *made], names, caption(model, true_statistics))


def sheet(rows: Sequence[UInt8[Tensor, "B C H W"]], names: Sequence[str], note: str) -> Image.Image:
    """A contact sheet; small images are enlarged without smoothing, so that their pixels can be seen."""
    count, channels, height, width = rows[0].shape
    zoom = max(1, round(128 / max(height, width)))
    height, width, gap, margin, foot = height * zoom, width * zoom, 6, 104, 24
    font = ImageFont.load_default(13)
    wide = max(margin + count * (width + gap), int(font.getlength(note)) + 2 * gap)
    canvas = Image.new("RGB", (wide, gap + len(rows) * (height + gap) + foot), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (images, name) in enumerate(zip(rows, names)):
        top = gap + row * (height + gap)
        pen.text((gap, top + height // 2 - 8), name, fill="black", font=font)
        for i, image in enumerate(images):
            shown = image[:3] if channels >= 3 else image[:1].expand(3, -1, -1)
            tile = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
            canvas.paste(tile.resize((width, height), Image.Resampling.NEAREST), (margin + i * (width + gap), top))
    pen.text((gap, canvas.height - foot + 3), note, fill="black", font=font)
    return canvas
