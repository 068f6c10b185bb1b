"""A data set decoded in device memory: crops, flips and resizing happen there, without a loader.

The pixels are those of `Batches`, bit for bit. There they come from torch's bicubic filter for
uint8, which GPUs do not have. It is fixed-point arithmetic with weights of 16 bits: first the
width, rounded to 0..255, then the height. Its sums are multiples of 2**-22 below 2**9, so float64
matrix products are exact: equal on any device and in any order of summation.
"""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer, Shaped, UInt8
from torch import Tensor
from tqdm import tqdm

from torchmae.data.decode import BadImage
from torchmae.data.loader import Batch, Batches, read_pixels
from torchmae.data.sources.source import BadFile, Source, SourceWrapper
from torchmae.data.transforms import Crop, Pixels, WindowCrop, resized_crop
from torchmae.errors import UserError

AT_ONCE = 2**23  # values that are resized together; each takes up to 64 bytes meanwhile


class DeviceLoader:
    """The batches of `Batches`, bit for bit, made on the device that holds all images decoded.

    Raises:
        UserError: the transform does more than a `WindowCrop`, or targets are not labels.
    """

    def __init__(self, batches: Batches, device: torch.device):
        if not isinstance(batches.transform, WindowCrop):
            given = type(batches.transform).__name__
            raise UserError(
                f"--cache device makes crops and flips only, not {given}: use --cache memory"
            )
        if not isinstance(batches.targets, Tensor | None):
            raise UserError(
                "--cache device takes labels only, no other targets: use --cache memory"
            )
        self.source = batches.source
        self.batch_size = batches.batch_size
        self.augment = batches.transform
        self.channels = batches.source.channels
        self.device = device
        self.decoded = Decoded(batches.source, device)
        self.batches = replace(batches, source=self.decoded)
        self.replaced: dict[int, tuple[int, list[BadFile]]] = {}  # bad samples that were drawn
        # Dense products waste most of their work on zeros. Measured on one core: at 32 px as fast
        # as `resized_crop` for 1 channel, half as fast for 3; at 224 px 35 times slower.
        self.together = device.type != "cpu" and self.source.dtype == "uint8"

    @cached_property
    def filters(self) -> "tuple[Filter, Filter]":
        """Of the height, and of the width."""
        rows, columns = (
            Filter(longest, out, self.device)
            for longest, out in zip(self.decoded.sizes.max(0).tolist(), self.augment.size)
        )
        return rows, columns

    def loader(
        self, start: int, stop: int, workers: int, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """The batches of the steps `start..stop-1`, on the device; workers have nothing to do."""
        return (self[step] for step in range(start, stop))

    def __getitem__(self, step: int) -> Batch:
        bad: list[BadFile] = []
        epochs, drawn = self.batches.places(step)
        samples = np.array([self.shown(sample, bad) for sample in drawn.tolist()], dtype=np.int64)
        heights, widths = self.decoded.sizes[samples].T
        crops = self.augment.crops(heights, widths, epochs, samples)
        if self.together:
            return self.crop_together(epochs, samples, crops, bad, step)
        # Floats are resized where they are: equal up to rounding on a GPU, bit for bit on a CPU.
        images = [
            resized_crop(self.decoded.tensor(i), crop, self.augment.size)
            for i, crop in zip(samples.tolist(), crops)
        ]
        rest = torch.from_numpy(epochs), torch.from_numpy(samples)
        return Batch(torch.stack(images), self.labels(samples), *rest, step, bad)

    def labels(self, samples: Int64[np.ndarray, " B"]) -> Int64[Tensor, " B"] | None:
        """The labels of these images, on the CPU."""
        targets = self.batches.targets
        return targets[torch.from_numpy(samples)] if isinstance(targets, Tensor) else None

    def shown(self, sample: int, bad: list[BadFile]) -> int:
        """The sample, or the one that `Batches` shows in place of a bad file."""
        if sample not in self.decoded.reasons:
            return sample
        if sample not in self.replaced:
            found: list[BadFile] = []
            self.replaced[sample] = self.batches.read(sample, found)[0], found
        index, found = self.replaced[sample]
        bad += found
        return index

    def crop_together(
        self,
        epochs: Int64[np.ndarray, " B"],
        samples: Int64[np.ndarray, " B"],
        crops: Sequence[Crop],
        bad: list[BadFile],
        step: int,
    ) -> Batch:
        """Crops all images at once, with one small copy of integers to the device and no sync.

        Args:
            epochs: of each image.
            samples: their numbers in the source.
            crops: their windows.
            bad: files that others have replaced.
            step: of the batch.
        """
        top, left, height, width, flip = np.array(crops, dtype=np.int64).T
        stride = self.decoded.sizes[samples, 1] * self.channels
        first = self.decoded.starts[samples] + top * stride + left * self.channels
        numbers = torch.from_numpy(np.stack([epochs, samples, first, stride, height, width, flip]))
        numbers, labels = self.copied(numbers), self.copied(self.labels(samples))
        longest = int(height.max()), int(width.max())
        values = self.channels * math.prod(map(max, longest, self.augment.size))
        parts = numbers[2:].split(max(1, AT_ONCE // values), dim=1)
        return Batch(
            torch.cat([self.windows(part, *longest) for part in parts]),
            labels,
            numbers[0],
            numbers[1],
            step,
            bad,
        )

    def copied(self, value: Any) -> Any:
        """A tensor on the device, without a sync; None stays None."""
        if value is not None and self.device.type == "cuda":
            value = value.pin_memory()
        return value if value is None else value.to(self.device, non_blocking=True)

    def windows(
        self, numbers: Int64[Tensor, "5 B"], height: int, width: int
    ) -> UInt8[Tensor, "B C h w"]:
        """Resized windows.

        Args:
            numbers: of each window: where it begins in the storage, the values of a row there,
                height, width, and whether it is mirrored.
            height: of the largest window; pixels outside a window get zero weights.
            width: of the largest window.
        """
        first, stride, heights, widths, flips = numbers
        (h, w), channels, (rows, columns) = self.augment.size, self.channels, self.filters
        down, across, kinds = (
            torch.arange(count, device=self.device) for count in (height, width, channels)
        )
        places = (first[:, None] + stride[:, None] * down)[..., None, None] + (
            kinds[:, None] + channels * across
        )
        pixels = self.decoded.pixels[places.clamp_(max=len(self.decoded.pixels) - 1)].double()
        narrow = rounded(pixels.flatten(1, 2) @ columns(widths, width, flips).mT)
        small = rounded(rows(heights, height) @ narrow.view(-1, height, channels * w))
        return (
            small.view(-1, h, channels, w)
            .transpose(1, 2)
            .to(torch.uint8, memory_format=torch.contiguous_format)
        )


class Decoded(SourceWrapper):
    """A source whose images are decoded, one after the other in one tensor; bad ones stay bad."""

    holds_pixels = True

    def __init__(self, source: Source, device: torch.device):
        """Decodes everything in threads (decoders release the GIL), with a progress bar."""
        super().__init__(source)
        self.reasons: dict[int, str] = {}  # why an image is bad
        self.sizes = np.zeros((len(self), 2), dtype=np.int64)
        blocks: list[Tensor] = []

        def decode_one(index: int) -> Pixels | str:
            try:
                return read_pixels(self.source, index)
            except BadImage as error:
                return str(error)

        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(desc="decode", total=len(self), unit=" images", disable=None, leave=False) as bar,
        ):
            for first in range(0, len(self), 4096):  # not all at once: as in `scan`
                images = [np.zeros(0, dtype=self.dtype)]
                for index, found in enumerate(
                    pool.map(decode_one, range(first, min(first + 4096, len(self)))), first
                ):
                    bar.update()
                    if isinstance(found, str):
                        self.reasons[index] = found
                    else:
                        self.sizes[index] = found.shape[:2]
                        images.append(found.reshape(-1))
                blocks.append(torch.from_numpy(np.concatenate(images)).to(device))
                del images, found
        ends = np.cumsum(self.sizes.prod(1) * self.channels)
        self.starts = ends - self.sizes.prod(1) * self.channels
        self.pixels = torch.cat(blocks)

    def read(self, i: int) -> Pixels:
        if i in self.reasons:
            raise BadImage(self.reasons[i])
        return self.tensor(i).cpu().numpy()

    def tensor(self, i: int) -> Shaped[Tensor, "H W C"]:
        """An image that is not bad, on the device."""
        height, width = self.sizes[i].tolist()
        pixels = self.pixels[self.starts[i] : self.starts[i] + height * width * self.channels]
        return pixels.view(height, width, self.channels)


class Filter:
    """Resampling weights of windows of every length up to `longest`, for `out` pixels."""

    def __init__(self, longest: int, out: int, device: torch.device):
        first = np.zeros((longest + 1, out), dtype=np.int64)
        weights = np.zeros(
            (longest + 1, out, taps(longest, out)), dtype=np.float32
        )  # holds their 16 bits exactly
        for length in range(1, longest + 1):
            first[length], weights[length, :, : taps(length, out)] = resampling(length, out)
        self.first = torch.from_numpy(first).to(device)
        self.weights = torch.from_numpy(weights).to(device)
        self.outputs, self.taps = (
            torch.arange(count, device=device) for count in weights.shape[1:]
        )

    def __call__(
        self, lengths: Int64[Tensor, " B"], longest: int, flips: Int64[Tensor, " B"] | None = None
    ) -> Float64[Tensor, "B out longest"]:
        """The resampling matrix of each window.

        Args:
            lengths: of the windows.
            longest: columns of the matrices; they are zero beyond a window's length.
            flips: 1 reverses the rows of a window's matrix.
        """
        rows = (
            self.outputs
            if flips is None
            else (flips[:, None] * (len(self.outputs) - 1) - self.outputs).abs_()
        )
        first, weights = self.first[lengths[:, None], rows], self.weights[lengths[:, None], rows]
        matrices = torch.zeros(
            *first.shape, longest + len(self.taps), dtype=torch.float64, device=first.device
        )
        return matrices.scatter_(2, first[..., None] + self.taps, weights.double())[..., :longest]


def taps(length: int, out: int) -> int:
    """How many adjacent pixels an output pixel may depend on."""
    return math.ceil(2 * max(length / out, 1.0)) * 2 + 1


def resampling(
    length: int, out: int
) -> tuple[Int64[np.ndarray, " out"], Float64[np.ndarray, "out taps"]]:
    """torch's antialiased bicubic filter for uint8, from `length` to `out` pixels.

    Step by step as in its `UpSampleKernel.cpp`, because every bit counts: weights are rounded to as
    many binary places (at most 22) as keep the largest of them, as an integer, below 2**15.

    Returns:
        The first pixel that each output pixel depends on, and its weights.
    """
    scale = length / out
    support = 2 * max(scale, 1.0)
    centre = scale * (np.arange(out) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), length) - first
    tap = np.arange(taps(length, out))
    x = np.abs((tap + first[:, None] - centre[:, None] + 0.5) * (1 / max(scale, 1.0)))
    near, far = (
        (1.5 * x - 2.5) * x * x + 1,
        ((-0.5 * x + 2.5) * x - 4) * x + 2,
    )  # Keys' cubics, a = -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * (tap < count[:, None])
    weights /= weights.cumsum(1)[:, -1:]  # a sum from left to right
    places = 0
    while places < 22 and int(0.5 + weights.max() * 2 ** (places + 1)) < 2**15:
        places += 1
    return first, np.trunc(weights * 2**places + np.copysign(0.5, weights)) / 2**places


def rounded(values: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """To whole numbers in 0..255, halves upwards, in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def bytes_needed(
    sizes: Integer[np.ndarray, "N 2"], pixel_bytes: int, size: tuple[int, int] = (224, 224)
) -> int:
    """Device memory that a data set keeps: its pixels, and the weights to resize any window.

    At the start twice the pixels are needed, and a step uses up to 64 * AT_ONCE bytes.

    Args:
        sizes: (height, width) of the images.
        pixel_bytes: of a decoded pixel, all channels.
        size: the largest (height, width) of a crop.
    """
    pixels = int(sizes.astype(np.int64).prod(1).sum()) * pixel_bytes
    longest = sizes.max(0).tolist()
    return pixels + sum(
        (side + 1) * out * (8 + 4 * taps(side, out)) for side, out in zip(longest, size)
    )
