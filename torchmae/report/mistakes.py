"""mistakes.png: the images whose class is predicted wrongly with the most confidence."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.data.decode import BadImage
from torchmae.data.formats.raster import viewable
from torchmae.data.loader import read_pixels
from torchmae.data.sources.source import Source
from torchmae.data.transforms import CenterCropResize
from torchmae.disk import whole_file
from torchmae.report.sheet import bands_note, sheet

MOST = 16


def most_confident_mistakes(
    logits: Float[Tensor, "N classes"], labels: Int64[Tensor, " N"]
) -> tuple[Int64[Tensor, " M"], Float[Tensor, " N"]]:
    """The places of wrong predictions, the most confident first, and the confidence of each."""
    confidence, guesses = logits.softmax(1).max(1)
    wrong = (guesses != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)], confidence


def draw_mistakes(  # noqa: PLR0913 - what is drawn
    source: Source,
    ids: Sequence[int],
    logits: Float[Tensor, "N classes"],
    labels: Int64[Tensor, " N"],
    classes: Sequence[str],
    size: tuple[int, int],
    path: Path,
) -> bool:
    """Draws up to `MOST` mistakes; an earlier picture goes where there are none.

    Args:
        source: the images.
        ids: the numbers of the N images there.
        logits: their predictions.
        labels: their classes, as numbers of `classes`.
        classes: the names.
        size: (H, W) of the centre crop that the model saw.
        path: the picture.

    Returns:
        Whether there is a picture.
    """
    places, confidence = most_confident_mistakes(logits, labels)
    crop, images, names = CenterCropResize(size), [], []
    for k in places[:MOST].tolist():
        try:
            pixels = read_pixels(source, ids[k])
        except BadImage:  # it was there a moment ago
            continue
        images.append(crop(viewable(pixels))[0])  # black and white are those of the whole image
        guess, true = classes[int(logits[k].argmax())], classes[int(labels[k])]
        names.append(f"{guess} {confidence[k]:.0%}, is {true}")
    if not images:
        path.unlink(missing_ok=True)
        return False
    title = f"The most confident of {len(places)} mistakes in {len(labels)} images"
    with whole_file(path) as partial:
        notes = bands_note(len(images[0]))
        sheet({"": torch.stack(images)}, title, names, notes).save(partial)
    return True
