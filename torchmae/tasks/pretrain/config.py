"""The settings of `mae pretrain`, what is chosen where they are left open, and the plan in words."""

import math
import os
import platform
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from torchmae.data.scan import Scan
from torchmae.errors import UserError, choose, missing_extra
from torchmae.models.decoders import DECODERS
from torchmae.models.mae import LOSSES, MAE
from torchmae.models.masking import masking
from torchmae.models.patches import as_size, grid_of
from torchmae.models.targets import TARGETS
from torchmae.models.vit import attention, size_of
from torchmae.options import check_numbers, parse_size, size_text
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World


@dataclass(frozen=True)
class Pretrain:
    """Pre-train a Masked Autoencoder on images. What is left out is chosen for the data and the device, and printed.

    --preset NAME starts from a named recipe (demo, paper_base, paper_large, paper_huge), which other flags then change.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder (nested or flat), .txt/.csv list, .tar shards, .npy/.npz array, torchvision:NAME?root=DIR, hf:NAME, digits."""
    out: str | None = None
    """Run folder. Default: runs/NAME-OF-DATA. If it holds this run already, the run goes on."""
    from_run: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Start from the weights of this run folder (of pretrain, import or finetune), at any image size and channels."""
    new_decoder: bool = False
    """Leave the decoder of --from behind."""
    model: str | None = None
    """vit_micro, vit_tiny, vit_small, vit_base, vit_large or vit_huge. With --from: that of the run."""
    image_size: str | int | None = None
    """Side in pixels, or HEIGHTxWIDTH such as 192x256."""
    patch_size: int | None = None
    """Side of a patch in pixels; divides the image size."""
    registers: int = 0
    """Register tokens after the class token (Darcet et al. 2023; 4 is usual)."""
    channels: int | None = None
    """3 for colour, 1 for grey. Default: what the data has (3 for image files)."""
    epochs: float | None = None
    """Passes over the data."""
    batch_size: int | None = None
    """Images per optimizer step, over all processes."""
    base_lr: float | None = None
    """Learning rate for 256 images a step: the peak is base_lr * batch_size / 256."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up. Default: a twentieth of the epochs, as in the paper."""
    weight_decay: float = 0.05
    """AdamW's, on all but 1-D parameters."""
    clip_grad: float | None = None
    """Largest gradient norm. Default: no clipping, as in the paper."""
    mask_ratio: float = 0.75
    """Share of hidden patches."""
    masking: str = "random"
    """random, block or grid."""
    target: str = "norm-pixels"
    """norm-pixels (each patch normalised: better features), pixels or pca (96 largest principal components)."""
    loss_on: str = "hidden"
    """hidden patches, or all (the paper's worse variant)."""
    encode_all: bool = False
    """Let the encoder see mask tokens in place of hidden patches (the paper's slower and worse variant, Table 1c)."""
    decoder: str = "transformer"
    """transformer, or linear: no block, a lower bound (a linear map of the visible tokens' mean, plus the place)."""
    decoder_dim: int | None = None
    """Width of the decoder. Default: 512 from vit_base on, less for smaller encoders."""
    decoder_depth: int | None = None
    """Blocks of the decoder."""
    decoder_heads: int | None = None
    """Heads of the decoder."""
    normalize: str | None = None
    """Mean and deviation: data (measured), imagenet or (with --from) the run's. Default: run if its channels fit, else data."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of the image's area that a random crop takes."""
    flip: bool = True
    """Mirror half of the crops (not for text or digits)."""
    seed: int = 0
    """Of weights, order, crops and masks."""
    max_megapixels: float = 100.0
    """Larger images are refused before they are decoded."""
    white: int = 65535
    """The value of white in images of more than 8 bits (4095 for 12-bit data)."""
    max_bad_percent: float = 1.0
    """Share of unreadable files (20 are always allowed) above which nothing is trained."""
    precision: str | None = None
    """fp32, bf16 or fp16. Default: bf16 where the device is fast at it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: bool = False
    """Use torch.compile."""
    grad_checkpointing: bool = False
    """Compute each block again for its gradient: much less memory, about a third more time, the same weights."""
    fsdp: bool = False
    """With several processes: cut up the parameters (FSDP2) in place of copying them (DDP)."""
    workers: int | None = None
    """Processes that load images."""
    cache: str | None = None
    """none, or keep images decoded: memory, disk (a file), device (all of them there, no loader). Default: device on a GPU
    where images are small and fit, else none."""
    micro_batch_size: int | None = None
    """Images at a time on a device. Default: all of the batch, or what fits."""
    log_every: int = 20
    """Steps between two lines of log.jsonl."""
    save_minutes: float = 5.0
    """Minutes between two checkpoints."""
    picture_minutes: float = 3.0
    """Minutes between two pictures."""
    tensorboard: bool = False
    """Write TensorBoard events too (extra "tensorboard")."""


# What may differ when a run goes on, since the weights do not depend on it ("data": its fingerprint decides).
FREE = {
    *(
        "data",
        "out",
        "max_bad_percent",
        "device",
        "compile",
        "grad_checkpointing",
        "fsdp",
        "workers",
        "micro_batch_size",
    ),
    *("cache", "log_every", "save_minutes", "picture_minutes", "tensorboard"),
}


CACHES = {
    "none": "decoded each time",
    "memory": "decoded once, kept in memory",
    "disk": "decoded once, kept in a file",
    "device": "all decoded on the device, no loader",
}


SIDES = (224, 192, 160, 128, 112, 96, 80, 64, 48, 32, 28, 24, 16, 8)


def check(config: Pretrain) -> None:
    """What can be known to be wrong before any file is read."""
    check_numbers(
        config,
        (
            *(
                "epochs",
                "batch_size",
                "patch_size",
                "channels",
                "micro_batch_size",
                "log_every",
                "mask_ratio",
            ),
            *("decoder_dim", "decoder_depth", "decoder_heads", "max_megapixels", "white"),
        ),
        (
            "base_lr",
            "weight_decay",
            "warmup_epochs",
            "workers",
            "seed",
            "max_bad_percent",
            "clip_grad",
            "registers",
        ),
    )
    if config.mask_ratio >= 1:
        raise UserError(f"--mask-ratio {config.mask_ratio}: must be below 1, a share such as 0.75")
    check_training(config)
    if config.normalize not in (None, "data", "imagenet", "run"):
        raise UserError(f"--normalize {config.normalize}: data or imagenet, or run with --from")
    if config.from_run is None and (config.new_decoder or config.normalize == "run"):
        flag = "--new-decoder" if config.new_decoder else "--normalize run"
        raise UserError(
            f"{flag} says what to do with the run of --from: add --from RUN, or leave {flag} out"
        )
    masking(config.masking)
    if config.cache is not None:
        choose(CACHES, config.cache, "--cache")
    choose(TARGETS, config.target, "target")
    choose(DECODERS, config.decoder, "decoder")
    choose(LOSSES, config.loss_on, "loss")
    if config.tensorboard and find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "tensorboard")
    if config.model is not None:
        size_of(config.model)
    if config.image_size is not None:
        size = parse_size(config.image_size)
        if config.patch_size is not None:
            grid_of(size, as_size(config.patch_size))


def asked(config: Any) -> dict[str, Any]:
    """The settings as they were asked for, the size of images in its one spelling."""
    size = config.image_size
    return asdict(config) | {"image_size": None if size is None else size_text(parse_size(size))}


def check_training(config: Any) -> None:
    """What pre-training and fine-tuning have in common."""
    low, high = config.crop_scale
    if not 0 < low <= high <= 1:
        raise UserError(
            f"--crop-scale {low} {high}: two shares of the area, 0 < least <= largest <= 1"
        )
    if config.precision not in (None, "fp32", "bf16", "fp16"):
        raise UserError(f"--precision {config.precision}: fp32, bf16 or fp16")
    if config.seed >= 1 << 62:
        raise UserError(f"--seed {config.seed}: must be below 2**62")


def patch_size(size: tuple[int, int]) -> int:
    """The smallest patch, of at most 16 px, that cuts an image into at most 144 patches; 16 for 224 px, 4 for 32 px."""
    common = math.gcd(*size)
    allowed = [p for p in range(2, 17) if common % p == 0]
    patch = next((p for p in allowed if size[0] * size[1] <= 144 * p * p), max(allowed, default=1))
    if patch < 16 and size[0] * size[1] > 400 * patch * patch:
        near = size_text((max(16, round(size[0] / 16) * 16), max(16, round(size[1] / 16) * 16)))
        raise UserError(
            f"--image-size {size_text(size)} is divisible by no patch of 2 to 16 px that makes a grid of a sensible size: "
            f"use --image-size {near}, or name a --patch-size"
        )
    return patch


def side_of(found: Scan) -> int:
    """The largest usual side that the median image has."""
    return next((side for side in SIDES if side <= min(found.height, found.width)), SIDES[-1])


def batch_size(count: int, on_gpu: bool, processes: int) -> int:
    """A power of two, at most 32 on a CPU (short runs need many steps) and 1024 on a GPU, that gives at least 8 steps an
    epoch where there is data for it; never more than the data set."""
    limit = min(1024 if on_gpu else 32, max(16, count // 8), count)
    power = 1 << (limit.bit_length() - 1)
    return max(processes, power // processes * processes)


def epochs(count: int, on_gpu: bool) -> int:
    """So many that the model sees 20 million crops on a GPU, 100,000 on a CPU; within bounds."""
    return min(400, max(30, 20_000_000 // count)) if on_gpu else min(400, max(3, 100_000 // count))


def base_lr(batch: int, embed_dim: int) -> float:
    """From vit_base on the paper's 1.5e-4. Smaller models bear more, and the linear rule starves small batches: for them
    the peak is the paper's 2.4e-3 at batch 4096 and falls with the fourth root of the batch (7e-4 at 32)."""
    return 1.5e-4 if embed_dim >= 768 else 1.5e-4 * (4096 / batch) ** 0.75


def precision(device: torch.device) -> str:
    """bf16 where it is fast: GPUs that have it, CPUs with AMX or AVX512-BF16 (1.2 to 2.2 times fp32 here)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def workers(device: torch.device, processes: int) -> int:
    """Loading processes for each training process: half of its cores beside a GPU, a quarter (at least 1) beside a CPU."""
    cores = max(
        1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    here = int(
        os.environ.get("LOCAL_WORLD_SIZE", processes)
    )  # of several machines, those on this one
    return max(1, min(16, cores // here // (2 if device.type == "cuda" else 4)))


def resolve(
    config: Pretrain, found: Scan, channels: int, world: World, embed_dim: int | None = None
) -> Pretrain:
    """The settings with nothing left open. `UserError` for a batch larger than the data set.

    `embed_dim` is the width of an encoder that is there already (of --from); its size may have no name.
    """
    on_gpu = world.device.type == "cuda"
    size = parse_size(config.image_size or side_of(found))
    model = config.model
    if embed_dim is None:
        large = (
            "vit_tiny"
            if found.images < 10_000
            else "vit_small"
            if found.images < 200_000
            else "vit_base"
        )
        model = model or (large if on_gpu else "vit_micro")
        embed_dim = size_of(model)["embed_dim"]
    batch = config.batch_size or batch_size(found.images, on_gpu, world.size)
    if batch > found.images:
        raise UserError(
            f"--batch-size {batch} is more than the {found.images} images of the data set: use at most {found.images}"
        )
    many = config.epochs or epochs(found.images, on_gpu)
    return replace(
        config,
        model=model,
        image_size=size_text(size),
        patch_size=config.patch_size or patch_size(size),
        channels=config.channels or channels,
        normalize=config.normalize or "data",
        epochs=many,
        batch_size=batch,
        base_lr=base_lr(batch, embed_dim) if config.base_lr is None else config.base_lr,
        warmup_epochs=many / 20 if config.warmup_epochs is None else config.warmup_epochs,
        precision=config.precision or precision(world.device),
        workers=workers(world.device, world.size) if config.workers is None else config.workers,
    )


def describe(
    config: Pretrain,
    plan: TrainConfig,
    count: int,
    model: MAE,
    origin: str,
    out: Path,
    world: World,
) -> str:
    """The plan, a line each, before training starts."""
    encoder, decoder = (
        sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)
    )
    grid = model.encoder.grid
    device = (
        torch.cuda.get_device_name()
        if world.device.type == "cuda"
        else platform.processor() or "CPU"
    )
    name = config.model or f"{model.encoder.embed_dim} wide, {len(model.encoder.layers())} blocks"
    seen = f"{count} images"
    bad = out / "bad-files.jsonl"
    if bad.exists() and (lines := len(bad.read_text().splitlines())):
        seen += f", {lines} unreadable (see {bad})"
    everywhere = ", mask tokens in the encoder" if model.encode_all else ""
    rows = {
        "data": f"{config.data}: {seen}",
        "start": origin,
        "model": f"{name}, {encoder:.1f} M parameters, decoder {decoder:.1f} M{everywhere}; target {config.target}",
        "image": f"{config.image_size} px, {config.channels} channels, {grid[0]}x{grid[1]} patches of {config.patch_size} px, "
        f"{config.mask_ratio:.0%} hidden ({config.masking})",
        "training": f"{config.epochs:g} epochs, {plan.steps} steps of {config.batch_size} images, "
        f"peak learning rate {plan.lr:.2g} (base {config.base_lr:.2g})",
        "device": f"{world.device.type} ({device}), {config.precision}, {world.size} process{'es' * (world.size > 1)}, "
        f"{attention(world.device, config.precision or '')}, fused AdamW, {'compiled' if config.compile else 'not compiled'}"
        f"{', blocks checkpointed' if config.grad_checkpointing else ''}",
        "loading": f"images {CACHES[config.cache or 'none']}"
        + (
            f"; {config.workers} worker{'s' * (config.workers != 1)} a process"
            * (config.cache != "device")
        ),
        "run folder": str(out),
    }
    return "\n".join(f"{name:>11}  {value}" for name, value in rows.items())
