"""Reconstructions drawn while pre-training."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from torchmae import runfolder
from torchmae.data.loader import Batches
from torchmae.data.sources.source import Source
from torchmae.data.transforms import CenterCropResize
from torchmae.data.workers import Loading
from torchmae.eval.tokens.maps import colored_tokens
from torchmae.models.mae import MAE
from torchmae.models.masking import MaskGenerator
from torchmae.report.pictures import About, draw_mask, notes_of, rows_of
from torchmae.report.sheet import sheet
from torchmae.tasks.pretrain.config import ResolvedPretrain
from torchmae.train.distributed import World

logger = logging.getLogger(__name__)

COUNT = 8
TOKENS = (
    "Tokens: the three largest principal components of the patch tokens of all these images as "
    "red, green and blue; equal colors are similar features."
)


@dataclass(frozen=True)
class First:
    """Some images of a source, cropped, with their numbers; a replacement for a bad one."""

    batches: Batches
    samples: Sequence[int]
    crop: CenterCropResize

    @property
    def source(self) -> Source:
        return self.batches.source

    def __getitem__(self, place: int) -> tuple[int, Shaped[Tensor, "C H W"]]:
        index, pixels = self.batches.read(self.samples[place], [])
        return index, self.crop(pixels)[0]


class Pictures:
    """Evaluator: the same 8 images with the same masks, all through the training, in
    `pictures/`."""

    def __init__(
        self, model: MAE, batches: Batches, config: ResolvedPretrain, out: Path, world: World
    ):
        self.model = model
        self.masking = config.masking
        self.seed = config.optim.seed
        self.folder = out / runfolder.PICTURES
        self.is_main = world.is_main
        images = len(batches.source)
        shown = min(COUNT, images)
        self.samples = torch.arange(shown) * images // shown
        first = First(batches, self.samples.tolist(), CenterCropResize(model.encoder.image_size))
        read = list(Loading(first, range(shown), workers=0))  # which names a read that never ends
        self.images = torch.stack([image for _, image in read])
        self.run = out.resolve().name
        self.files = [PurePath(batches.source.name(index)).name for index, _ in read]

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        """Draws; measures nothing."""
        masking = self.masking
        masks = MaskGenerator.of(vars(masking))
        mask = draw_mask(self.model, masks, self.seed, self.samples)
        about = About(self.run, step, masks.words(), self.files, masking.noise)
        rows: dict[str, Tensor] = dict(rows_of(self.model, self.images, mask, about))
        notes = notes_of(self.model, self.images, False)
        tokens = self.tokens()
        if tokens is not None:
            rows, notes = {**rows, "tokens": tokens}, [*notes, TOKENS]
        picture = sheet(rows, about.title(mask), about.files, notes)
        if self.is_main:
            self.folder.mkdir(exist_ok=True, parents=False)
            partial = self.folder / ".partial.png"
            try:
                picture.save(partial)
                partial.replace(self.folder / f"step-{step:08d}.png")
            except OSError as error:  # no reason to lose a training
                logger.warning(f"could not draw {self.folder}: {error.strerror or error}")
        yield from ()

    def tokens(self) -> UInt8[Tensor, "B 3 H W"] | None:
        """What the encoder makes of the whole images, as colors."""
        was_training = self.model.training
        device = next(self.model.parameters()).device
        colors = colored_tokens(self.model.eval().encoder, self.images.to(device))
        self.model.train(was_training)
        return colors
