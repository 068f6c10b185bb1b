"""What `mae serve` says of an image: the model's answers as JSON, one request at a time."""

import io
import math
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.decode import BadImage, decode
from torchmae.data.sources import open_source
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError, printable
from torchmae.eval.detection import to_detections
from torchmae.models.masking import Mask, MaskGenerator
from torchmae.models.weights import (
    load,
    load_classifier,
    load_detector,
    load_mae,
    load_segmenter,
)
from torchmae.report.detection import color_of, draw_found
from torchmae.report.html import playground
from torchmae.report.pictures import draw_mask, predict_pixels
from torchmae.report.segmentation import overlay
from torchmae.runfolder import kind_of, read_config
from torchmae.settings.groups import ListingOptions, test_as_run
from torchmae.tasks.serve.config import Serve
from torchmae.tasks.serve.neighbors import Neighbors
from torchmae.train.distributed import find_device

# Segmenters and detectors resize an image before they look at it, by its shorter side: more pixels
# than a screen shows are not needed, and a strip of one pixel would become a long one.
MOST_SIDE, MOST_ASPECT = 1600, 8
MOST_CLASSES = 10  # that are listed

LOADERS: dict[str, Callable[..., Any]] = {
    "classifier": load_classifier,
    "segmenter": load_segmenter,
    "detector": load_detector,
}
DENSE = ("segmenter", "detector")


class Answers:
    """A model and what the page asks it.

    Nothing of an image is kept between two requests, so that several pages never meet. A lock lets
    one request at a time decode and compute: more would only share cores and memory.

    Args:
        config: the settings of the verb.

    Raises:
        UserError: the run cannot be loaded, takes other images than files hold, or the features are
            not its own.
    """

    def __init__(self, config: Serve):
        stored = read_config(config.run)
        self.kind = kind_of(stored)
        self.config = config
        if config.best and self.kind not in LOADERS:
            raise UserError(f"--best: {config.run} keeps no best weights, since nothing was scored")
        if self.kind in LOADERS:
            self.model = LOADERS[self.kind](config.run, config.best)
        else:
            self.model = load_mae(config.run) if self.kind == "mae" else load(config.run)
        self.device = find_device(config.runtime.device)
        self.model.to(self.device)
        self.encoder = self.model if self.kind == "encoder" else self.model.encoder
        if self.encoder.channels not in (1, 3):
            raise UserError(
                f"{config.run} takes {self.encoder.channels} channels, and a page shows images of "
                "1 or 3: mae reconstruct and mae look draw others"
            )
        wanted = decode_as_run(config.run, config.decode)
        wanted.check()
        if wanted.dtype not in (None, "uint8"):
            raise UserError(
                f"{config.run} takes {wanted.dtype}, and a page shows images of 8 bits: mae "
                "reconstruct and mae look draw what it makes of others"
            )
        self.decoding = replace(wanted, channels=self.encoder.channels)
        self.about = playground.about(config.run, self.model, config.best)
        self.about["max_upload"] = round(config.max_upload * 1e6)
        self.crop = CenterCropResize(tuple(self.encoder.image_size), self.about["crop"])
        self.neighbors = None
        if config.features is not None:
            data = config.data or stored["config"].get("data")
            if not isinstance(data, str):
                raise UserError(f"{config.run} knows no images of its own: name them with --data")
            listing = listing_as_run(ListingOptions(), data, config.run)
            source = open_source(data, self.decoding, listing)
            self.neighbors = Neighbors(
                config.features, source, self.encoder, self.crop, self.device
            )
        elif config.data is not None:
            raise UserError("--data goes with --features: the file that mae embed wrote of it")
        config.test.check()
        how = test_as_run(config.test, stored["config"])
        self.segment = partial(self.model.predict, **how) if self.kind == "segmenter" else None
        self.lock = threading.Lock()

    def image(self, data: bytes) -> dict[str, Any]:
        """All about an image file that does not depend on a mask.

        Returns:
            Its sides; `pixels` as the model gets them; the `tokens` of its patches; `classes`,
            `found` and `neighbors`, where there are any.

        Raises:
            BadImage: it is none, or too large.
        """
        with self.lock, torch.no_grad():
            began = time.perf_counter()
            image = decode(data, self.decoding)
            pixels = self.crop(image)[0]
            answer = {
                "height": image.shape[0],
                "width": image.shape[1],
                "pixels": packed(pixels.permute(1, 2, 0)),
                "tokens": packed(self.tokens(pixels)),
            }
            if self.kind == "classifier":
                answer["classes"] = self.classes(pixels)
            if self.kind in DENSE:
                whole = torch.from_numpy(shrunk(image)).permute(2, 0, 1)
                answer["found"] = self.regions(whole) if self.segment else self.objects(whole)
            if self.neighbors is not None:
                answer["neighbors"] = self.neighbors.nearest(pixels)
            return {**answer, "ms": since(began)}

    def tokens(self, pixels: UInt8[Tensor, "C H W"]) -> Tensor:
        """The last tokens of all patches, float32 [N, D]; nothing is masked."""
        images = self.encoder.normalize(pixels.unsqueeze(0).to(self.device))
        if self.kind in DENSE:  # these use maps, also with attention in windows
            (found,) = self.encoder.forward_intermediates(images, [-1])
            return found[0].flatten(1).T.float().cpu()
        return self.encoder(images)[0, self.encoder.num_prefix_tokens :].float().cpu()

    def classes(self, pixels: UInt8[Tensor, "C H W"]) -> list[dict[str, Any]]:
        """The most probable classes."""
        images = self.encoder.normalize(pixels.unsqueeze(0).to(self.device))
        shares = self.model(images)[0].float().softmax(0).cpu()
        best = shares.topk(min(MOST_CLASSES, len(shares)))
        return [
            {"name": printable(self.model.classes[i]), "probability": share}
            for share, i in zip(best.values.tolist(), best.indices.tolist())
        ]

    def regions(self, image: UInt8[Tensor, "C H W"]) -> dict[str, Any]:
        """The class of each pixel: a picture, and the share of each class."""
        assert self.segment is not None
        labels = self.segment(image.unsqueeze(0).to(self.device))[0].cpu()
        names, colors = self.model.classes, self.model.colors
        clear = [i for i, name in enumerate(names) if name == "background"]
        counts = torch.bincount(labels.flatten().long(), minlength=len(names))
        legend = [
            {
                "name": printable(name),
                "color": "#{:02x}{:02x}{:02x}".format(*color),
                "says": f"{count / labels.numel():.1%} of the pixels",
            }
            for name, color, count in zip(names, colors, counts.tolist())
            if count
        ]
        return {"picture": png(overlay(image, labels, colors, clear)), "legend": legend}

    def objects(self, image: UInt8[Tensor, "C H W"]) -> dict[str, Any]:
        """The objects that were found: a picture, and a line for each."""
        (raw,) = self.model.predict(image.unsqueeze(0).to(self.device))
        found = to_detections(raw, *image.shape[1:])
        names, own = self.model.classes, len(self.model.classes) == 1
        sure = np.flatnonzero(found.scores >= self.config.min_score).tolist()
        legend = [
            {
                "name": printable(names[found.classes[k]]),
                "color": "#{:02x}{:02x}{:02x}".format(
                    *color_of(n % 7 if own else int(found.classes[k]))
                ),
                "says": f"score {found.scores[k]:.2f}, "
                + " ".join(f"{value:.0f}" for value in found.boxes[k]),
            }
            for n, k in enumerate(sure)
        ]
        shown = draw_found(image, found, names, self.config.min_score)
        return {"picture": png(shown), "legend": legend}

    def mask(self, name: str, ratio: float, seed: int) -> dict[str, Any]:
        """The hidden patches that a masking draws for a seed: those of the first image of `mae
        reconstruct --seed`."""
        if not math.isfinite(ratio) or not 0 <= seed < 1 << 53:
            raise UserError("a mask needs a ratio within 0 to 1 and a seed from 0 on")
        with self.lock, torch.no_grad():
            mask = draw_mask(self.model, MaskGenerator(name, ratio), seed, torch.tensor([0]))
        return {"hidden": sorted(mask.hide[0].tolist())}

    def reconstruct(
        self, pixels: str, hidden: Sequence[int], true_statistics: bool
    ) -> dict[str, Any]:
        """What the model makes of the visible patches.

        Args:
            pixels: base64 of uint8 [H, W, C], as `image` returned them.
            hidden: the numbers of the hidden patches.
            true_statistics: as for `predict_pixels`.

        Returns:
            `seen` and `reconstruction` as pixels, like `pixels`.
        """
        if not self.about["pictures"]:
            raise UserError(f"{self.about['run']} does not predict pixels")
        height, width = self.encoder.image_size
        channels, patches = self.encoder.channels, self.about["patches"]
        try:
            raw = b64decode(pixels, validate=True)
        except ValueError:
            raw = b""
        if len(raw) != height * width * channels:
            raise UserError(f"{len(raw)} pixel values, not {height} x {width} x {channels}")
        own = set(hidden)
        if not own <= set(range(patches)) or len(own) == patches:
            raise UserError(f"hidden patches are numbers below {patches}, and not all of them")
        images = torch.from_numpy(np.frombuffer(raw, np.uint8).copy())
        images = images.view(1, height, width, channels).permute(0, 3, 1, 2).to(self.device)
        mask = Mask(
            *(
                torch.tensor([ids], dtype=torch.int64, device=self.device)
                for ids in (sorted(set(range(patches)) - own), sorted(own))
            )
        )
        with self.lock:
            began = time.perf_counter()
            made = predict_pixels(
                self.model, images, mask, true_statistics, self.about["noise"]
            ).cpu()
            shown = zip(("seen", "reconstruction"), made)
            answer = {name: packed(one[0].permute(1, 2, 0)) for name, one in shown}
            return {**answer, "ms": since(began)}


def since(began: float) -> int:
    """Milliseconds."""
    return round(1000 * (time.perf_counter() - began))


def packed(values: Tensor) -> str:
    """The bytes of a tensor, in base64."""
    return b64encode(values.contiguous().numpy().tobytes()).decode()


def png(image: UInt8[Tensor, "3 H W"]) -> str:
    """A picture as the source of an <img>."""
    out = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(out, "PNG", compress_level=1)
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


def shrunk(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w C"]:
    """An image of which neither side is longer than `MOST_SIDE`.

    Raises:
        BadImage: it is a strip.
    """
    height, width = image.shape[:2]
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise BadImage(f"{width} x {height} pixels: one side is over {MOST_ASPECT} times the other")
    scale = MOST_SIDE / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).contiguous().numpy()
