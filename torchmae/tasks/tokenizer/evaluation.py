"""How good a tokenizer is while it is trained: the likeliest tokens of some images, and pictures
of what they stand for."""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from torchmae import runfolder
from torchmae.data.loader import Batches
from torchmae.data.transforms import CenterCropResize
from torchmae.models.targets.tokenizer import Tokenizer, perplexity
from torchmae.report.pictures import as_shown
from torchmae.report.sheet import bands_shown, sheet
from torchmae.train.distributed import World

logger = logging.getLogger(__name__)

MOST = 1000  # images that are measured on
AT_A_TIME = 32
SHOWN = 8


class Evaluation:
    """Evaluator: center crops of up to 1000 evenly spaced training images, through the likeliest
    token of each patch and back.

    Attributes:
        found: what was measured last: "error" (mean squared, of normalized pixels), "perplexity"
            of the tokens over all these images, "dead" (codes that none of them uses),
            "vocabulary", "images".
    """

    def __init__(self, model: Tokenizer, batches: Batches, out: Path, world: World):
        self.model = model
        self.batches = batches
        self.folder = out / runfolder.PICTURES
        self.run = out.resolve().name
        self.device = world.device
        self.is_main = world.is_main
        self.found: dict[str, Any] = {}
        images = len(batches.source)
        self.samples = (torch.arange(min(MOST, images)) * images // min(MOST, images)).tolist()
        self.decoded: Shaped[Tensor, "N C H W"] | None = None
        self.names: list[str] = []

    def images(self) -> Shaped[Tensor, "N C H W"]:
        """The images; read once (150 MB at 224 px)."""
        if self.decoded is None:
            height, width = self.model.config.image_size
            crop, crops = CenterCropResize((height, width)), []
            for sample in self.samples:
                index, pixels = self.batches.read(sample, [])  # a bad file's replacement too
                crops.append(crop(pixels)[0])
                self.names.append(PurePath(self.batches.source.name(index)).name)
            self.decoded = torch.stack(crops)
        return self.decoded

    @torch.no_grad()
    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        """Measures, and draws; yields how many codes are used and their perplexity."""
        model, images, errors, tokens = self.model, self.images(), [], []
        for part in images.split(AT_A_TIME):
            truth = model.normalize(part.to(self.device))
            tokens.append(model.tokens(truth))
            again = model.reconstruct(tokens[-1], model.grid(truth))
            errors.append((again - truth).square().flatten(1).mean(1))
        found, size = torch.cat(tokens), model.config.vocabulary
        used = found.flatten().bincount(minlength=size)
        self.found = {
            "error": float(torch.cat(errors).mean()),
            "perplexity": float(perplexity(used.float())),
            "dead": int((used == 0).sum()),
            "vocabulary": size,
            "images": len(images),
        }
        if self.is_main:
            self.draw(step, images, found)
        yield "codes used", float(size - self.found["dead"])
        yield "perplexity", self.found["perplexity"]

    def draw(
        self, step: int, images: Shaped[Tensor, "N C H W"], tokens: Int64[Tensor, "N n"]
    ) -> None:
        """Saves a picture of 8 images and what their tokens stand for in `pictures/`."""
        count = min(SHOWN, len(images))
        shown = torch.arange(count) * len(images) // count
        height, width = images.shape[2:]
        grid = (height // self.model.patch[0], width // self.model.patch[1])
        again = self.model.reconstruct(tokens[shown.to(self.device)], grid)
        rows = {
            "original": as_shown(self.model, images[shown].to(self.device)).cpu(),
            f"of {grid[0]}x{grid[1]} tokens": self.model.denormalize(again).cpu(),
        }
        about = self.found
        notes = [
            f"Likeliest tokens. On {about['images']:,} training images: mean squared error "
            f"{about['error']:.3f} of normalized pixels; {about['vocabulary'] - about['dead']:,} "
            f"of {about['vocabulary']:,} codes used, perplexity {about['perplexity']:.0f}.",
            bands_shown(images.shape[1]),
        ]
        names = [self.names[int(i)] for i in shown]
        title = f"{self.run} \N{MIDDLE DOT} step {step:,}"
        picture = sheet(rows, title, names, [note for note in notes if note])
        self.folder.mkdir(exist_ok=True, parents=False)
        partial = self.folder / ".partial.png"
        try:
            picture.save(partial)
            partial.replace(self.folder / f"step-{step:08d}.png")
        except OSError as error:  # no reason to lose a training
            logger.warning(f"could not draw {self.folder}: {error.strerror or error}")
