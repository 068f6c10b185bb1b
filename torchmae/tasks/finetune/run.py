"""`mae finetune`: a classifier from a run and a few labels; one task whose `train` says what may
change."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchmae import manifest, runfolder
from torchmae.data.augment import StrongAugment
from torchmae.data.cache.choose import with_cache
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.config import DecodeOptions, Listing, decode_as_run, listing_as_run
from torchmae.data.labels import LabelledSets, labelled_sets, tuning_sets
from torchmae.data.loader import Batches, Paired
from torchmae.data.scan import scan_and_report
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.source import Source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.models.beside import described_beside
from torchmae.models.heads import Classifier, blocks_of
from torchmae.models.sizes import architecture
from torchmae.models.weights import load, load_mae, seeded
from torchmae.report.curves import draw_curves
from torchmae.report.html.run import Page, write_report
from torchmae.scaling import scale_again
from torchmae.settings.defaults import Facts, why
from torchmae.settings.options import build, changed, flatten, requested
from torchmae.tasks.finetune.config import (
    Finetune,
    ResolvedFinetune,
    check,
    resolve,
)
from torchmae.tasks.finetune.job import Job
from torchmae.tasks.finetune.plan import describe, summary, train_config
from torchmae.tasks.finetune.start import build_classifier, channels_of, untrained
from torchmae.tasks.finetune.task import ClassifyTask
from torchmae.tasks.finetune.validation import Validation
from torchmae.train.checkpoint import MEASURED
from torchmae.train.distributed import World, machine_facts, start
from torchmae.train.loop import fit
from torchmae.train.resuming import resume, run_folder
from torchmae.train.speed import is_timed, measure_seconds_per_step, measured_facts

logger = logging.getLogger(__name__)


def run(config: Finetune, quiet: bool = False) -> Path:
    """Trains a classifier, or resumes its training.

    Args:
        config: its settings.
        quiet: without plan and summary, for verbs that run several.

    Returns:
        The run folder.
    """
    if config.model.train in ("0", "0.0"):
        config = changed(config, train="head")
    check(config)
    out = Path(config.output.out or default_out(config))
    listing = listing_of(config, out)
    config = changed(config, **listing.settings(config.listing))
    if config.run != "none" and not runfolder.checkpoints(out):
        # An encoder of another kind need not have this name; its task checks it later.
        depth = runfolder.read_config(config.run)["model"]["encoder"].get("depth")
        if depth is not None:
            blocks_of(config.model.train, depth)
    with start(config.runtime.device) as world:
        data = open_sets(config, out, listing)
        with run_folder(out, config.source.data, world) as resuming:
            prepare = resumed if resuming else begun
            return train(prepare(config, data, out, world), out, world, quiet)


def listing_of(config: Finetune, out: Path) -> Listing:
    """Which images are taken: those of the fine-tuning that is resumed, or of the run."""
    resuming = bool(runfolder.checkpoints(out))
    run = str(out) if resuming else config.run
    return listing_as_run(config.listing, config.source.data, run, resuming)


def open_sets(config: Finetune, out: Path, listing: Listing) -> LabelledSets:
    """The labelled images, decoded as the run's were unless told otherwise.

    A fine-tuning that is resumed knows by itself; the run may be gone.
    """
    run = str(out) if runfolder.checkpoints(out) else config.run
    source, split, seed = config.source, config.split, config.optim.seed
    which = (source.data, source.val, split.val_fraction, split.labels_per_class, seed)
    if split.avoid_seeds:
        sets = tuning_sets(*which, split.avoid_seeds, listing)
    else:
        sets = labelled_sets(*which, listing=listing)
    decode = config.decode
    return sets.with_decode(decode_as_run(run, decode))


def open_unlabelled(config: Finetune, data: LabelledSets) -> Source | None:
    """The images of --unlabelled, decoded as the labelled ones."""
    named = config.regularization.unlabelled
    return None if named is None else open_source(named, data.train.decode)


def identity_of(data: LabelledSets, unlabelled: Source | None = None) -> dict[str, Any]:
    """What the images are recognised by: files and labels."""
    labels = repr((data.classes, data.train_labels.tolist(), data.val_labels.tolist()))
    return {
        **runfolder.stamped_identity(data.train),
        "val": runfolder.stamped_identity(data.val),
        "labels": hashlib.sha256(labels.encode()).hexdigest(),
        **({"unlabelled": runfolder.stamped_identity(unlabelled)} if unlabelled else {}),
    }


def default_out(config: Finetune) -> Path:
    """Where a classifier goes: beside its run, each kind of training in a folder of its own."""
    if config.run == "none":
        return Path("runs") / f"{runfolder.name_of(config.source.data)}-scratch"
    train = config.model.train
    kind = {"all": "finetune", "head": "probe"}.get(train, f"last-{train}")
    return Path(f"{config.run.rstrip('/')}-{kind}")


def resumed(config: Finetune, data: LabelledSets, out: Path, world: World) -> Job:
    """The job that the run folder holds; settings of the runtime are those of this call."""
    stored = runfolder.stored_settings(out, "finetune")
    # Which images the seeds leave is compared by the images themselves.
    config = changed(config, avoid_seeds=stored.get("avoid_seeds", ()))
    before = build(ResolvedFinetune, {**requested(config), **stored})
    plan = train_config(before, len(data.train))
    config = changed(config, unlabelled=before.regularization.unlabelled)
    others = open_unlabelled(config, data.with_decode(decode_options(before)))
    identity = identity_of(data, others)
    settings, described = resume(config, "finetune", identity, plan, out, world)
    resolved = build(ResolvedFinetune, settings)
    data = data.with_decode(decode_options(resolved))
    model = Classifier.build(described)
    batches = make_batches(resolved, data, model, world)
    return Job(resolved, data, model, {}, batches, batches, unlabelled=others)


def decode_options(config: ResolvedFinetune) -> DecodeOptions:
    """How the images of a fine-tuning are decoded."""
    return replace(decode_as_run("none", config.decode), channels=config.decode.channels)


def begun(config: Finetune, data: LabelledSets, out: Path, world: World) -> Job:
    """A new job: the data scanned, everything chosen, the classifier built, config.json written."""
    world.on_main(lambda: forget(out))
    mae = load_mae(config.run) if config.regularization.mae_weight else None
    pretrained = None if config.run == "none" else load(config.run)
    channels = channels_of(config, data, pretrained)
    decode = replace(data.train.decode, channels=channels, dtype=data.train.dtype)
    config = changed(config, channels=channels, **decode.stored())
    data = data.with_decode(decode)
    others = open_unlabelled(config, data)
    like = architecture(config.model.model)
    before = like.get("scaling") if pretrained is None else pretrained.scaling
    scale = scale_again(before, channels, data.train.dtype)
    found = world.on_main(
        lambda: scan_and_report(with_decode(data.train, decode), out, scale=scale)
    )
    known = like.get("image_size")
    if pretrained is not None:
        known = pretrained.image_size
    facts = Facts(
        images=len(data.train),
        val_images=len(data.val),
        height=found.height,
        width=found.width,
        channels=channels,
        grey=found.grey,
        run_size=known,
        **machine_facts(world),
    )
    resolved, chosen = resolve(config, facts)
    with seeded(resolved.optim.seed):
        encoder = pretrained or untrained(resolved)
        floats = found.scaling is not None
        if pretrained is None or (channels, floats) != (encoder.channels, bool(encoder.scaling)):
            encoder.adapt(channels, found.mean, found.std, *([found.scaling] if floats else []))
        model = build_classifier(resolved, encoder, data.classes)
        if mae is not None:
            masked = runfolder.read_config(config.run)["config"]
            model.add_beside(described_beside(mae, encoder, masked)).take(mae)
    batches = make_batches(resolved, data, model, world)
    job = Job(resolved, data, model, chosen, batches, batches, found, unlabelled=others)
    plan, task = train_config(resolved, len(data.train)), ClassifyTask(model, resolved)
    asked = (config.optim.minutes, config.runtime.compile)
    if is_timed(plan.steps, *asked):
        job = with_stream(job, world)
        if job.cache.name in ("memory", "disk"):  # the first time everything is decoded
            measure_seconds_per_step(task, job.stream, plan, world)
        known = measured_facts(task, job.stream, plan, world, *asked)
        resolved, chosen = resolve(config, replace(facts, **known))
        job = replace(job, config=resolved, chosen=chosen)
    settings, identity = flatten(resolved), identity_of(data, others)
    world.on_main(
        lambda: runfolder.write_config(
            out, "finetune", settings, identity, model.config(), why(chosen)
        )
    )
    return job


def forget(out: Path) -> None:
    """Removes what an earlier start of other settings, which reached no checkpoint, may have
    measured."""
    manifest.forget(out, MEASURED)


def make_batches(
    config: ResolvedFinetune, data: LabelledSets, model: Classifier, world: World
) -> Batches:
    """The augmented training images of this process, with their labels."""
    encoder, seed, strong = model.encoder, config.optim.seed, config.regularization
    size, crops = encoder.image_size, config.crop
    crop = RandomResizedCropFlip(size, seed, crops.crop_scale, crops.flip, crops.clamp_crops)
    augment = StrongAugment(
        crop, strong.randaug_magnitude, strong.random_erasing, encoder.mean, encoder.std
    )
    batch_size, labels = config.optim.batch_size, data.train_labels
    return Batches(data.train, augment, batch_size, seed, world.rank, world.size, labels)


def with_stream(job: Job, world: World) -> Job:
    """The job as it computes: with its cache, and with gradient checkpointing."""
    runtime, data = job.config.runtime, job.config.source.data
    job.model.encoder.set_grad_checkpointing(runtime.grad_checkpointing)
    stream: Batches | DeviceLoader | Paired
    cache, stream = with_cache(job.batches, runtime.cache, data, world, runtime.workers)
    if job.unlabelled is not None:
        assert isinstance(stream, Batches)  # --cache device is refused
        stream = Paired(stream, others_of(job, job.unlabelled))
    return replace(job, cache=cache, stream=stream)


def others_of(job: Job, source: Source) -> Batches:
    """The images without labels of this process, cropped as in pre-training."""
    strong = job.batches.transform
    assert isinstance(strong, StrongAugment)
    crop = replace(strong.crop, scale=(0.2, 1.0), clamp=False)
    return replace(job.batches, source=source, transform=crop, targets=None)


def train(job: Job, out: Path, world: World, quiet: bool) -> Path:
    """Says the plan, trains by `fit` with validation after every epoch, says what was made."""
    config, data = job.config, job.data
    plan = train_config(config, len(data.train))
    if runfolder.last_step(out) < plan.steps and job.stream is job.batches:
        job = with_stream(job, world)
    task = ClassifyTask(job.model, config)
    if world.is_main and not quiet:
        where = f"{world.size} process{'es' * (world.size > 1)}, to {out}"
        logger.info(describe(job, task, plan, where))
    validation = Validation(job.model, data, out, world)
    fit(task, job.stream, plan, out, world, [validation, *([Page(out)] if world.is_main else [])])
    # A kill may have come between the last save and its validation.
    if world.on_main(lambda: validation.step() != plan.steps):
        task.eval()
        with torch.no_grad():
            list(validation(plan.steps))
    world.on_main(lambda: draw_curves(out))
    text = world.on_main(lambda: summary(out, plan, data.val_labels))  # writes results.json too
    if not quiet:
        world.on_main(lambda: validation.details(plan.steps))
    world.on_main(lambda: write_report(out))
    if world.is_main and not quiet:
        logger.info(text)
    return out
