"""`mae pretrain`: any folder of images to a run folder with an encoder, pictures and curves."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from torchmae import runfolder
from torchmae.data.augment import ColorJitter
from torchmae.data.cache.choose import with_cache
from torchmae.data.config import DecodeOptions, decode_as_run, listing_as_run
from torchmae.data.labels import LabelledSets
from torchmae.data.loader import Batches, Transform
from torchmae.data.scan import Scan, scan_and_report
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.source import Source
from torchmae.data.transforms import (
    ASPECTS,
    CenterCropResize,
    FixedCropFlip,
    RandomResizedCropFlip,
    WindowCrop,
)
from torchmae.errors import UserError
from torchmae.models.mae import MAE, training_flops
from torchmae.models.masking import MaskGenerator
from torchmae.models.patches import grid_of
from torchmae.report.curves import draw_curves
from torchmae.report.html.run import Page, write_report
from torchmae.settings.defaults import Facts, why
from torchmae.settings.options import build, changed, flatten, parse_size, requested
from torchmae.tasks.pretrain.config import (
    Pretrain,
    PretrainDecodeOptions,
    ResolvedPretrain,
)
from torchmae.tasks.pretrain.features import Features, open_labelled
from torchmae.tasks.pretrain.job import Job
from torchmae.tasks.pretrain.pictures import Pictures
from torchmae.tasks.pretrain.plan import describe, summary, train_config
from torchmae.tasks.pretrain.start import (
    InitRun,
    build_model,
    check_names,
    described_target,
    fit_target,
    init_from_run,
)
from torchmae.train.config import Evaluator
from torchmae.train.distributed import World, machine_facts, start
from torchmae.train.loop import fit
from torchmae.train.resuming import resume, run_folder
from torchmae.train.speed import is_timed, measure_seconds_per_step, measured_facts

logger = logging.getLogger(__name__)


def run(config: Pretrain, quiet: bool = False) -> Path:
    """Pre-trains, or resumes a pre-training.

    Args:
        config: its settings.
        quiet: without plan and summary, for verbs that run several.

    Returns:
        The run folder.
    """
    config.check()
    check_names(config)
    data = config.source.data
    with start(config.runtime.device) as world:
        out = Path(config.output.out or Path("runs") / runfolder.name_of(data))
        refuse_runs(config, out)
        config, source, sets = open_data(config, out)
        with run_folder(out, data, world) as resuming:
            prepare = resumed if resuming else begun
            return train(prepare(config, source, out, world), sets, out, world, quiet)


def open_data(config: Pretrain, out: Path) -> tuple[Pretrain, Source, LabelledSets | None]:
    """The images, those of --labelled, and the settings with which of them are taken: those of the
    run that is resumed, or of --from, unless told otherwise."""
    resuming = bool(runfolder.checkpoints(out))
    run = str(out) if resuming else config.model.from_run or "none"
    listing = listing_as_run(config.listing, config.source.data, run, resuming)
    decode = decode_options(config.model.from_run, config.decode)
    source = open_source(config.source.data, decode, listing)
    labels = config.output.labelled
    if resuming and labels is None:
        labels = runfolder.stored_settings(out).get("labelled")
    sets = open_labelled(labels, config.source.data, config.optim.seed, decode, listing)
    return changed(config, **listing.settings(config.listing), labelled=labels), source, sets


def decode_options(parent: str | None, requested: PretrainDecodeOptions) -> DecodeOptions:
    """How the images are decoded: what was not requested is as in the run of --from, which may be
    gone when a run is resumed."""
    known = parent if parent is not None and runfolder.is_run(Path(parent)) else "none"
    decode = decode_as_run(known, requested)
    return replace(decode, channels=requested.channels, dtype=requested.dtype)


def refuse_runs(config: Pretrain, out: Path) -> None:
    """Raises UserError where a run folder is given as data, or would be overwritten by its own
    successor."""
    data, parent = config.source.data, config.model.from_run
    if runfolder.is_run(Path(data)):
        raise UserError(
            f"{data} is a run folder, not images (to start from its weights: --from {data})"
        )
    if parent is not None and out.resolve() == Path(parent).resolve():
        raise UserError(
            f"the run folder {out} is that of --from, which stays as it is: name a new one with "
            "--out"
        )


def resumed(config: Pretrain, source: Source, out: Path, world: World) -> Job:
    """The job that the run folder holds; settings of the runtime are those of this call."""
    stored = runfolder.stored_settings(out, "pretrain")
    plan = train_config(build(ResolvedPretrain, {**requested(config), **stored}), len(source))
    identity = runfolder.stamped_identity(source)
    settings, described = resume(config, "pretrain", identity, plan, out, world)
    resolved = build(ResolvedPretrain, settings)
    source = with_decode(source, decode_options(None, resolved.decode))
    batches = make_batches(resolved, source, world)
    origin = resolved.model.from_run or "from scratch"
    return Job(resolved, batches, MAE.build(described), origin, None, {}, batches)


def begun(config: Pretrain, source: Source, out: Path, world: World) -> Job:
    """A new job: the data scanned, everything chosen, the model built, config.json written."""
    described_target(config.masking.target)  # its run is there, or nothing is scanned
    config, init_run = init_from_run(config, source.channels, source.dtype)
    percent, scale = config.scan.max_bad_percent, config.model.scale
    found = world.on_main(lambda: scan_and_report(source, out, percent, scale))
    facts = facts_of(found, source, world, init_run)
    job = new_job(config, facts, source, found, world, init_run)
    resolved, chosen = job.config, job.chosen
    plan = train_config(resolved, found.images)
    asked = (config.optim.minutes, config.runtime.compile)
    if is_timed(plan.steps, *asked):
        job = with_stream(job, world)
        if job.cache.name in ("memory", "disk"):  # the first time everything is decoded
            measure_seconds_per_step(job.task(), job.stream, plan, world)
        known = measured_facts(job.task(), job.stream, plan, world, *asked)
        resolved, chosen = config.resolve(replace(facts, **known))
        job = replace(job, config=resolved, chosen=chosen)
    identity = runfolder.stamped_identity(source)
    model = job.model
    world.on_main(  # all that can be wrong with the settings is known by now
        lambda: runfolder.write_config(
            out, "pretrain", flatten(resolved), identity, model.config(), why(chosen)
        )
    )
    return job


def facts_of(found: Scan, source: Source, world: World, init_run: InitRun | None = None) -> Facts:
    """What the rules may depend on before anything is measured."""
    return Facts(
        images=found.images,
        height=found.height,
        width=found.width,
        channels=source.channels,
        dtype=source.dtype,
        aspects=aspects_of(found.sizes),
        embed_dim=init_run.encoder.embed_dim if init_run else None,
        **machine_facts(world),
    )


def aspects_of(sizes: Integer[np.ndarray, "N 2"]) -> tuple[float, ...]:
    """Height over width of images at 16 quantiles; 1 where no size is known."""
    good = sizes[sizes[:, 0] > 0]
    ratios = good[:, 0] / good[:, 1] if len(good) else np.ones(1)
    return tuple(np.quantile(ratios, (np.arange(16) + 0.5) / 16).round(4).tolist())


def new_job(
    config: Pretrain,
    facts: Facts,
    source: Source,
    found: Scan,
    world: World,
    init_run: InitRun | None = None,
) -> Job:
    """A job before its first step, without a cache; its target is fitted. It writes nothing."""
    resolved, chosen = config.resolve(facts)
    model, origin = build_model(resolved, found, init_run)
    for size in map(parse_size, resolved.crop.shapes or (resolved.model.image_size,)):
        for masks in MaskGenerator.of(vars(resolved.masking)).each():
            masks.counts(grid_of(size, model.encoder.patch))
    batches = make_batches(resolved, source, world)
    fit_target(model, batches, world)
    return Job(resolved, batches, model, origin, found, chosen, batches)


def make_batches(config: ResolvedPretrain, source: Source, world: World) -> Batches:
    """The batches of this process."""
    # A batch counts each mask of a crop, and a crop is read once.
    batch_size, seed = config.optim.batch_size // config.masking.views, config.optim.seed
    shapes = tuple(parse_size(shape) for shape in config.crop.shapes or ())
    crop = augmentation(config)
    return Batches(source, crop, batch_size, seed, world.rank, world.size, shapes=shapes)


def augmentation(config: ResolvedPretrain) -> Transform:
    """What happens to the pixels of an image before it is in a batch."""
    size, seed, asked = parse_size(config.model.image_size), config.optim.seed, config.crop
    crop: WindowCrop = CenterCropResize(size)
    if asked.crop_scale is not None:
        aspects = (1.0, 1.0) if asked.aspect == "keep" else ASPECTS
        crop = RandomResizedCropFlip(size, seed, asked.crop_scale, asked.flip, aspects=aspects)
    elif asked.crop == "fixed":
        crop = FixedCropFlip(size, seed, asked.flip)
    return ColorJitter(crop, asked.color_jitter, seed) if asked.color_jitter else crop


def with_stream(job: Job, world: World) -> Job:
    """The job as it computes: with its cache, and with gradient checkpointing."""
    runtime, sizes = job.config.runtime, job.found.sizes if job.found else None
    job.model.set_grad_checkpointing(runtime.grad_checkpointing)
    cache, stream = with_cache(
        job.batches, runtime.cache, job.config.source.data, world, runtime.workers, sizes
    )
    return replace(job, cache=cache, stream=stream)


def with_features(job: Job, sets: LabelledSets, out: Path, world: World) -> Features:
    """What measures the features; it has done so once where training begins."""
    decoded = sets.with_decode(decode_options(None, job.config.decode))
    features = Features(job.model, decoded, out, world, job.config.runtime.fsdp and world.size > 1)
    if job.found is not None:
        features.first()
    return features


def train(job: Job, sets: LabelledSets | None, out: Path, world: World, quiet: bool) -> Path:
    """Says the plan, trains by `fit`, says what was made; features are measured on `sets`."""
    plan = train_config(job.config, len(job.batches.source))
    work = training_flops(job.model, MaskGenerator.of(vars(job.config.masking)))
    plan = replace(plan, image_flops=work)
    unfinished = runfolder.last_step(out) < plan.steps
    if unfinished and job.stream is job.batches:
        job = with_stream(job, world)
    features = with_features(job, sets, out, world) if sets and unfinished else None
    if world.is_main and not quiet:
        measured = features.describe(str(job.config.output.labelled)) if features else None
        logger.info(describe(job, plan, out, world, measured))
    evaluators: list[Evaluator] = []
    if job.model.target.has_pictures():
        evaluators.append(Pictures(job.model, job.batches, job.config, out, world))
    if features is not None:
        evaluators.append(features)
    if evaluators and world.is_main:
        evaluators.append(Page(out, seconds=0))
    outcome = fit(job.task(), job.stream, plan, out, world, evaluators)
    if world.is_main:
        draw_curves(out)
        write_report(out)
        if not quiet:
            logger.info(summary(job, outcome, plan, out))
    return out
