"""Reconstructions of hidden patches as pictures, which say what they show."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, gaussian, masking, noise
from torchmae.models.patches import (
    gather_tokens,
    patch_statistics,
    patchify,
    scatter_tokens,
    unpatchify,
)
from torchmae.report.sheet import bands_shown, sheet


def draw_mask(model: MAE, name: str, ratio: float, seed: int, sample: Tensor) -> Mask:
    """The masks of some samples in epoch 0 of a seed.

    Args:
        model: its grid is masked.
        name: of the masking: "random", "block" or "grid".
        ratio: share of hidden patches.
        seed: of the masks.
        sample: int64 [B], the numbers of the samples.
    """
    grid = model.encoder.grid
    scores = noise(seed, torch.zeros_like(sample), sample, math.prod(grid))
    return masking(name)(scores, grid, ratio)


@torch.no_grad()
def predict_pixels(
    model: MAE,
    images: UInt8[Tensor, "B C H W"],
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
    grey, white = (
        patchify(encoder.normalize(torch.full_like(images, value)), size) for value in (128, 255)
    )
    rows = [
        scatter_tokens(patches, mask.hide, gather_tokens(grey, mask.hide)),
        scatter_tokens(patches, ids, predicted),
        scatter_tokens(white, ids, predicted),
    ]
    return torch.stack([encoder.denormalize(unpatchify(row, size, encoder.grid)) for row in rows])


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
    """

    run: str
    step: int
    masking: str
    files: Sequence[str]
    noise_std: float = 0.0

    def title(self, mask: Mask) -> str:
        """Such as "photos, step 1,200, 75 % of patches hidden (random)"."""
        hidden = mask.hide.shape[1] / (mask.hide.shape[1] + mask.keep.shape[1])
        step = [f"step {self.step:,}"] if self.step else []
        words = [self.run, *step, hidden_words(hidden, self.masking, self.noise_std)]
        return " \N{MIDDLE DOT} ".join(words)


def hidden_words(ratio: float, masking: str, noise_std: float) -> str:
    """What the encoder does not see, such as "75 % of patches hidden (random)"."""
    noise = [f"noise of std {noise_std:g}"] if noise_std else []
    hidden = [f"{100 * ratio:.0f} % of patches hidden ({masking})"] if ratio else []
    return ", ".join([*hidden, *noise])


def draw(
    model: MAE,
    images: UInt8[Tensor, "B C H W"],
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
    rows = dict(zip(["original", seen, "reconstruction", *alone], [images.cpu(), *made]))
    notes = [caption(model, true_statistics), bands_shown(images.shape[1])]
    return sheet(
        rows, about.title(mask), about.files, [f"{n[0].upper()}{n[1:]}." for n in notes if n], scale
    )
