"""`mae finetune`: a classifier from a run and a few labels; one task whose `train` says what may change."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Int64
from safetensors.torch import save_file
from torch import Tensor, nn

from torchmae.data.augment import StrongAugment
from torchmae.data.labels import Subset, few, hold_out, labelled, open_pair
from torchmae.data.loader import Batch, Batches
from torchmae.data.scan import Scan
from torchmae.data.transforms import Augment
from torchmae.errors import RunError, UserError
from torchmae.models.heads import POOLS, Classifier, trainable
from torchmae.models.mae import build_encoder
from torchmae.models.mixing import mix
from torchmae.models.vit import ViT, size_of
from torchmae.models.weights import load, read_config
from torchmae.tasks import runs, settings
from torchmae.tasks.embed import collect
from torchmae.tasks.evaluate import logits_of
from torchmae.tasks.metrics import scores
from torchmae.train import checkpoint
from torchmae.train.distributed import World, start
from torchmae.train.log import draw_curves
from torchmae.train.loop import Plan, fit
from torchmae.train.optim import peak_lr


@dataclass(frozen=True)
class Finetune:
    """Make a classifier from a pre-trained run (or "none": from scratch) and labelled images."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, or none for the supervised baseline from scratch (then --model)."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Labelled images: class folders (with train/ and val/ above them: the split), CSV of path,label, tar, digits, ..."""
    out: str | None = None
    """Run folder of the classifier. Default: RUN-finetune."""
    val: str | None = None
    """Labelled images to validate on. Default: val/ or test/ beside train/, else a share of DATA."""
    val_fraction: float = 0.2
    """That share, of every class, drawn by the seed."""
    labels_per_class: int | None = None
    """Train on so many images of each class, drawn by the seed."""
    train: str = "all"
    """What may change: all, head, 0.5 (the MLP half of the last block) or the number of last blocks (paper Figure 9)."""
    pool: str = "mean"
    """What the head sees: mean of the patch tokens with its own norm (the reference's default), or the class token."""
    model: str = "vit_micro"
    """Only from scratch: the size of the encoder."""
    image_size: str | int | None = None
    """Default: that of the run; positions are resized to another."""
    patch_size: int | None = None
    """Only from scratch."""
    epochs: float | None = None
    """Passes over the labelled images."""
    batch_size: int | None = None
    """Images per optimizer step, over all processes."""
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
    drop_path: float = 0.1
    """Stochastic depth of the last block, growing from 0 at the first."""
    magnitude: float | None = None
    """Of RandAugment, 0 (off) to 10. Default: 9 (the paper's); off for the head alone."""
    erase: float | None = None
    """Probability of random erasing. Default: 0.25 (the reference's); off for the head alone."""
    mixup: float | None = None
    """Mixup's alpha. Default: 0.8 where 1,000 images or more are trained on, else off."""
    cutmix: float | None = None
    """CutMix's alpha. Default: 1.0 where 1,000 images or more are trained on, else off."""
    smoothing: float = 0.1
    """Label smoothing."""
    ema: float | None = None
    """Decay of an average of the weights, which is what is validated and kept then (0.9999 in the paper's scratch recipe)."""
    clip_grad: float | None = None
    """Largest gradient norm."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area that a random crop takes."""
    flip: bool = True
    """Mirror half of the crops (not for text or digits)."""
    seed: int = 0
    """Of split, subset, head, order and augmentation."""
    precision: str | None = None
    """fp32, bf16 or fp16. Default: bf16 where the device is fast at it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Processes that load images."""
    save_minutes: float = 5.0
    """Minutes between two checkpoints."""


FREE = {"data", "val", "out", "device", "workers", "save_minutes", "run"}


class ClassifyTask(nn.Module):
    """Cross-entropy on smoothed, possibly mixed labels; only what `train` names is moved, the rest stays in eval mode."""

    aside: frozenset[str] = frozenset()

    def __init__(self, model: Classifier, labels: Int64[Tensor, "N"], config: Finetune):
        super().__init__()
        self.model, self.config = model, config
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)
        self.moving = set(trainable(model, config.train))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.moving)

    def layers(self) -> list[nn.Module]:
        return self.model.encoder.layers()

    def train(self, mode: bool = True) -> "ClassifyTask":
        super().train(mode)
        for name, module in self.model.encoder.named_modules():
            inside = [n for n in self.moving if n.startswith(f"encoder.{name}." if name else "encoder.")]
            if not inside:
                module.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, count = self.model.encoder.normalize(batch.images), len(self.model.classes)
        smooth = self.config.smoothing
        targets = F.one_hot(self.labels[batch.sample], count).float() * (1 - smooth) + smooth / count
        config = self.config
        images, targets = mix(images, targets, config.mixup or 0.0, config.cutmix or 0.0, config.seed, batch.step)
        return {"loss": F.cross_entropy(self.model(images).float(), targets)}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        return {}


class Data:
    """The labelled images of a fine-tuning: training and validation sets, class numbers."""

    def __init__(self, config: Finetune):
        train_source, test_source = open_pair(config.data, config.val)
        train, names = labelled(train_source, config.data)
        if test_source is None:
            out = hold_out(names, config.val_fraction, config.seed)
            parts = [np.flatnonzero(~out), np.flatnonzero(out)]
            self.val, val_names = Subset(train, parts[1]), [names[i] for i in parts[1]]
            train, names = Subset(train, parts[0]), [names[i] for i in parts[0]]
        else:
            self.val, val_names = labelled(test_source, config.val or f"the test part of {config.data}")
        self.classes = tuple(sorted(set(names)))
        strange = sorted(set(val_names) - set(self.classes))
        if strange:
            raise UserError(f"class '{strange[0]}' is in the validation images, but not in the training images")
        if len(self.classes) < 2:
            raise UserError(f"a classifier needs at least two classes, {config.data} has {len(self.classes)}")
        if config.labels_per_class is not None:
            ids = few(names, config.labels_per_class, config.seed)
            train, names = Subset(train, ids), [names[i] for i in ids]
        self.train = train
        number = {name: i for i, name in enumerate(self.classes)}
        self.train_labels, self.val_labels = (torch.tensor([number[n] for n in some]) for some in (names, val_names))


def run(config: Finetune) -> Path:
    """Trains a classifier, or goes on training it, and gives its run folder."""
    check(config)
    scratch = config.run == "none"
    with start(config.device) as world, ExitStack() as stack:
        data = Data(config)
        default = (
            Path("runs") / f"{settings.name_of(config.data)}-scratch" if scratch else Path(f"{config.run}-finetune")
        )
        out = Path(config.out or default)
        goes_on = runs.prepare(out, config.data, world)
        world.on_main(lambda: stack.enter_context(checkpoint.lock(out)))
        identity = runs.identity(data.train) | {"val": runs.identity(data.val)}
        if goes_on:
            asked = asdict(config)
            if config.image_size is not None:
                asked["image_size"] = settings.size_text(settings.parse_size(config.image_size))
            merged, described = runs.resume(out, "finetune", asked, FREE, identity)
            config, encoder = Finetune(**merged), described["encoder"]
        else:
            channels = data.train.channels if scratch else load(config.run).channels
            found = world.on_main(lambda: runs.scan_and_report(data.train, channels, out))
            config = resolve(config, len(data.train), found, world)
            size = settings.parse_size(config.image_size or 0)
            encoder = {"image_size": size, "patch_size": config.patch_size, "channels": channels}
            encoder |= {"mean": found.mean, "std": found.std, **size_of(config.model)}
        model = build(config, encoder, data.classes)
        trainable(model, config.train)  # a mistake there is said before the run folder is described
        if not goes_on:
            world.on_main(lambda: runs.write_config(out, "finetune", asdict(config), identity, model.config()))
        return train(config, data, model, out, world)


def check(config: Finetune) -> None:
    """What can be known to be wrong before any file is read."""
    settings.check_numbers(
        config,
        positive=("epochs", "batch_size", "patch_size", "labels_per_class", "layer_decay"),
        not_negative=(
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
    )
    for name in ("val_fraction", "smoothing", "drop_path", "erase"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1 + (name == "erase"):
            raise UserError(f"--{name.replace('_', '-')} {value}: a share, at least 0 and below 1")
    if config.magnitude is not None and not 0 <= config.magnitude <= 10:
        raise UserError(f"--magnitude {config.magnitude}: 0 (off) to 10")
    if config.pool not in POOLS:
        raise UserError(f"--pool {config.pool}: {' or '.join(POOLS)}")
    if config.run == "none":
        size_of(config.model)
        if config.train != "all":
            raise UserError(f"--train {config.train}: from scratch (run none) everything has to be trained")
    else:
        read_config(config.run)
    if config.image_size is not None:
        settings.parse_size(config.image_size)


def resolve(config: Finetune, images: int, found: Scan, world: World) -> Finetune:
    """The settings with nothing left open: strength and length follow from the number of labelled images.

    Few labels want many passes and small batches: about 20,000 crops on a CPU and 2 million on a GPU, 20 to 100 epochs; mixing
    only helps where there is enough to mix.
    """
    scratch, head = config.run == "none", config.train == "head"
    batch = config.batch_size or settings.batch_size(images, world.device.type != "cpu", world.size)
    if batch > images:
        raise UserError(f"--batch-size {batch} is more than the {images} labelled images: use at most {images}")
    budget = 20_000 if world.device.type == "cpu" else 2_000_000
    epochs = config.epochs or min(100, max(20, budget // images))
    if scratch:
        size = settings.parse_size(config.image_size or settings.side_of(found))
    else:
        size = settings.parse_size(config.image_size or settings.size_text(load(config.run).image_size))

    def default(given: float | None, value: float) -> float:
        return value if given is None else given

    return replace(
        config,
        image_size=settings.size_text(size),
        patch_size=(config.patch_size or settings.patch_size(size)) if scratch else None,
        epochs=epochs,
        batch_size=batch,
        base_lr=default(config.base_lr, 1e-3 * (1024 / batch) ** 0.5),
        warmup_epochs=default(config.warmup_epochs, epochs / 10),
        weight_decay=default(config.weight_decay, 0.3 if scratch else 0.0 if head else 0.05),
        layer_decay=default(config.layer_decay, 1.0 if scratch else 0.75),
        magnitude=default(config.magnitude, 0.0 if head else 9.0),
        erase=default(config.erase, 0.0 if head else 0.25),
        mixup=default(config.mixup, 0.8 if images >= 1000 and not head else 0.0),
        cutmix=default(config.cutmix, 1.0 if images >= 1000 and not head else 0.0),
        precision=config.precision or settings.precision(world.device),
        workers=settings.workers(world.device, world.size) if config.workers is None else config.workers,
    )


def build(config: Finetune, encoder_config: dict[str, Any], classes: tuple[str, ...]) -> Classifier:
    """The classifier at its start: the run's encoder, or (from scratch) a fresh one of the given description."""
    with runs.seeded(config.seed):
        if config.run == "none":
            encoder: ViT = build_encoder(encoder_config)
        else:
            encoder = load(config.run)
            size = settings.parse_size(config.image_size or 0)
            if size != encoder.image_size:
                encoder.resize(size)
        encoder.set_drop_path(config.drop_path)
        encoder.pos_embed.requires_grad_(True)  # trained in fine-tuning, as in the reference
        return Classifier(encoder, classes, config.pool, batch_norm=config.train == "head")


def train(config: Finetune, data: Data, model: Classifier, out: Path, world: World) -> Path:
    """fit() with this task, validation after every epoch, and the words before and after."""
    assert config.epochs and config.batch_size and config.base_lr is not None and config.warmup_epochs is not None
    assert config.magnitude is not None and config.erase is not None and config.weight_decay is not None
    assert config.precision and config.workers is not None
    encoder = model.encoder
    crop = Augment(encoder.image_size, config.seed, config.crop_scale, config.flip)
    augment = StrongAugment(crop, config.magnitude, config.erase, encoder.mean, encoder.std)
    batches = Batches(data.train, augment, config.batch_size, encoder.channels, config.seed, world.rank, world.size)
    steps_per_epoch = len(data.train) / config.batch_size
    plan = Plan(
        steps=max(1, round(config.epochs * steps_per_epoch)),
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        lr=peak_lr(config.base_lr, config.batch_size),
        weight_decay=config.weight_decay,
        betas=(0.9, 0.999),
        clip_grad=config.clip_grad,
        precision=config.precision,
        compile=False,
        shard=False,
        workers=config.workers,
        micro_batch=None,
        log_every=20,
        save_minutes=config.save_minutes,
        evaluate_minutes=0.0,
        tensorboard=False,
        evaluate_steps=max(1, round(steps_per_epoch)),
        least_lr=config.min_lr,
        layer_decay=config.layer_decay,
        seed=config.seed,
    )
    task = ClassifyTask(model, data.train_labels, config)
    if world.is_main:
        print(describe(config, plan, data, task, out, world), flush=True)
    validation = Validation(model, data, out, world)
    outcome = fit(task, batches, plan, out, world, [validation])
    if outcome.signal is not None:
        raise RunError(
            f"stopped at step {outcome.step} of {plan.steps} and saved; the same command goes on", 128 + outcome.signal
        )
    if world.is_main:
        draw_curves(out)
        best, last = (json.loads((out / f"{name}.json").read_text()) for name in ("best", "last"))
        results = json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else {}
        results["validation"] = {"best": best, "last": last}
        checkpoint.write_text(out / "results.json", json.dumps(results, indent=1))
        print(
            f"Done: {plan.steps} steps. Accuracy on {len(data.val)} validation images: last epoch {last['top1']:.1%} "
            f"(95 % interval {last['low']:.1%} to {last['high']:.1%}), best epoch {best['top1']:.1%} (step {best['step']}; "
            f"chosen on these same images, so it flatters)\nMade:\n  {out / 'model.safetensors'}  the last weights\n"
            f"  {out / 'best.safetensors'}  the best epoch's\n  {out / 'curves.png'}, {out / 'results.json'}  how it went",
            flush=True,
        )
    return out


class Validation:
    """Evaluator: the scores on the validation images; the best weights so far are kept beside the last."""

    def __init__(self, model: Classifier, data: Data, out: Path, world: World):
        self.model, self.data, self.out, self.world = model, data, out, world

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        model, device = self.model, self.world.device
        ids, (found,), _ = collect(self.data.val, model.encoder, str(self.out), [logits_of(model, device)], device)
        result = scores(found, self.data.val_labels[ids], model.classes)
        if self.world.is_main:
            text = json.dumps({"step": step, **result.summary()}, indent=1)
            checkpoint.write_text(self.out / "last.json", text)
            best = self.out / "best.json"
            if not best.exists() or json.loads(best.read_text())["top1"] < result.top1:
                partial = self.out / ".best.partial"
                save_file(model.state_dict(), partial)
                partial.replace(self.out / "best.safetensors")
                checkpoint.write_text(best, text)
        yield "accuracy", result.top1


def describe(config: Finetune, plan: Plan, data: Data, task: ClassifyTask, out: Path, world: World) -> str:
    """The plan, a line each, before training starts."""
    moved = sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6
    encoder = task.model.encoder
    rows = {
        "data": f"{config.data}: {len(data.train)} training and {len(data.val)} validation images, "
        f"{len(data.classes)} classes",
        "start": "from scratch" if config.run == "none" else config.run,
        "model": f"{encoder.embed_dim} wide, {encoder.depth} blocks, {settings.size_text(encoder.image_size)} px; "
        f"train {config.train} ({moved:.2f} M parameters), {config.pool} pooling",
        "training": f"{config.epochs:g} epochs, {plan.steps} steps of {config.batch_size} images, peak learning rate "
        f"{plan.lr:.2g}, layer decay {config.layer_decay:g}, weight decay {config.weight_decay:g}",
        "against overfitting": f"RandAugment {config.magnitude:g}, erasing {config.erase:g}, mixup {config.mixup:g}, "
        f"cutmix {config.cutmix:g}, smoothing {config.smoothing:g}, drop path {config.drop_path:g} "
        f"(chosen for {len(data.train)} images)",
        "device": f"{world.device.type}, {config.precision}, {world.size} process{'es' * (world.size > 1)}",
        "run folder": str(out),
    }
    return "\n".join(f"{name:>19}  {value}" for name, value in rows.items())
