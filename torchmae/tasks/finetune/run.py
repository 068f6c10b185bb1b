"""`mae finetune`: a classifier from a run and a few labels; one task whose `train` says what may change."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from torchmae import runfolder as runs
from torchmae.data.augment import StrongAugment
from torchmae.data.labels import LabelledSets, labelled_sets
from torchmae.data.loader import Batches
from torchmae.data.scan import scan_and_report
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.disk import write_text
from torchmae.errors import UserError
from torchmae.eval.classification import scores
from torchmae.eval.extract import collect, logits_of
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.heads import Classifier, blocks_of
from torchmae.models.weights import load, seeded
from torchmae.options import parse_size, size_text
from torchmae.report.curves import draw_curves
from torchmae.runfolder import checkpoints, name_of, prepare, read_config, resume, write_config
from torchmae.tasks.finetune.config import (
    FREE,
    Choice,
    architecture,
    check,
    choices,
    describe,
    resolve,
)
from torchmae.tasks.finetune.config import Finetune as Finetune
from torchmae.tasks.finetune.task import ClassifyTask
from torchmae.tasks.pretrain.config import asked, side_of
from torchmae.train.checkpoint import lock
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World, start
from torchmae.train.loop import fit
from torchmae.train.optim import peak_lr
from torchmae.version import command

logger = logging.getLogger(__name__)

MEASURED = ("best.json", "best.safetensors", "last.json", "results.json")


IN_MEMORY = 1 << 30  # bytes of validation pixels that are kept from one epoch to the next


def run(config: Finetune, quiet: bool = False) -> Path:
    """Trains a classifier, or goes on training it, and gives its run folder; `quiet` leaves out plan and summary."""
    config = replace(config, train="head") if config.train in ("0", "0.0") else config
    check(config)
    out = Path(config.out or default_out(config))
    if config.run != "none" and not checkpoints(out):
        blocks_of(config.train, read_config(config.run)["model"]["encoder"]["depth"])
    with start(config.device) as world, ExitStack() as stack:
        data = labelled_sets(
            config.data, config.val, config.val_fraction, config.labels_per_class, config.seed
        )
        goes_on = prepare(out, config.data, world)
        world.on_main(lambda: stack.enter_context(lock(out)))
        labels = repr((data.classes, data.train_labels.tolist(), data.val_labels.tolist()))
        identity = runs.identity(data.train) | {"val": runs.identity(data.val)}
        identity["labels"] = hashlib.sha256(labels.encode()).hexdigest()
        chosen: dict[str, Choice] = {}
        if goes_on:
            merged, described = resume(out, "finetune", asked(config), FREE, identity)
            config, model = Finetune(**merged), Classifier.build(described)
        else:
            world.on_main(lambda: forget(out))
            pretrained = None if config.run == "none" else load(config.run)
            channels = channels_of(config, data, pretrained)
            found = world.on_main(lambda: scan_and_report(data.train, channels, out))
            known = (
                pretrained.image_size
                if pretrained
                else architecture(config.model).get("image_size")
            )
            default_size = size_text(known) if known else side_of(found)
            size = parse_size(config.image_size or default_size)
            chosen = choices(config, len(data.train), len(data.val), size, world)
            config = resolve(config, chosen, len(data.train))
            with seeded(config.seed):
                encoder = pretrained or fresh(config, channels)
                if pretrained is None or channels != encoder.channels:
                    encoder.adapt(channels, found.mean, found.std)
                model = build(config, encoder, data.classes)
            world.on_main(
                lambda: write_config(out, "finetune", asdict(config), identity, model.config())
            )
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
        return Path("runs") / f"{name_of(config.data)}-scratch"
    kind = {"all": "finetune", "head": "probe"}.get(config.train, f"last-{config.train}")
    return Path(f"{config.run.rstrip('/')}-{kind}")


def channels_of(config: Finetune, data: LabelledSets, pretrained: Backbone | None) -> int:
    """How many channels the classifier takes; `UserError` with the ways out where run and data do not agree."""
    have = data.train.channels
    want = config.channels or have
    if want != have and {want, have} != {1, 3}:
        raise UserError(
            f"--channels {want}: {config.data} has {have}, and only grey and colour convert to each other"
        )
    if pretrained is not None and config.channels is None and have != pretrained.channels:
        n = pretrained.channels
        convert = f"--channels {n} converts the images; " if {n, have} == {1, 3} else ""
        raise UserError(
            f"{config.run} takes {n} channel{'s' * (n > 1)}, {config.data} has {have}: {convert}--channels {have} adapts the "
            f"run's patch weights; mae pretrain DATA --from {config.run} does so and trains on; or begin with run none"
        )
    return want


def fresh(config: Finetune, channels: int) -> Backbone:
    """An untrained encoder of the size that --model names, or with the architecture of the run folder that it names."""
    size = {
        "image_size": parse_size(config.image_size or 0),
        "patch_size": config.patch_size,
        "channels": channels,
    }
    return build_encoder({**architecture(config.model), **size, "mean": None, "std": None})


def build(config: Finetune, encoder: Backbone, classes: tuple[str, ...]) -> Classifier:
    """The classifier at its start, its head drawn from torch's generator."""
    size = parse_size(config.image_size or 0)
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
        logger.info(describe(config, plan, counts, model, moved, chosen, where))
    encoder = model.encoder
    crop = RandomResizedCropFlip(encoder.image_size, config.seed, config.crop_scale, config.flip)
    augment = StrongAugment(
        crop,
        config.randaug_magnitude or 0.0,
        config.random_erasing or 0.0,
        encoder.mean,
        encoder.std,
    )
    assert config.batch_size
    batches = Batches(
        data.train,
        augment,
        config.batch_size,
        encoder.channels,
        config.seed,
        world.rank,
        world.size,
    )
    validation = Validation(model, data, out, world)
    fit(task, batches, plan, out, world, [validation])
    if world.on_main(
        lambda: validation.step() != plan.steps
    ):  # a kill came between the last save and its validation
        task.eval()
        with torch.no_grad():
            list(validation(plan.steps))
    world.on_main(lambda: draw_curves(out))
    said = world.on_main(lambda: summary(out, plan, len(data.val)))  # writes results.json too
    if world.is_main and not quiet:
        logger.info(said)
    return out


def plan_of(config: Finetune, images: int) -> TrainConfig:
    """The steps of a training on so many images."""
    assert (
        config.epochs
        and config.batch_size
        and config.base_lr is not None
        and config.warmup_epochs is not None
    )
    assert (
        config.weight_decay is not None
        and config.beta2 is not None
        and config.precision
        and config.optimizer
    )
    assert config.workers is not None
    steps_per_epoch = images / config.batch_size
    return TrainConfig(
        steps=max(1, round(config.epochs * steps_per_epoch)),
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        lr=peak_lr(config.base_lr, config.batch_size),
        weight_decay=config.weight_decay,
        betas=(0.9, config.beta2),
        clip_grad=config.clip_grad or None,
        precision=config.precision,
        compile=config.compile,
        workers=config.workers,
        micro_batch_size=config.micro_batch_size,
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
            ids, (found,), _ = collect(
                self.data.val, encoder, str(self.out), [look], self.world.device
            )
            return ids, found
        if self.kept is None:
            ids, (images,), _ = collect(
                self.data.val, encoder, str(self.out), [lambda x: x], self.world.device
            )
            self.kept = ids, images
        return self.kept[0], torch.cat([look(images) for images in self.kept[1].split(64)])

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        ids, found = self.logits()
        result = scores(found, self.data.val_labels[ids], self.model.classes)
        if self.world.is_main:
            text = json.dumps({"step": step, **result.summary()}, indent=1)
            write_text(self.out / "last.json", text)
            best = self.out / "best.json"
            if not best.exists() or json.loads(best.read_text())["top1"] < result.top1:
                partial = self.out / ".best.partial"
                save_file(
                    {name: value.contiguous() for name, value in self.model.state_dict().items()},
                    partial,
                )
                partial.replace(self.out / "best.safetensors")
                write_text(best, text)
        yield "accuracy", result.top1


def summary(out: Path, plan: TrainConfig, images: int) -> str:
    """What was made and how good it is; the same goes to results.json."""
    best, last = (json.loads((out / f"{name}.json").read_text()) for name in ("best", "last"))
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["validation"] = {"best": best, "last": last}
    write_text(path, json.dumps(results, indent=1))
    mae, flattering = command(), ", which is the best one too"
    if best["step"] != last["step"]:
        flattering = f", best epoch {best['top1']:.1%} (step {best['step']}; chosen on these same images, so it flatters)"
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
