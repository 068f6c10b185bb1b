"""What is exported, what an export is, and how far it agrees with torchmae once it is reloaded."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn

from torchmae.errors import RunError, UserError
from torchmae.interop.names import Weights
from torchmae.models.detection.detector import Detector
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, mask_from_order
from torchmae.models.patches import (
    gather_tokens,
    patch_statistics,
    patchify,
    scatter_tokens,
    unpatchify,
)
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.models.vit import ViT


class WithPreprocessing(nn.Module):
    """An encoder, a classifier, a segmenter or a detector that normalizes pixels by itself, for
    servers without torchmae.

    Args:
        model: a `Classifier`, a `Segmenter`, a `Detector`, or an encoder.
        pool: of an encoder's tokens `[B, T, D]` with so many prefix tokens, to features `[B, F]`;
            None for the others, which have their own.
    """

    def __init__(self, model: Any, pool: Callable[[Tensor, int], Tensor] | None):
        super().__init__()
        self.model = model
        self.pool = pool
        self.encoder: ViT = model.encoder if pool is None else model

    def forward(self, images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B ..."]:
        """Logits or features of pixels 0..255."""
        output = self.model(self.encoder.normalize(images))
        return output if self.pool is None else self.pool(output, self.encoder.num_prefix_tokens)


class Masked(nn.Module):
    """A masked autoencoder whose mask is an input: what a graph of it computes.

    Visible and hidden patches may overlap: all visible and any one hidden gives the tokens of the
    whole image.

    Args:
        model: the MAE, whose target has pictures where pixels are taken.
        pixels: takes uint8 pixels and gives pictures; else normalized floats and predictions.
    """

    def __init__(self, model: MAE, pixels: bool):
        super().__init__()
        self.model = model
        self.pixels = pixels

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `forward` returns."""
        apart = self.model.decoder.statistics is not None
        if self.pixels:
            return ("reconstruction", *(["with_true_statistics"] if apart else []), "tokens")
        return ("prediction", *(["statistics"] if apart else []))

    def forward(
        self,
        images: Shaped[Tensor, "B C H W"],
        keep: Int64[Tensor, "B K"],
        hide: Int64[Tensor, "B M"],
    ) -> tuple[Tensor, ...]:
        """What is made of the visible patches, in the order of `outputs`.

        Args:
            images: see `pixels`.
            keep: the numbers of the visible patches.
            hide: those of the hidden patches.

        Returns:
            `prediction` [B, M, P] and `statistics` [B, M, 2] (mean and std of each patch) of the
            hidden patches; or float pictures [B, C, H, W] in which white is 1, not cut off there,
            and the `tokens` [B, K, D] of the visible patches.
        """
        model, encoder, mask = self.model, self.model.encoder, Mask(keep, hide)
        floats = encoder.normalize(images) if self.pixels else images
        latent = model.encode(floats, mask)
        features = model.decoder.hidden(latent, mask)
        found = model.decoder.pred(features)
        apart = []
        if model.decoder.statistics is not None:
            apart = [model.predict_statistics(floats, mask, features)]
        if not self.pixels:
            return (found, *apart)
        patches = patchify(floats, encoder.patch)
        if apart:
            apart.append(patch_statistics(gather_tokens(patches, hide)))
        assert isinstance(encoder, ViT)
        mean, std = encoder.pixel_statistics
        pictures = []
        kinds: list[Tensor | None] = [*apart] or [None]
        for statistics in kinds:
            made = scatter_tokens(patches, hide, model.target.to_pixels(found, statistics))
            pictures.append(unpatchify(made, encoder.patch, encoder.grid) * std + mean)
        return (*pictures, latent[:, model.decoder.class_tokens :])


class ExportInput(NamedTuple):
    """What is exported.

    Args:
        model: the module in eval mode.
        weights: under plain names (see `interop.names`).
        config: the model's `config()`.
        mask_ratio: of the run.
        out: the final folder.
        crop_pct: the share of an image's sides that evaluation sees.
        origin: where the weights come from, by name, for the metadata of a graph.
        serving: what a graph computes in place of the model, if it is to take pixels.
    """

    model: Any
    weights: Weights
    config: dict[str, Any]
    mask_ratio: float
    out: Path
    crop_pct: float
    origin: Mapping[str, str] = MappingProxyType({})
    serving: WithPreprocessing | Masked | None = None

    @property
    def encoder(self) -> ViT:
        whole = isinstance(self.model, MAE | Classifier | Segmenter | Detector)
        encoder = self.model.encoder if whole else self.model
        if not isinstance(encoder, ViT):
            raise UserError(f"only a ViT can be exported, not {type(encoder).__name__}")
        return encoder

    @property
    def pool(self) -> str:
        return "mean" if isinstance(self.encoder.norm, nn.Identity) else "cls"


class ExportResult(NamedTuple):
    """An export.

    `reloaded` is the function of the reloaded model, from images to what `reference_output`
    returns, or to the outputs of a `DetectorGraph`; `lines` of Python load it; `model` is that
    model, if it is one of PyTorch; `tolerance` is the largest difference allowed, in each size of
    batch of `batches`, and in images of each of `sizes` (none: of the encoder's size).
    """

    reloaded: Callable[[Shaped[Tensor, "B C H W"]], Any]
    lines: list[str]
    model: nn.Module | None
    tolerance: float = 1e-5
    batches: tuple[int, ...] = (16,)
    sizes: tuple[tuple[int, int], ...] = ()


@torch.no_grad()
def reference_output(subject: ExportInput, images: Shaped[Tensor, "B C H W"]) -> Tensor:
    """Tokens of an encoder, logits of a classifier, predictions of an MAE for the hidden patches of
    `hidden`; features, logits or reconstructions of pixels where preprocessing is exported too."""
    if isinstance(subject.serving, Masked):
        return subject.serving(images, *hidden(subject, images))[0]
    if subject.serving is not None:
        return subject.serving(images)
    if isinstance(subject.model, MAE):
        return subject.model(images, hidden(subject, images)).prediction
    return subject.model(images)


def hidden(subject: ExportInput, images: Tensor) -> Mask:
    """The first patches are visible, as many as at the run's mask ratio."""
    order = torch.arange(math.prod(subject.encoder.grid)).expand(len(images), -1)
    return mask_from_order(order, subject.mask_ratio)


def compare(subject: ExportInput, made: ExportResult) -> str:
    """The largest difference on 16 random images, of each size, in words.

    The tolerance is absolute. Where outputs are large, float32 itself rounds more coarsely than
    that, in any order of the same sums; then the models are compared in float64, with the same
    tolerance.

    Raises:
        RunError: the difference is larger than the tolerance.
    """
    images = random_images(subject, made.sizes or (subject.encoder.image_size,))
    difference, largest = max_abs_diff(subject, made, images)
    words = f"by at most {difference:.1e}"
    if not difference <= made.tolerance and made.model is not None:
        models = (subject.model.double(), made.model.double())
        difference, _ = max_abs_diff(subject, made, [as_double(some) for some in images])
        words += f" in float32 (outputs go up to {largest:.0f}) and by {difference:.1e} in float64"
        for model in models:
            model.float()
    if not difference <= made.tolerance:
        raise RunError(
            f"reloaded, the export differs by {difference:.1e} (allowed: {made.tolerance:.0e}): "
            "nothing written"
        )
    return words


def random_images(
    subject: ExportInput, sizes: Sequence[tuple[int, int]]
) -> list[Shaped[Tensor, "16 C _h _w"]]:
    """16 images of each size: normal, or pixels where preprocessing is exported too."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, subject.encoder.channels, *size) for size in sizes]
    if subject.serving is None:
        return [torch.randn(shape, generator=generator) for shape in shapes]
    return [torch.randint(0, 256, s, generator=generator, dtype=torch.uint8) for s in shapes]


def as_double(images: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C H W"]:
    """Floats in float64; pixels as they are."""
    return images.double() if images.is_floating_point() else images


def max_abs_diff(
    subject: ExportInput, made: ExportResult, images: Sequence[Shaped[Tensor, "B C _h _w"]]
) -> tuple[float, float]:
    """The largest difference, over all sizes of images and of batches, and the largest output."""
    differences, outputs = [], []
    for some, batch in product(images, made.batches):
        expected = reference_output(subject, some[:batch])
        output = made.reloaded(some[:batch])
        if output.shape != expected.shape:
            raise RunError(
                f"reloaded, the export returns {list(output.shape)}, not {list(expected.shape)}: "
                "nothing written"
            )
        differences.append((output - expected).abs().max())
        outputs.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(outputs).max())


def no_decoder(subject: ExportInput, form: str) -> None:
    if isinstance(subject.model, MAE):
        raise UserError(
            f"{form} has no masked autoencoder: add --only encoder, or use --to transformers, onnx "
            "or safetensors"
        )
