"""`mae bench data`: images/s per core for each way of loading, and how many cores a step needs."""

import io
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from torchmae.benchmarks.config import Bench, models
from torchmae.benchmarks.step import build, case_of
from torchmae.benchmarks.timing import (
    Candidate,
    benchmark_interleaved,
    interleave,
    speed_beside,
    spread,
    threads,
)
from torchmae.data.decode import BadImage, decode, extension
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.sources.source import Source, Subset
from torchmae.data.transforms import RandomResizedCropFlip, resized_crop
from torchmae.errors import UserError
from torchmae.models.weights import seeded
from torchmae.tasks.pack.config import Pack
from torchmae.tasks.pack.run import run
from torchmae.train.distributed import available_cores

logger = logging.getLogger(__name__)

# Of the sample, which is kept decoded in memory too.
MAX_FILES = 200
MAX_PIXELS = 250_000_000
PACKED = 320  # short side of the packed set
BATCH = 64  # images of a batch of the loader
MIN_SECONDS = 1.0  # of a measurement of the loader
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sample:
    """Some files of a source, read once, so that the page cache has them.

    Attributes:
        source: the files that can be decoded.
        pixels: each of them, uint8 [H, W, 3].
        bad: how many others were tried.
    """

    source: Source
    pixels: list[np.ndarray]
    bad: int

    def __len__(self) -> int:
        return len(self.pixels)

    def facts(self) -> dict[str, Any]:
        sizes = [len(self.source.read(i)) for i in range(len(self))]
        areas = [pixels.shape[0] * pixels.shape[1] for pixels in self.pixels]
        return {
            "files": len(self),
            "skipped": self.bad,
            "kb": median(sizes) / 1e3,
            "megapixels": median(areas) / 1e6,
        }


def data(config: Bench, device: torch.device) -> dict[str, Any]:
    """Loading in one thread, our crops beside PIL's, the loader, the cores that a step needs."""
    assert config.data
    sample = take(open_source(config.data), config.data)
    size = (config.image_size, config.image_size)
    result: dict[str, Any] = {"sample": sample.facts()}
    skipped = f" ({sample.bad} could not be read)" if sample.bad else ""
    facts = "{files} files{0}, medians: {kb:.0f} kB, {megapixels:.2f} megapixels"
    logger.info(facts.format(skipped, **result["sample"]))
    with tempfile.TemporaryDirectory(prefix="mae-bench-") as folder, threads(1), seeded(0):
        paths, result["skipped"] = paths_of(sample, size, packed_set(sample, Path(folder)))
        rounds = benchmark_interleaved(paths, config.rounds, torch.device("cpu"))
        base = paths[0].name
        # Of an image: a path's `flops` are its images.
        seconds = {path.name: [s / path.flops for s in rounds[path.name]] for path in paths}
        result["paths"] = [
            path_row(name, own, None if name == base else seconds[base])
            for name, own in seconds.items()
        ]
        logger.info("\n".join(path_table(result)))
        result["pixels"] = difference(sample, size)
        gap = (
            "\ndifference from PIL's crop and resize: {mean:.3f} levels on average, {most} at most"
        )
        logger.info(gap.format(**result["pixels"]))
        batches = Batches(sample.source, RandomResizedCropFlip(size), min(BATCH, len(sample)))
        result["loader"] = loader(batches, config.rounds)
        logger.info("\n".join(loader_table(result["loader"])))
    result["steps"] = steps(config, device)
    logger.info("\n".join(cores_table(result, device)))
    return result


def take(source: Source, name: str) -> Sample:
    """Up to `MAX_FILES` files, evenly spaced over the source, as many as fit into `MAX_PIXELS`.

    Raises:
        UserError: none can be read, or the source holds pixels.
    """
    ids: list[int] = []
    pixels: list[np.ndarray] = []
    bad = 0
    room = MAX_PIXELS
    for i in np.unique(np.linspace(0, len(source) - 1, MAX_FILES).astype(int)).tolist():
        try:
            encoded = source.read(i)
            if not isinstance(encoded, bytes):
                raise UserError(
                    f"mae bench data measures how image files are decoded, but {name} holds pixels"
                )
            with Image.open(io.BytesIO(encoded)) as image:  # only what both can read is compared
                image.convert("RGB")
            decoded = decode(encoded)
        except (BadImage, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, UserError):
                raise
            bad += 1
            continue
        room -= decoded.shape[0] * decoded.shape[1]
        if room < 0 and ids:
            break
        ids.append(i)
        pixels.append(decoded)
    if not ids:
        raise UserError(f"none of the {bad} files of {name} that were tried can be read")
    return Sample(Subset(source, ids), pixels, bad)


def packed_set(sample: Sample, folder: Path) -> Source:
    """The sample as `mae pack` would store it."""
    (folder / "files").mkdir()
    for i in range(len(sample)):
        encoded = sample.source.read(i)
        assert isinstance(encoded, bytes)
        (folder / "files" / f"{i:06d}{extension(encoded)}").write_bytes(encoded)
    with redirect_stdout(io.StringIO()):
        run(Pack(data=str(folder / "files"), out=str(folder / "packed"), size=PACKED))
    return open_source(str(folder / "packed"))


def paths_of(
    sample: Sample, size: tuple[int, int], packed: Source
) -> tuple[list[Candidate], list[str]]:
    """Each way from a file to a model's input, over all of the sample.

    Returns:
        Candidates, the reference code's first, whose `flops` are their images; and why others are
        skipped.
    """
    augment = RandomResizedCropFlip(size)
    count = len(sample)

    def each(name: str, one: Callable[[int], object]) -> Candidate:
        return Candidate(name, lambda: [one(i) for i in range(count)], count)

    def ours(name: str, source: Source) -> Candidate:
        """The work of a loader's worker: whole batches."""
        batches = Batches(source, augment, min(BATCH, len(source)))
        steps = -(-len(source) // batches.batch_size)
        return Candidate(
            name, lambda: [batches[step] for step in range(steps)], steps * batches.batch_size
        )

    paths: list[Candidate] = []
    skipped: list[str] = []
    if find_spec("torchvision") is None:
        skipped.append('torchvision: pip install "torchmae[torchvision]" adds its two rows')
        paths.append(each("PIL, float", pil_alone(sample.source, augment)))
    else:
        paths.append(each("PIL + torchvision, float", pil_and_torchvision(sample.source, size)))
        try:
            fast = torchvision_alone(sample.source, size)
            for i in range(count):
                fast(i)
            paths.append(each("torchvision decode_image + v2, uint8", fast))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            skipped.append(f"torchvision decode_image: it cannot read one of the files ({reason})")
    paths.append(ours("torchmae", sample.source))
    paths.append(ours(f"torchmae, packed at size {PACKED}", packed))
    paths.append(
        each("torchmae, decoded in memory", lambda i: augment(sample.pixels[i], None, 0, i))
    )
    return paths, skipped


def pil_and_torchvision(source: Source, size: tuple[int, int]) -> Callable[[int], Tensor]:
    """The reference code's pipeline."""
    from torchvision import transforms as v1

    crop = v1.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=v1.InterpolationMode.BICUBIC)
    transform = v1.Compose(
        [crop, v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    )
    return lambda i: transform(opened(source, i))


def pil_alone(source: Source, augment: RandomResizedCropFlip) -> Callable[[int], Tensor]:
    """The same without torchvision."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def one(i: int) -> Tensor:
        image = opened(source, i)
        top, left, height, width, flip = augment.crop(image.height, image.width, 0, i)
        small = image.crop((left, top, left + width, top + height)).resize(
            augment.size[::-1], Image.Resampling.BICUBIC
        )
        small = ImageOps.mirror(small) if flip else small
        return (torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255 - mean) / std

    return one


def opened(source: Source, i: int) -> Image.Image:
    encoded = source.read(i)
    assert isinstance(encoded, bytes)
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def torchvision_alone(source: Source, size: tuple[int, int]) -> Callable[[int], Tensor]:
    """torchvision's fastest: libjpeg-turbo, uint8, transforms v2; neither float nor normalized."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(
        size, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def one(i: int) -> Tensor:
        encoded = torch.frombuffer(bytearray(source.read(i)), dtype=torch.uint8)
        return transform(decode_image(encoded, ImageReadMode.RGB))

    return one


def path_row(name: str, own: list[float], base: list[float] | None) -> dict[str, Any]:
    speed = None if base is None else speed_beside(own, base)
    rate = median(1 / s for s in own)
    return {"name": name, "images_per_s": rate, "speed": speed, "seconds": own}


def path_table(result: dict[str, Any]) -> Iterator[str]:
    base = result["paths"][0]["name"]
    yield from (f"skipped: {reason}" for reason in result["skipped"])
    yield f"\n{'in one thread':<40}{'images/s':>10}   speed beside {base} (least to most)"
    for row in result["paths"]:
        speed = spread(row["speed"]) if row["speed"] else "1"
        yield f"{row['name']:<40}{row['images_per_s']:>10.0f}   {speed}"


def difference(sample: Sample, size: tuple[int, int]) -> dict[str, Any]:
    """Our crops beside PIL's of the same windows, decoding included, in levels of 0 to 255."""
    means = []
    most = 0
    equal = 0
    augment = RandomResizedCropFlip(size, flip=False)
    for i, pixels in enumerate(sample.pixels):
        with Image.open(io.BytesIO(bytes(sample.source.read(i)))) as image:
            theirs = ImageOps.exif_transpose(image).convert("RGB")
        if (theirs.height, theirs.width) != pixels.shape[:2]:
            continue
        equal += int(np.array_equal(np.asarray(theirs), pixels))
        window = augment.crop(theirs.height, theirs.width, 0, i)
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        resized = theirs.crop(box).resize(size[::-1], Image.Resampling.BICUBIC)
        small = np.asarray(resized).astype(int)
        gap = np.abs(resized_crop(pixels, window, size).permute(1, 2, 0).numpy() - small)
        means.append(float(gap.mean()))
        most = max(most, int(gap.max()))
    return {
        "files": len(means),
        "decoded_equal": equal,
        "mean": float(np.mean(means or [0.0])),
        "most": most,
    }


def loader(batches: Batches, rounds: int) -> dict[str, Any]:
    """Images/s with 0, 1, 2 and as many workers as cores, beside the batches without loader."""
    batch = batches.batch_size
    began = time.perf_counter()
    batches[0]
    count = min(64, max(4, math.ceil(MIN_SECONDS / (time.perf_counter() - began))))

    def direct() -> float:
        """The batches that one worker makes while it is timed."""
        began = time.perf_counter()
        for step in range(3, 3 + count):
            batches[step]
        return count * batch / (time.perf_counter() - began)

    def through(workers: int) -> float:
        """The workers are busy before and after the batches that count."""
        ahead = 2 * workers + 1
        many = count * max(1, workers)
        made = iter(batches.loader(0, 2 * ahead + many, workers))
        for _ in range(ahead):
            next(made)
        began = time.perf_counter()
        for _ in range(many):
            next(made)
        return many * batch / (time.perf_counter() - began)

    workers = sorted({0, 1, 2, available_cores()})
    measures: dict[str, Callable[[], float]] = {
        "direct": direct,
        **{f"{n}": partial(through, n) for n in workers},
    }
    rates = interleave(measures, rounds)
    return {
        "batch": batch,
        "batches": count,
        "direct": {"images_per_s": median(rates["direct"]), "rates": rates["direct"]},
        "workers": {
            n: {"images_per_s": median(rates[f"{n}"]), "rates": rates[f"{n}"]} for n in workers
        },
        "overhead": [1 - through / alone for through, alone in zip(rates["1"], rates["direct"])],
    }


def loader_table(result: dict[str, Any]) -> Iterator[str]:
    yield f"\nloader, batches of {result['batch']:<20}{'images/s':>10}"
    yield f"{'no loader: batches[step]':<40}{result['direct']['images_per_s']:>10.0f}"
    for workers, row in result["workers"].items():
        yield f"{f'workers: {workers}':<40}{row['images_per_s']:>10.0f}"
    lost = result["overhead"]
    yield (
        f"a worker's time that goes into its process, sampler and transfer: {median(lost):.1%} "
        f"({min(lost):.1%} to {max(lost):.1%})"
    )


def steps(config: Bench, device: torch.device) -> dict[str, float]:
    """Images/s of a training step: as given, or measured in two rounds for each model."""
    if config.step_images_per_s is not None:
        return {"as given": config.step_images_per_s}
    found = {}
    for name in models(config.model):
        with seeded(0):
            case = case_of(config, device)
            seconds = benchmark_interleaved(
                [case.ours("torchmae", build(config, name))], 2, device
            )["torchmae"]
        found[name] = len(case.images) / median(seconds)
    return found


def cores_table(result: dict[str, Any], device: torch.device) -> Iterator[str]:
    """Without the workers' overhead, which is in the table of the loader."""
    names = list(result["steps"])
    yield f"\n{'cores needed to feed a step':<40}" + "".join(f"{name:>14}" for name in names)
    yield f"{'  which takes images/s':<40}" + "".join(
        f"{rate:>14.4g}" for rate in result["steps"].values()
    )
    for row in result["paths"]:
        needed = {name: rate / row["images_per_s"] for name, rate in result["steps"].items()}
        row["cores_needed"] = needed
        yield f"{row['name']:<40}" + "".join(f"{cores:>14.2g}" for cores in needed.values())
    if device.type == "cpu" and "as given" not in names:
        yield "The step was measured on this CPU and needs its cores too."
        yield "For a GPU, name its speed: --step-images-per-s."
