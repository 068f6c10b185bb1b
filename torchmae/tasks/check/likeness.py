"""--run: which images are alike by the features of a run."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from PIL import Image
from torch import Tensor

from torchmae.data.loader import read_pixels
from torchmae.data.quality.duplicates import Duplicates, grouped, similar_pairs
from torchmae.data.quality.survey import Survey
from torchmae.data.quality.texture import chosen
from torchmae.data.sources.source import Source, Subset, with_decode
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.eval.extract import Function, collect, features_of
from torchmae.models.encoders import Backbone
from torchmae.models.weights import load
from torchmae.runfolder import read_config
from torchmae.train.distributed import find_device

PLANTED = 100  # images of which copies are made, to know how alike the features of copies are
FOUND = 0.9  # of these copies are found
CROPPED = 0.05  # of each side that a copy lacks
LEAST_IMAGES = 10  # to know how features spread


class Alike(NamedTuple):
    """What the features of a run say.

    Attributes:
        duplicates: the groups.
        planted: how many copies were made to measure the next.
        least: the similarity from which on images are taken for copies.
        usual: that of the median image and the other one that is most like it.
    """

    duplicates: Duplicates
    planted: int
    least: float
    usual: float

    def words(self, run: str) -> str:
        """How near-duplicates were found."""
        return (
            f"near-duplicates are those by the features of {run}: a similarity of "
            f"{self.least:.3f} and more, which {FOUND:.0%} of {self.planted} planted copies reach "
            f"(half the size as JPEG of quality 30; {CROPPED:.0%} of each side cut off); the "
            f"median image has {self.usual:.3f} with the one that is most like it"
        )


@torch.no_grad()
def by_features(found: Survey, run: str, device: str, seed: int) -> Alike:
    """Groups of images that are alike by the features of a run.

    A similarity is the cosine of two pooled features, each dimension without its mean over the set
    and divided by its std. The least one of a copy is measured: copies of images that the seed
    chooses are made, and `FOUND` of them are as like their images as that.

    Args:
        found: the images; blank ones are left out.
        run: the run folder.
        device: where features are computed.
        seed: of the choice.

    Raises:
        UserError: there are too few images.
    """
    encoder, where = load(run), find_device(device)
    function = features_of(encoder, None, "mean", where)
    ids, rows = features(found, encoder, run, function)
    keep = ~found.blank[ids]
    ids, rows = ids[keep], rows[keep]
    if len(ids) < LEAST_IMAGES:
        raise UserError(f"--run {run}: {len(ids)} images are too few: leave it out")
    mean, std = rows.mean(0), np.maximum(rows.std(0), 1e-6)

    def unit(some: Float32[np.ndarray, "K F"]) -> Float32[np.ndarray, "K F"]:
        scaled = (some - mean) / std
        return np.asarray(scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-6))

    rows, place = unit(rows), {int(i): k for k, i in enumerate(ids)}
    sample = chosen(ids, PLANTED, seed)
    planted = np.concatenate(list(copies(found, sample, encoder, run, function)))
    likeness = (unit(planted) * np.repeat(rows[[place[i] for i in sample]], 2, axis=0)).sum(1)
    least = float(np.quantile(likeness, 1 - FOUND))
    others = rows[[place[i] for i in sample]] @ rows.T
    others[np.arange(len(sample)), [place[i] for i in sample]] = -1
    duplicates = grouped(
        found.digests, ids, lambda some: similar_pairs(rows[[place[int(i)] for i in some]], least)
    )
    return Alike(duplicates, len(likeness), least, float(np.median(others.max(1))))


def features(
    found: Survey, encoder: Backbone, run: str, function: Function
) -> tuple[np.ndarray, Float32[np.ndarray, "M F"]]:
    """The numbers of all images that can be read, and their features."""
    ids: list[int] = []
    rows: list[Tensor] = []
    good, first = set(found.good.tolist()), 0
    for source in found.sources:
        some = [i for i in range(len(source)) if first + i in good]
        if some:
            read, (made,), _ = collect(
                Subset(source, some), encoder, run, [function], torch.device("cpu")
            )
            ids += [first + some[k] for k in read]
            rows.append(made)
        first += len(source)
    return np.array(ids), torch.cat(rows).numpy()


def copies(
    found: Survey, sample: list[int], encoder: Backbone, run: str, function: Function
) -> Iterator[Float32[np.ndarray, "2 F"]]:
    """The features of two copies of each of some images: smaller and compressed, and cut."""
    crop = CenterCropResize(encoder.image_size, read_config(run)["config"].get("crop_pct", 1.0))
    for i in sample:
        source, k = found.place(i)
        pixels = read_pixels(as_encoder(source, encoder), k)
        made = [crop(change(pixels))[0] for change in (compressed, cut)]
        yield function(torch.stack(made)).numpy()


def as_encoder(source: Source, encoder: Backbone) -> Source:
    """The source decoded to the channels of an encoder."""
    return with_decode(source, replace(source.decode, channels=encoder.channels))


def compressed(pixels: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "h w C"]:
    """Half the size, as a JPEG of quality 30 where there is one of such pixels."""
    height, width, channels = pixels.shape
    size = (max(1, width // 2), max(1, height // 2))
    if channels not in (1, 3) or pixels.dtype != np.uint8:
        return np.ascontiguousarray(pixels[::2, ::2])
    shown = pixels if channels == 3 else pixels[..., 0]
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).resize(size).save(out, "JPEG", quality=30)
    return np.asarray(Image.open(out)).reshape(size[1], size[0], channels)


def cut(pixels: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "h w C"]:
    """Without `CROPPED` of each side."""
    height, width = (round(CROPPED * side) for side in pixels.shape[:2])
    return np.ascontiguousarray(
        pixels[height : pixels.shape[0] - height, width : pixels.shape[1] - width]
    )
