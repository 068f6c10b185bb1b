"""Batches that do not depend on workers and processes: `batches[step]` is a pure function.

Samples form one endless sequence of epochs, each a keyed permutation of the data set that is
computed index by index, so that a billion samples need no array. Step `s` takes the places
`s * batch_size ... (s + 1) * batch_size - 1` of that sequence, each process an equal share of
them; a batch may straddle two epochs. Resuming needs the step number and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from torchmae.data.augment import ColorJitter
from torchmae.data.decode import BadImage, decode
from torchmae.data.sources.source import BadFile, Source, SourceWrapper
from torchmae.data.transforms import Pixels, WindowCrop
from torchmae.data.workers import Loading, reading
from torchmae.errors import RunError, UserError
from torchmae.hashing import ORDER, REPLACE, SHAPE, hash32

T = TypeVar("T")

Transform = Callable[[Pixels, Any, int, int], tuple[Tensor, Any]]
"""(image, target, epoch, sample) -> (image, target): boxes and masks can follow the crop."""

Targets = Int64[Tensor, " B"] | list[Any] | None
"""No targets, labels, or one object for each image (boxes, masks)."""


class Batch(NamedTuple):
    """Images with their targets, and what their randomness depends on."""

    images: Shaped[Tensor, "B C H W"]
    """uint8, or float32 where images are of another type; NaN where there is no value."""
    targets: Targets
    epoch: Int64[Tensor, " B"]
    sample: Int64[Tensor, " B"]
    """The number in the source of each image that is shown."""
    step: int = 0
    bad: Sequence[BadFile] = ()
    """Files that could not be read; another image, with its number and target, replaces each."""
    changed: Sequence[str] = ()
    """Files that were written to after the source was opened; they are used as they are now."""
    beside: "Batch | None" = None
    """Images of another source that belong to this step, in the same number (`Paired`)."""

    def chunks(self, parts: int) -> "list[Batch]":
        """Splits into micro-batches of nearly equal size, without repeating the bad files."""
        images, epoch, sample = (
            torch.tensor_split(x, parts) for x in (self.images, self.epoch, self.sample)
        )
        targets: Sequence[Targets] = [None] * parts
        if self.targets is not None:
            ends = np.cumsum([0, *map(len, images)]).tolist()
            targets = [self.targets[first:last] for first, last in pairwise(ends)]
        beside = [None] * parts if self.beside is None else self.beside.chunks(parts)
        parts_of_all = zip(images, targets, epoch, sample, beside)
        return [
            Batch(x, target, e, s, self.step, beside=other)
            for x, target, e, s, other in parts_of_all
        ]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the copy overlaps with work there."""
        images, targets, epoch, sample = (moved(x, device) for x in self[:4])
        beside = None if self.beside is None else self.beside.to(device)
        return Batch(images, targets, epoch, sample, self.step, self.bad, self.changed, beside)


def moved(value: Any, device: torch.device) -> Any:
    """The tensors inside lists and dicts on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    return [moved(one, device) for one in value] if isinstance(value, list) else value


def collate_targets(targets: list[Any]) -> Targets:
    """Labels become one tensor; other targets stay a list."""
    if targets[0] is None:
        return None
    labels = all(isinstance(x, int) or (isinstance(x, Tensor) and x.ndim == 0) for x in targets)
    return torch.tensor([int(x) for x in targets]) if labels else targets


def permute(
    place: Int64[np.ndarray, " B"], count: int, seed: int, epoch: Int64[np.ndarray, " B"]
) -> Int64[np.ndarray, " B"]:
    """Where the keyed permutation of 0..count-1 for (seed, epoch) sends each place.

    A Feistel network of 32-bit halves over the next even power of two, repeated until the result is
    below `count` (fewer than 4 times on average).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    result = place
    outside = np.ones(len(place), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & low
        for turn in range(6):
            left, right = right, left ^ (hash32(seed, ORDER, epoch[outside], turn, right) & low)
        result = result.copy()
        result[outside] = (left << half) | right
        outside = result >= count
    return result


@dataclass(frozen=True)
class Batches:
    """The batch of every step, for one process of `size`.

    Args:
        source: the images.
        transform: makes all images one size; jointly with the targets.
        batch_size: images of a step, over all processes.
        seed: of the order and of replacements for bad files.
        rank: of this process.
        size: how many processes there are.
        targets: of each image of the source, by its number: labels int64 [N], or any objects that
            the transform understands.
        shapes: (H, W) of which each step has one, drawn by the seed; () for the transform's own.
    """

    source: Source
    transform: Transform
    batch_size: int
    seed: int = 0
    rank: int = 0
    size: int = 1
    targets: Int64[Tensor, " N"] | Sequence[Any] | None = None
    shapes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size % self.size:
            below = max(self.size, self.batch_size // self.size * self.size)
            raise UserError(
                f"batch size {self.batch_size} cannot be shared equally by {self.size} processes: "
                f"use {below} or {below + self.size}"
            )

    def places(self, step: int) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """The (epoch, sample) pairs of this process's share of a step."""
        share = self.batch_size // self.size
        place = step * self.batch_size + self.rank * share + np.arange(share, dtype=np.int64)
        epoch, within = place // len(self.source), place % len(self.source)
        return epoch, permute(within, len(self.source), self.seed, epoch)

    def __getitem__(self, step: int) -> Batch:
        bad: list[BadFile] = []
        images = []
        targets = []
        shown = []
        epochs, samples = self.places(step)
        transform = self.transform_of(step)
        for epoch, sample in zip(epochs.tolist(), samples.tolist()):
            make = partial(self.transformed, transform, epoch)
            index, (image, target) = self.usable(sample, bad, make)
            images.append(image)
            targets.append(target)
            shown.append(index)
        names = (self.source.name(i) for i in shown if self.source.is_changed(i))
        return Batch(
            torch.stack(images),
            collate_targets(targets),
            torch.from_numpy(epochs),
            torch.tensor(shown),
            step,
            bad,
            list(names),
        )

    def transform_of(self, step: int) -> Transform:
        """What makes the images of a step: of the transform's size, or of one of `shapes`."""
        if not self.shapes:
            return self.transform
        assert isinstance(self.transform, WindowCrop | ColorJitter)
        drawn = hash32(self.seed, SHAPE, step) % len(self.shapes)
        return self.transform.sized(self.shapes[drawn])

    def transformed(self, transform: Transform, epoch: int, index: int) -> tuple[Tensor, Any]:
        """An image and its target, if it has one, as they are shown in an epoch."""
        target = None if self.targets is None else self.targets[index]
        return transform(read_pixels(self.source, index), target, epoch, index)

    def read(self, sample: int, bad: list[BadFile]) -> tuple[int, Pixels]:
        """A sample and its pixels, or its replacement."""
        return self.usable(sample, bad, partial(read_pixels, self.source))

    def usable(self, sample: int, bad: list[BadFile], make: Callable[[int], T]) -> tuple[int, T]:
        """A sample and what is made of it, or its replacement: the same in every epoch and process.

        Args:
            sample: its number.
            bad: files that cannot be used are added.
            make: raises `BadImage` for an image, or a target, that cannot be used.
        """
        index = sample
        for attempt in range(100 + len(self.source)):
            try:
                return index, make(index)
            except BadImage as error:
                bad.append(BadFile(self.source.name(index), str(error)))
                # 100 draws, then one after the other: a set that is nearly all bad still trains.
                drawn = hash32(self.seed, REPLACE, sample, attempt)
                index = (drawn if attempt < 100 else index + 1) % len(self.source)
        raise RunError(f"none of the {len(self.source)} files can be read; the last: {bad[-1]}")

    def loader(
        self, start: int, stop: int, workers: int, pin_memory: bool = False
    ) -> Loading[Batch]:
        """The batches of the steps `start..stop-1`, made by `workers` processes (0: a thread)."""
        return Loading(self, range(start, stop), workers, pin_memory)


@dataclass(frozen=True)
class Paired:
    """The batches of one source, each with one of another beside it.

    Args:
        first: its images are those of the batch.
        second: with as many images a step, for the same process.
    """

    first: Batches
    second: Batches

    @property
    def batch_size(self) -> int:
        """Images of the first source in a step, of all processes together."""
        return self.first.batch_size

    @property
    def source(self) -> Source:
        return self.first.source

    def places(self, step: int) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        return self.first.places(step)

    def __getitem__(self, step: int) -> Batch:
        one, other = self.first[step], self.second[step]
        bad, changed = [*one.bad, *other.bad], [*one.changed, *other.changed]
        return one._replace(bad=bad, changed=changed, beside=other)

    def loader(
        self, start: int, stop: int, workers: int, pin_memory: bool = False
    ) -> Loading[Batch]:
        """As `Batches.loader`."""
        return Loading(self, range(start, stop), workers, pin_memory)


def read_pixels(source: Source, index: int) -> Pixels:
    """One image of a source, decoded with its options.

    Returns:
        [H, W, source.channels] of `source.dtype`, not to be written to.

    Raises:
        BadImage: whatever is wrong with the file.
    """
    with reading(index):
        try:
            data = source.read(index)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from error
        return to_pixels(source, data)


def to_pixels(source: Source, data: bytes | Shaped[np.ndarray, "H W K"]) -> Pixels:
    """What a source has read, as `read_pixels` returns it."""
    if not is_decoded(source, data):
        return decode(data, replace(source.decode, channels=source.channels, dtype=source.dtype))
    assert not isinstance(data, bytes)
    pixels = data.view()  # the crop is a copy
    pixels.flags.writeable = False
    return pixels


def is_decoded(source: Source, data: bytes | Shaped[np.ndarray, "H W K"]) -> bool:
    """Whether `decode` would only copy what a source has read."""
    if isinstance(data, bytes) or not data.size or data.shape[2] != source.channels:
        return False
    if isinstance(source, SourceWrapper) and source.holds_pixels:
        return True
    options = source.decode
    plain = options.bands is None and options.nodata is None and data.dtype.kind in "ui"
    return plain and data.dtype.name == source.dtype
