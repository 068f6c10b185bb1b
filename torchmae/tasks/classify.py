"""`mae finetune`: a classifier from a run and a few labels; one task whose `train` says what may change."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor, nn

from torchmae.data.augment import StrongAugment
from torchmae.data.labels import LabelledSets, labelled_sets
from torchmae.data.loader import Batch, Batches
from torchmae.data.transforms import Augment
from torchmae.errors import UserError
from torchmae.hashing import DROP, uniform
from torchmae.models.heads import Classifier, blocks_of, trainable
from torchmae.models.mae import build_encoder
from torchmae.models.mixing import mix
from torchmae.models.vit import ViT
from torchmae.models.weights import load, read_config
from torchmae.tasks import recipe, runs, settings
from torchmae.tasks.embed import collect
from torchmae.tasks.evaluate import logits_of
from torchmae.tasks.metrics import scores
from torchmae.tasks.recipe import Choice
from torchmae.tasks.recipe import Finetune as Finetune
from torchmae.train import checkpoint
from torchmae.train.distributed import World, start
from torchmae.train.log import draw_curves
from torchmae.train.loop import Plan, fit
from torchmae.train.optim import peak_lr

MEASURED = ("best.json", "best.safetensors", "last.json", "results.json")
IN_MEMORY = 1 << 30  # bytes of validation pixels that are kept from one epoch to the next


class ClassifyTask(nn.Module):
    """Cross-entropy on smoothed, possibly mixed labels; only what `train` names is moved, the rest stays in eval mode."""

    aside: frozenset[str] = frozenset()

    def __init__(self, model: Classifier, labels: Int64[Tensor, "N"], config: Finetune):
        super().__init__()
        self.model, self.config = model, config
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)
        self.moving = set(trainable(model, config.train))
        for name, parameter in model.named_parameters():  # the positions too, as in the reference
            parameter.requires_grad_(name in self.moving)
        model.encoder.set_drop_path(config.drop_path or 0.0)

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
        config, count = self.config, len(self.model.classes)
        images, smooth = self.model.encoder.normalize(batch.images), config.smoothing or 0.0
        targets = F.one_hot(self.labels[batch.sample], count).float() * (1 - smooth) + smooth / count
        images, targets = mix(images, targets, config.mixup or 0.0, config.cutmix or 0.0, config.seed, batch.step)
        return {"loss": F.cross_entropy(self.model(images, self.draws(batch)).float(), targets)}

    def draws(self, batch: Batch) -> Float[Tensor, "B depth 2"]:
        """For stochastic depth: a function of (seed, epoch, sample), as all that is drawn."""
        places = torch.arange(2 * self.model.encoder.depth, device=batch.sample.device)
        keys = (x.unsqueeze(1) for x in (batch.epoch, batch.sample))
        return uniform(self.config.seed, DROP, *keys, places).unflatten(1, (-1, 2))

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        return {}


def run(config: Finetune, quiet: bool = False) -> Path:
    """Trains a classifier, or goes on training it, and gives its run folder; `quiet` leaves out plan and summary."""
    config = replace(config, train="head") if config.train in ("0", "0.0") else config
    recipe.check(config)
    out = Path(config.out or default_out(config))
    if config.run != "none" and not checkpoint.checkpoints(out):
        blocks_of(config.train, read_config(config.run)["model"]["encoder"]["depth"])
    with start(config.device) as world, ExitStack() as stack:
        data = labelled_sets(config.data, config.val, config.val_fraction, config.labels_per_class, config.seed)
        goes_on = runs.prepare(out, config.data, world)
        world.on_main(lambda: stack.enter_context(checkpoint.lock(out)))
        labels = repr((data.classes, data.train_labels.tolist(), data.val_labels.tolist()))
        identity = runs.identity(data.train) | {"val": runs.identity(data.val)}
        identity["labels"] = hashlib.sha256(labels.encode()).hexdigest()
        chosen: dict[str, Choice] = {}
        if goes_on:
            merged, described = runs.resume(out, "finetune", settings.asked(config), recipe.FREE, identity)
            config, model = Finetune(**merged), Classifier.build(described)
        else:
            world.on_main(lambda: forget(out))
            pretrained = None if config.run == "none" else load(config.run)
            channels = channels_of(config, data, pretrained)
            found = world.on_main(lambda: runs.scan_and_report(data.train, channels, out))
            known = pretrained.image_size if pretrained else recipe.architecture(config.model).get("image_size")
            default_size = settings.size_text(known) if known else settings.side_of(found)
            size = settings.parse_size(config.image_size or default_size)
            chosen = recipe.choices(config, len(data.train), len(data.val), size, world)
            config = recipe.resolve(config, chosen, len(data.train))
            with runs.seeded(config.seed):
                encoder = pretrained or fresh(config, channels)
                if pretrained is None or channels != encoder.channels:
                    encoder.adapt(channels, found.mean, found.std)
                model = build(config, encoder, data.classes)
            world.on_main(lambda: runs.write_config(out, "finetune", asdict(config), identity, model.config()))
        return train(config, data, model, out, world, chosen, quiet)


def last_scores(run: Path) -> dict[str, Any]:
    """What a finished classifier's last weights reach on its validation images."""
    return json.loads((run / "results.json").read_text())["validation"]["last"]


def forget(out: Path) -> None:
    """Removes what an earlier start of other settings, which reached no checkpoint, may have measured."""
    for name in MEASURED:
        (out / name).unlink(missing_ok=True)


def default_out(config: Finetune) -> Path:
    """Where a classifier goes: beside its run, each kind of training in a folder of its own."""
    if config.run == "none":
        return Path("runs") / f"{settings.name_of(config.data)}-scratch"
    kind = {"all": "finetune", "head": "probe"}.get(config.train, f"last-{config.train}")
    return Path(f"{config.run.rstrip('/')}-{kind}")


def channels_of(config: Finetune, data: LabelledSets, pretrained: ViT | None) -> int:
    """How many channels the classifier takes; `UserError` with the ways out where run and data do not agree."""
    have = data.train.channels
    want = config.channels or have
    if want != have and {want, have} != {1, 3}:
        raise UserError(f"--channels {want}: {config.data} has {have}, and only grey and colour convert to each other")
    if pretrained is not None and config.channels is None and have != pretrained.channels:
        n = pretrained.channels
        convert = f"--channels {n} converts the images; " if {n, have} == {1, 3} else ""
        raise UserError(
            f"{config.run} takes {n} channel{'s' * (n > 1)}, {config.data} has {have}: {convert}--channels {have} adapts the "
            f"run's patch weights; mae pretrain DATA --from {config.run} does so and trains on; or begin with run none"
        )
    return want


def fresh(config: Finetune, channels: int) -> ViT:
    """An untrained encoder of the size that --model names, or with the architecture of the run folder that it names."""
    size = {
        "image_size": settings.parse_size(config.image_size or 0),
        "patch_size": config.patch_size,
        "channels": channels,
    }
    return build_encoder({**recipe.architecture(config.model), **size, "mean": None, "std": None})


def build(config: Finetune, encoder: ViT, classes: tuple[str, ...]) -> Classifier:
    """The classifier at its start, its head drawn from torch's generator."""
    size = settings.parse_size(config.image_size or 0)
    if size != encoder.image_size:
        encoder.resize(size)
    encoder.restore_norm()
    return Classifier(encoder, classes, config.pool or "mean", batch_norm=config.train == "head")


def train(
    config: Finetune,
    data: LabelledSets,
    model: Classifier,
    out: Path,
    world: World,
    chosen: dict[str, Choice],
    quiet: bool = False,
) -> Path:
    """fit() with this task, validation after every epoch, and the words before and after."""
    plan = plan_of(config, len(data.train))
    task = ClassifyTask(model, data.train_labels, config)
    if world.is_main and not quiet:
        moved = sum(p.numel() for p in task.parameters() if p.requires_grad)
        where = f"{world.device.type}, {config.precision}, {world.size} process{'es' * (world.size > 1)}, to {out}"
        counts = (len(data.train), len(data.val))
        print(recipe.describe(config, plan, counts, model, moved, chosen, where), flush=True)
    encoder = model.encoder
    crop = Augment(encoder.image_size, config.seed, config.crop_scale, config.flip)
    augment = StrongAugment(crop, config.magnitude or 0.0, config.erase or 0.0, encoder.mean, encoder.std)
    assert config.batch_size
    batches = Batches(data.train, augment, config.batch_size, encoder.channels, config.seed, world.rank, world.size)
    validation = Validation(model, data, out, world)
    fit(task, batches, plan, out, world, [validation])
    if world.on_main(lambda: validation.step() != plan.steps):  # a kill came between the last save and its validation
        task.eval()
        with torch.no_grad():
            list(validation(plan.steps))
    world.on_main(lambda: draw_curves(out))
    said = world.on_main(lambda: summary(out, plan, len(data.val)))  # writes results.json too
    if world.is_main and not quiet:
        print(said, flush=True)
    return out


def plan_of(config: Finetune, images: int) -> Plan:
    """The steps of a training on so many images."""
    assert config.epochs and config.batch_size and config.base_lr is not None and config.warmup_epochs is not None
    assert config.weight_decay is not None and config.beta2 is not None and config.precision and config.optimizer
    assert config.workers is not None
    steps_per_epoch = images / config.batch_size
    return Plan(
        steps=max(1, round(config.epochs * steps_per_epoch)),
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        lr=peak_lr(config.base_lr, config.batch_size),
        weight_decay=config.weight_decay,
        betas=(0.9, config.beta2),
        clip_grad=config.clip_grad or None,
        precision=config.precision,
        compile=config.compile,
        workers=config.workers,
        micro_batch=config.micro_batch,
        save_minutes=config.save_minutes,
        evaluate_steps=max(1.0, (config.validate_epochs or 1) * steps_per_epoch),
        least_lr=config.min_lr,
        optimizer=config.optimizer,
        layer_decay=config.layer_decay,
        ema=config.ema or None,
    )


class Validation:
    """Evaluator: the scores on the validation images; the best weights so far are kept beside the last.

    The images are decoded once and kept, where they need no more than `IN_MEMORY`: with few labels an epoch takes less time
    than reading them.
    """

    def __init__(self, model: Classifier, data: LabelledSets, out: Path, world: World):
        self.model, self.data, self.out, self.world = model, data, out, world
        self.kept: tuple[list[int], Tensor] | None = None

    def step(self) -> int | None:
        """The step that was validated last."""
        path = self.out / "last.json"
        return json.loads(path.read_text())["step"] if path.exists() else None

    def logits(self) -> tuple[list[int], Float[Tensor, "N classes"]]:
        """Of the validation images that can be read: their numbers and logits."""
        encoder, look = self.model.encoder, logits_of(self.model, self.world.device)
        size = len(self.data.val) * encoder.channels * encoder.image_size[0] * encoder.image_size[1]
        if size > IN_MEMORY:
            ids, (found,), _ = collect(self.data.val, encoder, str(self.out), [look], self.world.device)
            return ids, found
        if self.kept is None:
            ids, (images,), _ = collect(self.data.val, encoder, str(self.out), [lambda x: x], self.world.device)
            self.kept = ids, images
        return self.kept[0], torch.cat([look(images) for images in self.kept[1].split(64)])

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        ids, found = self.logits()
        result = scores(found, self.data.val_labels[ids], self.model.classes)
        if self.world.is_main:
            text = json.dumps({"step": step, **result.summary()}, indent=1)
            checkpoint.write_text(self.out / "last.json", text)
            best = self.out / "best.json"
            if not best.exists() or json.loads(best.read_text())["top1"] < result.top1:
                partial = self.out / ".best.partial"
                save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, partial)
                partial.replace(self.out / "best.safetensors")
                checkpoint.write_text(best, text)
        yield "accuracy", result.top1


def summary(out: Path, plan: Plan, images: int) -> str:
    """What was made and how good it is; the same goes to results.json."""
    best, last = (json.loads((out / f"{name}.json").read_text()) for name in ("best", "last"))
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["validation"] = {"best": best, "last": last}
    checkpoint.write_text(path, json.dumps(results, indent=1))
    mae, flattering = runs.command(), ", which is the best one too"
    if best["step"] != last["step"]:
        flattering = (
            f", best epoch {best['top1']:.1%} (step {best['step']}; chosen on these same images, so it flatters)"
        )
    return "\n".join(
        [
            f"Done: {plan.steps} steps. Accuracy{' of the averaged weights' if plan.ema else ''} on {images} validation "
            "images: "
            f"last epoch {last['top1']:.1%} (95 % interval {last['low']:.1%} to {last['high']:.1%}){flattering}",
            f"Made:\n  {out / 'model.safetensors'}  the last weights",
            f"  {out / 'best.safetensors'}  the best epoch's (--best in the commands below)",
            f"  {out / 'curves.png'}, {path}  how it went",
            f"Next:\n  {mae} evaluate {out} LABELLED  each class, calibration, confusion",
            f"  {mae} predict {out} FOLDER --out predictions.csv",
        ]
    )
