"""Features and logits of all readable images of a source."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from tqdm import tqdm

from torchmae.data.decode import BadImage
from torchmae.data.loader import Transform, read_pixels
from torchmae.data.sources.source import BadFile, Source, whole, with_decode
from torchmae.data.view import center_crop, glance, view_notes
from torchmae.data.workers import Loading
from torchmae.errors import UserError
from torchmae.models.encoders import Backbone
from torchmae.models.heads import Classifier
from torchmae.models.patches import POOLS as POOLS
from torchmae.models.patches import choose_pool as choose_pool
from torchmae.models.vit import ViT
from torchmae.runfolder import read_config
from torchmae.settings.defaults import workers_for
from torchmae.train.distributed import available_cores
from torchmae.train.speed import duration

logger = logging.getLogger(__name__)

T = TypeVar("T")
Function = Callable[[Shaped[Tensor, "B C H W"]], Shaped[Tensor, "B ..."]]


SAY_SECONDS = 30.0  # between two lines on how far a pass is, where no bar is shown


class Part(NamedTuple):
    """Images of one shape, with their numbers in the source, and files that cannot be read."""

    ids: list[int]
    images: Shaped[Tensor, "B ..."]
    bad: list[BadFile]


@dataclass(frozen=True)
class ImageBatches:
    """Batches of a source's readable images, transformed; unreadable ones are named.

    An item is a list with a part for each shape of its images: their numbers in the source, the
    images (uint8, [B, C, H, W] for a center crop), and (in the first) the unreadable files.
    """

    source: Source
    transform: Transform
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, batch: int) -> list[Part]:
        parts: dict[torch.Size, tuple[list[int], list[Tensor]]] = {}
        bad: list[BadFile] = []
        first = batch * self.batch_size
        for i in range(first, min(len(self.source), first + self.batch_size)):
            try:
                pixels = read_pixels(self.source, i)
            except BadImage as error:
                bad.append(BadFile(self.source.name(i), str(error)))
                continue
            image = self.transform(pixels, None, 0, i)[0]
            ids, images = parts.setdefault(image.shape, ([], []))
            ids.append(i)
            images.append(image)
        found = [Part(ids, torch.stack(images), []) for ids, images in parts.values()]
        first_part = found[0] if found else Part([], torch.empty(0, dtype=torch.uint8), [])
        return [first_part._replace(bad=bad), *found[1:]]


def collect(
    source: Source,
    encoder: Backbone,
    run: str | os.PathLike[str],
    functions: Sequence[Function],
    device: torch.device,
    batch_size: int = 64,
) -> tuple[list[int], list[Shaped[Tensor, "N ..."]], list[BadFile]]:
    """What each of some functions makes of all readable images of a source, one pass for all.

    Args:
        source: the images, and how they are decoded.
        encoder: images are brought to its size and channels.
        run: the run folder whose config.json holds the share of an image that is seen (`crop_pct`).
        functions: from uint8 images on the CPU to rows on the CPU, such as `features_of` makes.
        device: where the functions compute; decides how many processes decode.
        batch_size: images at a time.

    Returns:
        The numbers of the readable images in the source; the rows of each function, in that order;
        the files that cannot be read.

    Raises:
        UserError: no image can be read.
    """
    return collect_batches(image_batches(source, encoder, run, batch_size), functions, device)


def image_batches(
    source: Source,
    encoder: Backbone,
    run: str | os.PathLike[str],
    batch_size: int = 64,
    own_shapes: bool = False,
) -> ImageBatches:
    """The images of a source as a run's encoder takes them; arguments as for `collect`.

    With `own_shapes` those of a run with `--aspect keep` have its shapes, each part one: for
    functions whose rows do not depend on it.
    """
    source = with_decode(source, replace(source.decode, channels=encoder.channels))
    return ImageBatches(source, center_crop(run, encoder.image_size, own_shapes), batch_size)


@torch.no_grad()
def collect_batches(
    images: ImageBatches, functions: Sequence[Function], device: torch.device, title: str = "embed"
) -> tuple[list[int], list[Shaped[Tensor, "N ..."]], list[BadFile]]:
    """What `collect` does, of batches; `title` is what it is called while it lasts."""
    ids: list[int] = []
    bad: list[BadFile] = []
    rows: list[list[Tensor]] = [[] for _ in functions]
    for batch_ids, batch, batch_bad in read_batches(images, device, title):
        ids += batch_ids
        bad += batch_bad
        if batch_ids:
            for made, function in zip(rows, functions):
                made.append(function(batch))
    if not ids:
        raise UserError(f"none of the {len(images.source)} images can be read; the first: {bad[0]}")
    order = sorted(range(len(ids)), key=ids.__getitem__)  # shapes of a batch come one by one
    return [ids[k] for k in order], [torch.cat(made)[order] for made in rows], bad


def read_batches(images: ImageBatches, device: torch.device, title: str) -> Iterator[Part]:
    """The parts of the batches in order, decoded by as many processes as the device is worth."""
    # A few batches are decoded sooner than processes start.
    workers = 0
    if len(images) > 4:
        cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = workers_for(cores, device.type == "cuda")
    for parts in shown(Loading(images, range(len(images)), workers), title, len(images)):
        yield from parts


def shown(items: Iterator[T], title: str, total: int) -> Iterator[T]:
    """The items, with a bar; without a terminal a line now and then says how long it will take."""
    bar = tqdm(items, title, total, unit=" batches", disable=None, leave=False)
    began = said = time.monotonic()
    for done, item in enumerate(bar, 1):
        yield item
        now = time.monotonic()
        if bar.disable and now - said > SAY_SECONDS and done < total:
            said = now
            left = duration((now - began) / done * (total - done))
            logger.info(f"{title}: {done:,} of {total:,} batches, about {left} left")


def say_view(source: Source, run: str | os.PathLike[str]) -> None:
    """Says, before anything is computed, what of the images the centre crop of `collect` loses; of
    the images that the run was trained on, what its plan has not said already."""
    stored = read_config(run)
    size = tuple(stored["model"]["encoder"]["image_size"])
    seen, crop_pct = glance(source), stored["config"].get("crop_pct", 1.0)
    if stored["config"].get("shapes"):  # nearly all of every image is seen
        crop_pct = None
    notes = view_notes(seen, size, crop_pct)
    if notes and (stored.get("data") or {}).get("fingerprint") == whole(source).fingerprint():
        # `mae finetune` had the same crop in its plan, `mae pretrain` random ones.
        before = view_notes(seen, size, crop_pct if stored["verb"] == "finetune" else None)
        notes = [note for note in notes if note not in before]
    for note in notes:
        logger.info(f"note: {note}")


def features_of(encoder: Backbone, layer: int | None, pool: str, device: torch.device) -> Function:
    """The function from uint8 images to an encoder's pooled features, float32 [B, F] on the CPU.

    Args:
        encoder: it is moved to the device.
        layer: take the tokens after this block, 1 to depth; None: the last ones.
        pool: "mean" of the patch tokens, "cls" (the class token), or "cls+mean" behind each other.
        device: where it computes.

    Raises:
        UserError: the encoder has no such layer or pool.
    """
    pooled, prefix = choose_pool(encoder, pool), encoder.num_prefix_tokens
    tokens = tokens_after(encoder, layer, device)
    return lambda images: pooled(tokens(images), prefix).float().cpu()


def layers_of(encoder: Backbone, pool: str, device: torch.device) -> Function:
    """As `features_of`, the features after every block in one pass: float32 [B, depth, F] on the
    CPU."""
    pooled, prefix = choose_pool(encoder, pool), encoder.num_prefix_tokens
    encoder = encoder.eval().to(device)

    def every(images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B L F"]:
        layers = encoder.forward_layers(encoder.normalize(images.to(device)))
        return torch.stack([pooled(tokens, prefix).float().cpu() for tokens in layers], dim=1)

    return every


def patch_tokens_of(encoder: Backbone, layer: int | None, device: torch.device) -> Function:
    """The function from uint8 images to the tokens of their patches, float16 [B, N, D] on the CPU.

    Half precision, since all tokens of a set take hundreds of megabytes.

    Args:
        encoder: it is moved to the device.
        layer: as for `features_of`.
        device: where it computes.
    """
    prefix = encoder.num_prefix_tokens
    tokens = tokens_after(encoder, layer, device)
    return lambda images: tokens(images)[:, prefix:].half().cpu()


def tokens_after(
    encoder: Backbone, layer: int | None, device: torch.device
) -> Callable[[Shaped[Tensor, "B C H W"]], Float[Tensor, "B T D"]]:
    """The function from uint8 images to the tokens after a block; `UserError` for no such block."""
    depth = len(encoder.layers())
    if layer is not None and not 1 <= layer <= depth:
        raise UserError(f"--layer {layer}: 1 to {depth}")
    encoder = encoder.eval().to(device)

    def tokens(images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        seen = encoder.normalize(images.to(device))
        if isinstance(encoder, ViT) and tuple(seen.shape[2:]) != tuple(encoder.image_size):
            return encoder.encode(encoder.entering(seen), layer)
        return encoder(seen, layer=layer)

    return tokens


def logits_of(model: Classifier, device: torch.device) -> Function:
    """The function from uint8 images to a classifier's logits, float32 [B, classes] on the CPU."""
    model = model.eval().to(device)
    return lambda images: model(model.encoder.normalize(images.to(device))).float().cpu()


def classes_of(
    model: Classifier, device: torch.device, among: Bool[Tensor, " classes"] | None = None
) -> Function:
    """The function from uint8 images to the numbers of the classes that a classifier says, int64
    [B] on the CPU.

    Args:
        model: it is moved to the device.
        device: where it computes.
        among: the classes that may be said; None: all.
    """
    logits = logits_of(model, device)

    def classes(images: Shaped[Tensor, "B C H W"]) -> Int64[Tensor, " B"]:
        found = logits(images)
        return (found if among is None else found.masked_fill(~among, -torch.inf)).argmax(1)

    return classes


def of_variants(function: Function, at_once: int = 64) -> Function:
    """A function of images as one of several variants of each, [B, V, C, H, W] to [B, V, ...]."""

    def of_all(images: Shaped[Tensor, "B V C H W"]) -> Shaped[Tensor, "B V ..."]:
        parts = images.flatten(0, 1).split(at_once)
        return torch.cat([function(part) for part in parts]).unflatten(0, images.shape[:2])

    return of_all
