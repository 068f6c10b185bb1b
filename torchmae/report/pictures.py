"""Reconstructions of hidden patches as pictures, which say what they show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, MaskGenerator, gaussian, noise
from torchmae.models.patches import (
    SHOWN,
    WHITE,
    Size,
    gather_tokens,
    grid_of,
    patch_statistics,
    patchify,
    scatter_tokens,
    unpatchify,
)
from torchmae.report.sheet import bands_shown, sheet

ERROR, MOST_ERROR = "error", 100  # of 255: larger errors of a pixel have one colour
ERROR_NOTE = (
    "Errors of the reconstruction: mean absolute difference of the channels, from white (none) to "
    f"dark red ({MOST_ERROR} of 255 or more); the means are of hidden pixels."
)


def draw_mask(
    model: MAE, masks: MaskGenerator, seed: int, sample: Tensor, grid: Size | None = None
) -> Mask:
    """The masks of some samples in epoch 0 of a seed; all hidden patches are to be predicted.

    Args:
        model: its grid is masked, if no other is given.
        masks: what is hidden.
        seed: of the masks.
        sample: int64 [B], the numbers of the samples.
        grid: patches down and across.
    """
    grid = grid or model.encoder.grid
    scores = noise(seed, torch.zeros_like(sample), sample, math.prod(grid))
    return replace(masks, predicted=1.0)(scores, grid)


@runtime_checkable
class Normalizes(Protocol):
    """An encoder or a tokenizer."""

    def normalize(self, images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]: ...
    def denormalize(self, images: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]: ...


@torch.no_grad()
def predict_pixels(
    model: MAE,
    images: Shaped[Tensor, "B C H W"],
    mask: Mask,
    true_statistics: bool = False,
    noise_std: float = 0.0,
) -> UInt8[Tensor, "3 B C H W"]:
    """The model's predictions as pixels.

    Args:
        model: in eval mode.
        images: on its device.
        mask: what is hidden.
        true_statistics: normalised targets have no brightness or contrast: take those of the hidden
            patches themselves, which leaks part of the answer, and not those that the model's
            statistics head predicts.
        noise_std: of noise on what the encoder sees, the same in each picture.

    Returns:
        Three pictures of each image: the input (hidden patches grey), the input with its hidden
        patches predicted, and the prediction alone (visible patches white). Where no patch is
        hidden, all are predicted.
    """
    encoder = model.encoder
    size = encoder.patch
    floats = encoder.normalize(images)
    first = torch.arange(len(images), device=images.device)
    noise = gaussian(0, torch.zeros_like(first), first, tuple(images.shape[1:]))
    seen = floats + noise_std * noise if noise_std else floats
    output = model(floats, mask, seen)
    patches, ids = patchify(seen, size), mask.predicted
    truth = patchify(floats, size, ids)
    statistics = patch_statistics(truth) if true_statistics else output.statistics
    predicted = model.target.to_pixels(output.prediction, statistics)
    grey, white = (patchify(as_seen(encoder, images, value), size) for value in (128, 255))
    rows = [
        scatter_tokens(patches, mask.hide, gather_tokens(grey, mask.hide)),
        scatter_tokens(patches, ids, predicted),
        scatter_tokens(white, ids, predicted),
    ]
    grid = grid_of(tuple(images.shape[2:]), size)
    return torch.stack([encoder.denormalize(unpatchify(row, size, grid)) for row in rows])


def as_shown(encoder: Normalizes, images: Shaped[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """Images as pictures show them: those of 8 bits as they are, others from -3 to 3 standard
    deviations, and no-data as the mean, gray."""
    if images.dtype == torch.uint8:
        return images
    return encoder.denormalize(encoder.normalize(images))


def as_seen(
    encoder: Normalizes, images: Shaped[Tensor, "B C H W"], level: int
) -> Float[Tensor, "B C H W"]:
    """What normalized images are that pictures show as one level of 0 to 255."""
    if images.dtype == torch.uint8:
        return encoder.normalize(torch.full_like(images, level))
    return torch.full_like(images, SHOWN * (2 * level / WHITE - 1))


def caption(model: MAE, true_statistics: bool) -> str:
    """The line below a picture: where its brightness and contrast come from."""
    if not model.target.needs_statistics:
        return "raw pixels as predicted"
    if true_statistics:
        return (
            "brightness and contrast of hidden patches are the TRUE ones (leaks part of the answer)"
        )
    return "brightness and contrast of hidden patches are predicted"


class About(NamedTuple):
    """What a picture says about itself.

    Args:
        run: the name of the run.
        step: the training step of its weights; 0 where that is not known.
        masking: what chose the hidden patches.
        files: a name for each image.
        noise_std: of noise on what the encoder sees.
        bands: numbers, from 0, of the channels that are red, green and blue; (): the first three.
    """

    run: str
    step: int
    masking: str
    files: Sequence[str]
    noise_std: float = 0.0
    bands: tuple[int, ...] = ()

    def title(self, mask: Mask) -> str:
        """Such as "photos, step 1,200, 75 % of patches hidden (random)"."""
        return self.begin(
            hidden_words(f"{100 * hidden_share(mask):.0f}", self.masking, self.noise_std)
        )

    def begin(self, *words: str) -> str:
        """A title of these words, after those of the run."""
        step = [f"step {self.step:,}"] if self.step else []
        return " \N{MIDDLE DOT} ".join([self.run, *step, *words])


def hidden_share(mask: Mask) -> float:
    """The share of the patches that a mask hides, 0 to 1."""
    return mask.hide.shape[1] / (mask.hide.shape[1] + mask.keep.shape[1])


def hidden_words(share: str, masking: str, noise_std: float) -> str:
    """What the encoder does not see, such as "75 % of patches hidden (random)".

    Args:
        share: of hidden patches in percent, such as "75", "0" or "60 to 90".
        masking: how they are chosen, in words.
        noise_std: of noise on the normalised images.
    """
    noise = [f"noise of std {noise_std:g}"] if noise_std else []
    hidden = [f"{share} % of patches hidden ({masking})"] if share != "0" else []
    return ", ".join([*hidden, *noise])


def draw(
    model: MAE,
    images: Shaped[Tensor, "B C H W"],
    mask: Mask,
    about: About,
    true_statistics: bool = False,
    scale: int | None = None,
) -> Image.Image:
    """A contact sheet with one column an image: original, masked, reconstruction, prediction.

    Args:
        model: its mode (train or eval) is left as it was.
        images: on any device.
        mask: what is hidden.
        about: the words.
        true_statistics: as for `predict_pixels`.
        scale: how many times images are enlarged; None: so that they can be seen.
    """
    rows = rows_of(model, images, mask, about, true_statistics)
    notes = notes_of(model, images, true_statistics, about.bands)
    return sheet(rows, about.title(mask), about.files, notes, scale)


def rows_of(
    model: MAE,
    images: Shaped[Tensor, "B C H W"],
    mask: Mask,
    about: About,
    true_statistics: bool = False,
) -> dict[str, UInt8[Tensor, "B _ H W"]]:
    """The rows of `draw`, on the CPU."""
    device = next(model.parameters()).device
    was_training = model.training
    made = predict_pixels(
        model.eval(),
        images.to(device),
        Mask(*(ids.to(device) for ids in mask)),
        true_statistics,
        about.noise_std,
    ).cpu()
    model.train(was_training)
    seen = "noisy" if about.noise_std else "masked"
    alone = ["prediction"] if mask.hide.shape[1] else []  # else it is the reconstruction
    original = as_shown(model.encoder, images.to(device)).cpu()
    rows = dict(zip(["original", seen, "reconstruction", *alone], [original, *made]))
    return of_bands(rows, about.bands)


def of_bands(rows: Mapping[str, Tensor], bands: tuple[int, ...]) -> dict[str, Tensor]:
    """Rows of pictures of some channels; maps of errors, which have colors, stay as they are."""
    if not bands:
        return dict(rows)
    return {name: x if ERROR in name else x[:, list(bands)] for name, x in rows.items()}


def notes_of(
    model: MAE,
    images: Shaped[Tensor, "B C H W"],
    true_statistics: bool,
    bands: tuple[int, ...] = (),
) -> list[str]:
    """What is below a picture of reconstructions."""
    notes = [caption(model, true_statistics), bands_shown(images.shape[1], bands)]
    if images.is_floating_point():
        notes.append(f"from black to white: {SHOWN:g} standard deviations on each side of the mean")
    return [f"{note[0].upper()}{note[1:]}." for note in notes if note]


def error_map(
    images: UInt8[Tensor, "B C H W"], others: UInt8[Tensor, "B C H W"]
) -> tuple[UInt8[Tensor, "B 3 H W"], float]:
    """Absolute differences, mean over the channels, as colours (`ERROR_NOTE`), and their mean."""
    import matplotlib

    difference = (images.float() - others.float()).abs().mean(1)
    level = (difference * (255 / MOST_ERROR)).clamp(max=255).ceil().long()
    colours = torch.from_numpy(matplotlib.colormaps["Reds"](range(256)))[:, :3] * 255
    colours[0] = 255
    return colours.round().to(torch.uint8)[level].permute(0, 3, 1, 2), float(difference.mean())


def with_errors(
    model: MAE, images: Shaped[Tensor, "B C H W"], masks: Mapping[str, Mask], true_statistics: bool
) -> dict[str, UInt8[Tensor, "B _ H W"]]:
    """For each mask the rows masked, prediction, reconstruction (with the visible patches), error.

    Args:
        model: in eval mode, on the device of images and masks.
        images: what is hidden and predicted.
        masks: by what the names of their rows begin with.
        true_statistics: as for `predict_pixels`.

    Returns:
        Rows for `sheet`, on the CPU. The name of an error says its mean over the hidden pixels.
    """
    rows: dict[str, Tensor] = {}
    for name, mask in masks.items():
        masked, reconstruction, prediction = predict_pixels(model, images, mask, true_statistics)
        original = as_shown(model.encoder, images)
        errors, mean = error_map(original.cpu(), reconstruction.cpu())
        rows |= {
            f"{name}masked": masked.cpu(),
            f"{name}prediction": prediction.cpu(),
            f"{name}reconstruction": reconstruction.cpu(),
            f"{name}{ERROR}, mean {mean / hidden_share(mask):.1f}": errors,
        }
    return rows
