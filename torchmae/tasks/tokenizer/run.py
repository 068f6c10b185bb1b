"""`mae tokenizer`: any folder of images to a run folder with a discrete VAE, for the target
`tokens:RUN` of `mae pretrain`."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from torchmae import runfolder
from torchmae.data.cache.choose import with_cache
from torchmae.data.config import DecodeOptions, decode_as_run, listing_as_run
from torchmae.data.loader import Batches
from torchmae.data.scan import scan_and_report
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.source import Source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import UserError
from torchmae.models.targets.tokenizer import Tokenizer, TokenizerConfig
from torchmae.models.weights import seeded
from torchmae.report.curves import draw_curves
from torchmae.report.html.run import Page, write_report
from torchmae.settings.defaults import Facts, why
from torchmae.settings.options import build, changed, flatten, parse_size
from torchmae.tasks.tokenizer.config import ResolvedTokenizer, TrainTokenizer
from torchmae.tasks.tokenizer.evaluation import Evaluation
from torchmae.tasks.tokenizer.job import Job
from torchmae.tasks.tokenizer.plan import describe, summary, train_config
from torchmae.train.distributed import World, machine_facts, start
from torchmae.train.loop import finished_line, fit
from torchmae.train.resuming import resume, run_folder
from torchmae.train.speed import is_timed, measure_seconds_per_step, measured_facts

logger = logging.getLogger(__name__)


def run(config: TrainTokenizer) -> Path:
    """Trains a tokenizer, or resumes its training.

    Returns:
        The run folder.
    """
    config.check()
    data = config.source.data
    if runfolder.is_run(Path(data)):
        raise UserError(f"{data} is a run folder, not images")
    out = Path(config.output.out or Path("runs") / f"{runfolder.name_of(data)}-tokenizer")
    with start(config.runtime.device) as world:
        listing = listing_as_run(config.listing, data, out, bool(runfolder.checkpoints(out)))
        config = changed(config, **listing.settings(config.listing))
        source = open_source(data, decode_options(config), listing)
        with run_folder(out, data, world) as resuming:
            prepare = resumed if resuming else begun
            return train(prepare(config, source, out, world), out, world)


def decode_options(config: TrainTokenizer) -> DecodeOptions:
    """How the images are decoded."""
    asked = config.decode
    known = decode_as_run("none", asked)
    return replace(known, channels=asked.channels, dtype=asked.dtype)


def described(model: Tokenizer) -> dict[str, Any]:
    """What config.json says of the model."""
    return {"tokenizer": asdict(model.config)}


def resumed(config: TrainTokenizer, source: Source, out: Path, world: World) -> Job:
    """The job that the run folder holds; settings of the runtime are those of this call."""
    identity = runfolder.stamped_identity(source)
    # How soft its choices are follows a schedule over all steps: it cannot be lengthened.
    settings, about = resume(config, "tokenizer", identity, None, out, world)
    resolved = build(ResolvedTokenizer, settings)
    model = Tokenizer.build(about["tokenizer"])
    batches = make_batches(resolved, source, world)
    return Job(resolved, batches, model, None, {}, batches)


def begun(config: TrainTokenizer, source: Source, out: Path, world: World) -> Job:
    """A new job: the data scanned, everything chosen, the model built, config.json written."""
    percent, scale = config.scan.max_bad_percent, config.model.scale
    found = world.on_main(lambda: scan_and_report(source, out, percent, scale))
    facts = Facts(
        images=found.images,
        height=found.height,
        width=found.width,
        channels=source.channels,
        dtype=source.dtype,
        **machine_facts(world),
    )
    resolved, chosen = config.resolve(facts)
    size, mean, std = parse_size(resolved.model.image_size), found.mean, found.std
    about = resolved.model
    with seeded(resolved.optim.seed):
        sizes, floats = (about.patch_size, about.vocabulary, size), found.scaling is not None
        scaling = found.scaling.config() if found.scaling else None
        model = Tokenizer(TokenizerConfig(*sizes, mean, std, floats, scaling))
    batches = make_batches(resolved, source, world)
    job = Job(resolved, batches, model, found, chosen, batches)
    plan = train_config(resolved, found.images)
    task, asked = job.task(plan.steps), (config.optim.minutes, config.runtime.compile)
    if is_timed(plan.steps, *asked):
        job = with_stream(job, world)
        if job.cache.name in ("memory", "disk"):  # the first time everything is decoded
            measure_seconds_per_step(task, job.stream, plan, world)
        known = measured_facts(task, job.stream, plan, world, *asked)
        resolved, chosen = config.resolve(replace(facts, **known))
        job = replace(job, config=resolved, chosen=chosen)
    settings, identity = flatten(resolved), runfolder.stamped_identity(source)
    world.on_main(
        lambda: runfolder.write_config(
            out, "tokenizer", settings, identity, described(model), why(chosen)
        )
    )
    return job


def make_batches(config: ResolvedTokenizer, source: Source, world: World) -> Batches:
    """The batches of this process."""
    optim, crops = config.optim, config.crop
    size = parse_size(config.model.image_size)
    crop = RandomResizedCropFlip(size, optim.seed, crops.crop_scale, crops.flip)
    source = with_decode(source, decode_options(config))
    return Batches(source, crop, optim.batch_size, optim.seed, world.rank, world.size)


def with_stream(job: Job, world: World) -> Job:
    """The job as it computes: with its cache, and with gradient checkpointing."""
    runtime, sizes = job.config.runtime, job.found.sizes if job.found else None
    job.model.set_grad_checkpointing(runtime.grad_checkpointing)
    cache, stream = with_cache(
        job.batches, runtime.cache, job.config.source.data, world, runtime.workers, sizes
    )
    return replace(job, cache=cache, stream=stream)


def train(job: Job, out: Path, world: World) -> Path:
    """Says the plan, trains by `fit` with evaluations, says what was made."""
    plan = train_config(job.config, len(job.batches.source))
    if runfolder.last_step(out) < plan.steps and job.stream is job.batches:
        job = with_stream(job, world)
    if world.is_main:
        where = f"{world.size} process{'es' * (world.size > 1)}, to {out}"
        logger.info(describe(job, plan, where))
    task, evaluation = job.task(plan.steps), Evaluation(job.model, job.batches, out, world)
    outcome = fit(
        task, job.stream, plan, out, world, [evaluation, *([Page(out)] if world.is_main else [])]
    )
    if not evaluation.found:  # it was finished before
        task.eval()
        with torch.no_grad():
            list(evaluation(plan.steps))
    if world.is_main:
        draw_curves(out)
        write_report(out)
        if outcome.last is None:
            logger.info(finished_line(plan, out, ""))
        logger.info(summary(job.config, evaluation.found, plan, out))
    return out
