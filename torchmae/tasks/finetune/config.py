"""The settings of `mae finetune`, what is chosen where they are left open and why, and the plan in words."""

import os
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, NamedTuple

import tyro

from torchmae.errors import UserError, choose
from torchmae.models.heads import POOLS, Classifier
from torchmae.models.vit import size_of
from torchmae.options import check_numbers, parse_size, size_text
from torchmae.runfolder import read_config
from torchmae.tasks.pretrain import config as settings
from torchmae.tasks.pretrain.config import check_training
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.optim import OPTIMIZERS


@dataclass(frozen=True)
class Finetune:
    """Make a classifier from a pre-trained run (or "none": from scratch) and labelled images.

    What is left out is chosen for the number of labelled images and the device, and printed with the reason. --preset NAME
    starts from a recipe of the paper (finetune_base, scratch_base, probe_base, ...), which other flags then change.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, or none for the supervised baseline from scratch (then --model)."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Labelled images: class folders (with train/ and val/ above them: the split), CSV of path,label, tar, digits, ..."""
    out: str | None = None
    """Run folder of the classifier. Default: RUN-finetune, RUN-probe, RUN-last-4, ... or runs/NAME-OF-DATA-scratch."""
    val: str | None = None
    """Labelled images to validate on. Default: val/ or test/ beside train/, else a share of DATA."""
    val_fraction: float = 0.2
    """That share, of every class, drawn by the seed."""
    labels_per_class: int | None = None
    """Train on so many images of each class, drawn by the seed."""
    train: str = "all"
    """What may change: all, head (or 0: the linear probe), 0.5 (the MLP half of the last block) or the number of last blocks
    (paper Figure 9)."""
    pool: str | None = None
    """What the head sees: mean of the patch tokens with its own norm (the reference's default), or the class token (the
    default for --train head, as in the paper)."""
    model: str | None = None
    """Only from scratch: the size of the encoder (vit_micro by default), or a run folder that has the one to take (without its
    weights)."""
    image_size: str | int | None = None
    """Default: that of the run; positions are resized to another."""
    patch_size: int | None = None
    """Only from scratch."""
    channels: int | None = None
    """What the classifier takes, where run and data differ: grey and colour images are converted to it, the run's patch
    weights adapted."""
    epochs: float | None = None
    """Passes over the labelled images."""
    batch_size: int | None = None
    """Images per optimizer step, over all processes."""
    optimizer: str | None = None
    """adamw, sgd or lars. Default: adamw; for --train head sgd, or lars from 4,096 images a step on."""
    base_lr: float | None = None
    """Learning rate for 256 images a step."""
    min_lr: float = 1e-6
    """Learning rate at the end."""
    warmup_epochs: float | None = None
    """Default: a tenth of the epochs."""
    weight_decay: float | None = None
    """Default: 0.05; 0.3 from scratch (paper); 0 for the head alone."""
    layer_decay: float | None = None
    """Each layer's learning rate is this times the next one's. Default: 0.75; 1 from scratch."""
    beta2: float | None = None
    """AdamW's second beta. Default: 0.999; 0.95 from scratch (paper)."""
    drop_path: float | None = None
    """Stochastic depth of the last block, growing from 0 at the first. Default: 0.1 where blocks are trained."""
    randaug_magnitude: float | None = None
    """Of RandAugment, 0 (off) to 10. Default: 9 (the paper's), 5 below 1,000 images; off for the head alone."""
    random_erasing: float | None = None
    """Probability of random erasing. Default: 0.25 (the reference's) from 1,000 images on, but not for the head alone, nor from
    scratch."""
    mixup: float | None = None
    """Mixup's alpha. Default: 0.8 where 1,000 images or more are trained on, else off."""
    cutmix: float | None = None
    """CutMix's alpha. Default: 1.0 where 1,000 images or more are trained on, else off."""
    label_smoothing: float | None = None
    """Label smoothing. Default: 0.1; off for the head alone."""
    ema: float | None = None
    """Decay of an average of the weights, which is what is validated and kept then; 0: off. Default: 0.9999 from scratch
    (paper), else off."""
    clip_grad: float | None = None
    """Largest gradient norm. Default: no clipping."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area that a random crop takes."""
    flip: bool = True
    """Mirror half of the crops (not for text or digits)."""
    validate_epochs: float | None = None
    """Epochs between two validations. Default: 1; more where there are fewer images to train on than to validate on."""
    crop_pct: float = 1.0
    """Share of the side that validation, evaluate and predict look at (the paper's recipes at 224 px: 0.875)."""
    seed: int = 0
    """Of split, subset, head, order and augmentation."""
    precision: str | None = None
    """fp32, bf16 or fp16. Default: bf16 where the device is fast at it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: bool = False
    """Use torch.compile."""
    micro_batch_size: int | None = None
    """Images at a time on a device. Default: all of the batch, or what fits."""
    workers: int | None = None
    """Processes that load images."""
    save_minutes: float = 5.0
    """Minutes between two checkpoints."""


# What may differ when a run goes on, since the weights do not depend on it ("data": its fingerprint decides).
FREE = {"data", "val", "out", "device", "compile", "micro_batch_size", "workers", "save_minutes"}


class Choice(NamedTuple):
    """What is taken for a setting that was left open, and why."""

    value: Any
    why: str


def check(config: Finetune) -> None:
    """What can be known to be wrong before any file is read."""
    check_numbers(
        config,
        (
            *(
                "epochs",
                "batch_size",
                "patch_size",
                "channels",
                "labels_per_class",
                "layer_decay",
                "micro_batch_size",
            ),
            "validate_epochs",
        ),
        (
            *(
                "base_lr",
                "min_lr",
                "weight_decay",
                "warmup_epochs",
                "workers",
                "seed",
                "clip_grad",
                "mixup",
                "cutmix",
            ),
            *("ema", "beta2"),
        ),
    )
    for name in (
        "val_fraction",
        "label_smoothing",
        "drop_path",
        "random_erasing",
        "ema",
        "beta2",
        "crop_pct",
        "layer_decay",
    ):
        value, whole = getattr(config, name), name in ("random_erasing", "crop_pct", "layer_decay")
        if value is not None and not (0 <= value <= 1 if whole else 0 <= value < 1):
            raise UserError(
                f"--{name.replace('_', '-')} {value}: a share, {'0 to 1' if whole else '0 or more, below 1'}"
            )
    if config.val == config.data:
        raise UserError(
            f"--val {config.val} is the data that is trained on: leave it out, and a share is held out"
        )
    if config.val_fraction == 0 or config.crop_pct == 0:
        raise UserError(
            f"--{'val-fraction' if config.val_fraction == 0 else 'eval-crop'} 0: must be more than 0"
        )
    if config.randaug_magnitude is not None and not 0 <= config.randaug_magnitude <= 10:
        raise UserError(f"--randaug-magnitude {config.randaug_magnitude}: 0 (off) to 10")
    check_training(config)
    if config.pool is not None and config.pool not in POOLS:
        raise UserError(f"--pool {config.pool}: {' or '.join(POOLS)}")
    if config.optimizer is not None:
        choose(OPTIMIZERS, config.optimizer, "optimizer")
    if config.run == "none":
        like = architecture(config.model)
        if config.patch_size and like.get("patch_size", config.patch_size) != config.patch_size:
            raise UserError(
                f"--patch-size {config.patch_size}: that of {config.model} is {like['patch_size']}"
            )
        if config.train != "all":
            raise UserError(
                f"--train {config.train}: from scratch (run none) everything has to be trained"
            )
    elif config.model is not None or config.patch_size is not None:
        flag = (
            f"--model {config.model}"
            if config.model is not None
            else f"--patch-size {config.patch_size}"
        )
        raise UserError(
            f"{flag} is for training from scratch (run none); {config.run} has an encoder of its own"
        )
    if config.train == "head" and 1 in (config.batch_size, config.micro_batch_size):
        raise UserError(
            "a probe's BatchNorm needs more than one image at a time: --batch-size 2 or more"
        )
    if config.train == "head" and config.micro_batch_size is not None:
        raise UserError(
            f"--micro-batch-size {config.micro_batch_size}: a probe's BatchNorm sees the whole batch; leave it out"
        )
    if config.image_size is not None:
        parse_size(config.image_size)


def plain(config: Finetune, **changes: Any) -> Finetune:
    """One fine-tuning of a verb that runs several: of its settings those of `Finetune`, with changes."""
    return Finetune(
        **{**{field.name: getattr(config, field.name) for field in fields(Finetune)}, **changes}
    )


def architecture(model: str | None) -> dict[str, Any]:
    """Arguments of a ViT: those of a named size, or the whole description of a run folder's encoder."""
    model = model or "vit_micro"
    if not os.path.isdir(model):
        return dict(size_of(model))
    described = read_config(model)["model"]["encoder"]
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in described.items()
    }


def choices(
    config: Finetune, images: int, val_images: int, size: tuple[int, int], world: World
) -> dict[str, Choice]:
    """What is taken for the settings that are left open: length, strength and learning rate follow from the number of
    labelled images; the rest is the paper's (Table 9; Table 10 for the head alone, Table 11 from scratch)."""
    open_now = {name for name, value in vars(config).items() if value is None}
    return {
        name: choice
        for name, choice in everything(config, images, val_images, size, world).items()
        if name in open_now
    }


def everything(
    config: Finetune, images: int, val_images: int, size: tuple[int, int], world: World
) -> dict[str, Choice]:
    """A choice for each setting that can be left open."""
    on_gpu = world.device.type != "cpu"
    batch = config.batch_size or settings.batch_size(images, on_gpu, world.size)
    budget = 2_000_000 if on_gpu else 20_000
    epochs = config.epochs or min(100, max(20, budget // images))
    many = images >= 1000
    few = "mixing needs many images, there are fewer than 1,000"
    mild = "milder than the paper's 9: with fewer than 1,000 images there are few steps to learn from strong changes"
    common = {
        "image_size": Choice(
            size_text(size), "that of the run" if config.run != "none" else "the images' size"
        ),
        "batch_size": Choice(batch, f"for {images} images on {'a GPU' if on_gpu else 'a CPU'}"),
        "epochs": Choice(
            float(epochs),
            f"{epochs * images:,.0f} crops; {budget:,} are aimed at, within 20 to 100 epochs",
        ),
        "validate_epochs": Choice(
            float(max(1, round(val_images / images))),
            f"epochs between validations: {val_images} images to validate on should not outweigh the training",
        ),
        "warmup_epochs": Choice(epochs / 10, "a tenth of the epochs"),
        "precision": Choice(settings.precision(world.device), "the device is fast at it"),
        "workers": Choice(settings.workers(world.device, world.size), "by the cores"),
    }
    if config.train == "head":
        lars = config.optimizer == "lars" or (config.optimizer is None and batch >= 4096)
        return common | {
            "pool": Choice("token", "the paper's linear probe"),
            "optimizer": Choice(
                "lars" if lars else "sgd", f"{batch} images a step; LARS is for 4,096 and more"
            ),
            "base_lr": Choice(0.1, "the paper's")
            if lars
            else Choice(1.0, "SGD bears more than the paper's 0.1 for LARS"),
            "weight_decay": Choice(0.0, "the paper's"),
            "layer_decay": Choice(1.0, "there is one layer"),
            "beta2": Choice(0.999, "not used"),
            "drop_path": Choice(0.0, "the encoder is frozen"),
            "ema": Choice(0.0, "the paper's"),
            **{
                name: Choice(0.0, "a probe sees crops and flips only")
                for name in ("randaug_magnitude", "random_erasing", "label_smoothing")
            },
            **{
                name: Choice(0.0, "a probe sees crops and flips only")
                for name in ("mixup", "cutmix")
            },
        }
    strong = {
        "pool": Choice("mean", "the reference's default"),
        "optimizer": Choice("adamw", "the paper's"),
        "base_lr": Choice(
            1e-3 * (1024 / batch) ** 0.5,
            "the paper's 1e-3 at 1,024 a step, falling with the root of the batch",
        ),
        "drop_path": Choice(0.1, "the paper's"),
        "randaug_magnitude": Choice(9.0 if many else 5.0, "the paper's" if many else mild),
        "label_smoothing": Choice(0.1, "the paper's"),
        "mixup": Choice(0.8 if many else 0.0, "the paper's" if many else few),
        "cutmix": Choice(1.0 if many else 0.0, "the paper's" if many else few),
    }
    if config.run == "none":
        like = architecture(config.model).get("patch_size")
        patch = like or config.patch_size or settings.patch_size(size)
        return (
            common
            | strong
            | {
                "patch_size": Choice(
                    patch, "that of --model" if like else "at most 144 patches, or 16 px"
                ),
                "weight_decay": Choice(0.3, "the paper's from scratch"),
                "layer_decay": Choice(1.0, "nothing is pre-trained"),
                "beta2": Choice(0.95, "the paper's from scratch"),
                "random_erasing": Choice(0.0, "the paper's from scratch"),
                "ema": Choice(0.9999, "the paper's from scratch"),
            }
        )
    return (
        common
        | strong
        | {
            "weight_decay": Choice(0.05, "the paper's"),
            "layer_decay": Choice(0.75, "the paper's"),
            "beta2": Choice(0.999, "the paper's"),
            "random_erasing": Choice(
                0.25 if many else 0.0, "the reference's" if many else "off below 1,000 images"
            ),
            "ema": Choice(0.0, "the paper's"),
        }
    )


def resolve(config: Finetune, chosen: dict[str, Choice], images: int) -> Finetune:
    """The settings with nothing left open. `UserError` for a batch larger than the data set."""
    config = replace(config, **{name: choice.value for name, choice in chosen.items()})
    config = replace(config, image_size=size_text(parse_size(config.image_size or 0)))
    mixes, micro = config.mixup or config.cutmix, config.micro_batch_size
    if mixes and micro and (micro % 2 or (config.batch_size or 0) % micro):
        raise UserError(
            f"--micro-batch-size {micro}: mixup and CutMix pair neighbours, so it must be even and divide the batch of "
            f"{config.batch_size} (or switch them off: --mixup 0 --cutmix 0)"
        )
    if config.batch_size and config.batch_size > images:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {images} labelled images: use at most {images}"
        )
    return config


def describe(
    config: Finetune,
    plan: TrainConfig,
    counts: tuple[int, int],
    model: Classifier,
    moved: int,
    chosen: dict[str, Choice],
    where: str,
) -> str:
    """The plan before training starts: what it is, and a line for each setting that was chosen, with the reason.

    `counts` are training and validation images, `moved` the number of parameters that are trained.
    """
    encoder = model.encoder
    rows = {
        "data": f"{config.data}: {counts[0]} training images"
        f"{f' ({config.labels_per_class} a class)' if config.labels_per_class else ''} and {counts[1]} validation images, "
        f"{len(model.classes)} classes",
        "model": f"{encoder.embed_dim} wide, {len(encoder.layers())} blocks, {size_text(encoder.image_size)} px, "
        f"{encoder.channels} channels; train {config.train} ({moved:,} parameters)",
        "training": f"{config.epochs:g} epochs, {plan.steps} steps of {config.batch_size} images, peak learning rate "
        f"{plan.lr:.2g} ({config.optimizer}), {where}",
    }
    lines = [f"{name:>15}  {value}" for name, value in rows.items()]
    for name, choice in chosen.items():
        value = f"{choice.value:.4g}" if isinstance(choice.value, float) else str(choice.value)
        lines.append(f"{name.replace('_', ' '):>15}  {value:<6} {choice.why}")
    return "\n".join(lines)
