"""The images of a file of features that are nearest to one: those a model finds alike."""

import zipfile
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from torchmae.data.decode import BadImage
from torchmae.data.loader import read_pixels
from torchmae.data.sources import Source
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError, printable
from torchmae.eval.extract import POOLS, features_of
from torchmae.models.encoders import Backbone
from torchmae.report.html.thumbs import thumbnail

SHOWN = 8
TRIED = 20  # files of which one has to be readable, to know whose features these are
ALIKE = 0.999  # cosine of features that are the same but for other hardware


class Neighbors:
    """Features of images, and the encoder they are of.

    Args:
        file: a .npz file of `mae embed`.
        source: the images that it was written of, in any order.
        encoder: of the run.
        crop: how images become what the encoder takes.
        device: where it computes.

    Raises:
        UserError: no such file, or its features are not those of these images with this encoder.
    """

    def __init__(
        self,
        file: str,
        source: Source,
        encoder: Backbone,
        crop: CenterCropResize,
        device: torch.device,
    ):
        names, features = read_features(file)
        place = {source.name(i): i for i in range(len(source))}
        unknown = [name for name in names if name not in place]
        if unknown:
            raise UserError(
                f"--features {file}: {len(unknown):,} of its {len(names):,} images are not there "
                f"({printable(unknown[0])}): name the DATA of mae embed with --data"
            )
        self.source = source
        self.ids = [place[name] for name in names]
        self.features = F.normalize(torch.from_numpy(features), dim=1)
        pools = {
            pool: features_of(encoder, None, pool, device)
            for pool in POOLS
            if pool == "mean" or encoder.num_prefix_tokens
        }
        for row, i in enumerate(self.ids[:TRIED]):
            pixels = self.pixels(i)
            if pixels is None:
                continue
            with torch.no_grad():
                made = {pool: F.normalize(of(crop(pixels)[0][None])) for pool, of in pools.items()}
            for pool, own in made.items():
                if own.shape[1] == features.shape[1] and own[0] @ self.features[row] > ALIKE:
                    self.features_of = pools[pool]
                    return
            raise UserError(
                f"--features {file}: {printable(names[row])} has other features with this run: "
                "write them again with mae embed RUN DATA (the last layer, the last weights)"
            )
        raise UserError(
            f"--features {file}: none of its first {TRIED} images can be read, so they can neither "
            "be checked nor shown"
        )

    def pixels(self, i: int) -> UInt8[np.ndarray, "H W C"] | None:
        """An image of the source, None where it is damaged or gone."""
        try:
            return read_pixels(self.source, i)
        except BadImage:
            return None

    def nearest(self, pixels: UInt8[Tensor, "C H W"]) -> list[dict[str, Any]]:
        """The images with the largest cosine of their features to those of one."""
        query = F.normalize(self.features_of(pixels[None]))[0]
        best = (self.features @ query).topk(min(SHOWN, len(self.ids)))
        found = []
        for similarity, row in zip(best.values.tolist(), best.indices.tolist()):
            image = self.pixels(self.ids[row])
            found.append(
                {
                    "name": printable(PurePath(self.source.name(self.ids[row])).name),
                    "similarity": similarity,
                    "picture": "" if image is None else thumbnail(image),
                }
            )
        return found


def read_features(file: str) -> tuple[list[str], Float[np.ndarray, "N F"]]:
    """Names and features of a .npz file of `mae embed`."""
    path = Path(file)
    if path.suffix.lower() != ".npz":
        raise UserError(f"--features {file}: a .npz file, as mae embed RUN DATA --out f.npz writes")
    try:
        with np.load(path) as arrays:
            names, features = arrays["paths"].tolist(), arrays["features"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "not a file of mae embed, or damaged"
        raise UserError(f"--features {file} cannot be read: {reason}") from error
    whole = features.ndim == 2 and features.dtype == np.float32 and len(features) == len(names) > 0
    if not whole or not np.isfinite(features).all():
        raise UserError(f"--features {file}: not what mae embed writes: paths and float32 features")
    return [str(name) for name in names], features
