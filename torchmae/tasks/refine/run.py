"""`mae refine`: a run and images to a run folder with an encoder that finds images alike."""

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from torchmae import runfolder
from torchmae.data.augment import ColorJitter
from torchmae.data.cache.choose import CacheChoice, with_cache
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.loader import Batches, Transform
from torchmae.data.sources import open_source
from torchmae.data.sources.source import Source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import UserError
from torchmae.models.refine import Refined
from torchmae.models.weights import load, seeded
from torchmae.report.curves import draw_curves
from torchmae.report.html.run import write_report
from torchmae.settings.defaults import Choice, Facts, reasons, why
from torchmae.settings.groups import DeviceOptions, LabelledSourceOptions
from torchmae.settings.options import build, changed, flatten
from torchmae.tasks.knn.config import Knn
from torchmae.tasks.knn.run import run as knn
from torchmae.tasks.refine.config import Refine, ResolvedRefine
from torchmae.tasks.refine.task import RefineTask, TwoViews
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World, machine_facts, start
from torchmae.train.loop import finished_line, fit
from torchmae.train.optim import train_config_of
from torchmae.train.resuming import resume, run_folder
from torchmae.train.speed import is_timed, measured_facts
from torchmae.version import command

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A refining that is ready to start or to be resumed."""

    config: ResolvedRefine
    batches: Batches
    model: Refined
    chosen: dict[str, Choice]
    stream: Batches | DeviceLoader
    cache: CacheChoice = CacheChoice("none", "not needed")

    def task(self, world: World) -> RefineTask:
        """What `fit` trains."""
        share = self.config.optim.batch_size // world.size

        def gather(rows: Tensor) -> Tensor:
            whole = rows.new_zeros(world.size * share, rows.shape[1])
            whole[world.rank * share :][:share] = rows
            return world.mean(whole) * world.size

        return RefineTask(self.model, self.blocks, share, gather)

    @property
    def blocks(self) -> int:
        """How many of the last blocks are trained."""
        depth = len(self.model.encoder.layers())
        return self.config.model.blocks or max(1, round(depth / 3))


def run(config: Refine) -> Path:
    """Refines an encoder, or resumes doing so; measures k-NN accuracy before and after.

    Returns:
        The run folder.
    """
    config.check()
    data = config.source.data
    out = Path(config.output.out or f"{config.run.rstrip('/')}-refined")
    with start(config.runtime.device) as world:
        resuming = bool(runfolder.checkpoints(out))
        run = str(out) if resuming else config.run
        listing = listing_as_run(config.listing, data, run, resuming)
        config = changed(config, **listing.settings(config.listing))
        encoder = runfolder.read_config(run)["model"]["encoder"]
        decode = replace(decode_as_run(run, config.decode), channels=encoder.get("channels", 3))
        source = open_source(data, decode, listing)
        with run_folder(out, data, world) as resuming:
            prepare = resumed if resuming else begun
            job = prepare(config, source, out, world)
            train(job, out, world)
        world.on_main(lambda: measure(job.config, out))
        if world.is_main:
            name = shlex.quote(str(out))
            logger.info(f"Made:\n  {out / runfolder.MODEL}  the refined encoder")
            logger.info(f"Next:\n  {command()} knn {name} LABELLED, or any verb that takes a run")
    return out


def train_config(config: ResolvedRefine, images: int) -> TrainConfig:
    """What `fit` is told for a training on so many images."""
    return train_config_of(
        config.optim, config.runtime, config.output, images, weight_decay=0.05, betas=(0.9, 0.95)
    )


def resumed(config: Refine, source: Source, out: Path, world: World) -> Job:
    """The job that the run folder holds; settings of the runtime are those of this call."""
    identity = runfolder.stamped_identity(source)
    settings, described = resume(config, "refine", identity, None, out, world)
    resolved = build(ResolvedRefine, settings)
    model = Refined.build(described)
    batches = make_batches(resolved, model, source, world)
    return Job(resolved, batches, model, {}, batches)


def begun(config: Refine, source: Source, out: Path, world: World) -> Job:
    """A new job: everything chosen, the model built, config.json written."""
    encoder = load(config.run)
    height, width = encoder.image_size
    encoder.restore_norm()
    facts = Facts(
        images=len(source),
        height=height,
        width=width,
        channels=encoder.channels,
        embed_dim=encoder.embed_dim,
        **machine_facts(world),
    )
    kept = {"channels": encoder.channels, "dtype": source.dtype}
    config = changed(config, **{**source.decode.stored(), **kept})
    resolved, chosen = config.resolve(facts)
    depth, blocks = len(encoder.layers()), resolved.model.blocks or 1
    if blocks > depth:
        raise UserError(f"--blocks {blocks}: the encoder of {config.run} has {depth}")
    with seeded(resolved.optim.seed):
        model = Refined(encoder, resolved.model.queue, resolved.model.temperature)
    batches = make_batches(resolved, model, source, world)
    job = Job(resolved, batches, model, chosen, batches)
    plan = train_config(resolved, len(source))
    asked = (config.optim.minutes, config.runtime.compile)
    if is_timed(plan.steps, *asked):
        job = with_stream(job, world)
        known = measured_facts(job.task(world), job.stream, plan, world, *asked)
        resolved, chosen = config.resolve(replace(facts, **known))
        job = replace(job, config=resolved, chosen=chosen)
    settings, identity = flatten(resolved), runfolder.stamped_identity(source)
    world.on_main(
        lambda: runfolder.write_config(
            out, "refine", settings, identity, model.config(), why(chosen)
        )
    )
    return job


def make_batches(config: ResolvedRefine, model: Refined, source: Source, world: World) -> Batches:
    """Two crops of each image of this process."""
    seed, crops = config.optim.seed, config.crop
    crop: Transform = RandomResizedCropFlip(
        model.encoder.image_size, seed, crops.crop_scale, crops.flip
    )
    if crops.color_jitter:
        assert isinstance(crop, RandomResizedCropFlip)
        crop = ColorJitter(crop, crops.color_jitter, seed)
    batch_size = config.optim.batch_size
    return Batches(source, TwoViews(crop), batch_size, seed, world.rank, world.size)


def with_stream(job: Job, world: World) -> Job:
    """The job as it computes: with its cache, and with gradient checkpointing."""
    runtime, data = job.config.runtime, job.config.source.data
    job.model.encoder.set_grad_checkpointing(runtime.grad_checkpointing)
    cache, stream = with_cache(job.batches, runtime.cache, data, world, runtime.workers)
    return replace(job, cache=cache, stream=stream)


def train(job: Job, out: Path, world: World) -> None:
    """Says the plan, trains by `fit`, says what was made."""
    config, source = job.config, job.batches.source
    plan = train_config(config, len(source))
    if runfolder.last_step(out) < plan.steps and job.stream is job.batches:
        job = with_stream(job, world)
    if world.is_main:
        rows = {
            "data": f"{config.source.data}: {len(source)} images, two crops of each",
            "start": config.run,
            "model": f"the last {job.blocks} of {len(job.model.encoder.layers())} blocks, "
            f"a queue of {config.model.queue:,}",
            "training": f"{config.optim.epochs:.4g} epochs, {plan.steps} steps of "
            f"{config.optim.batch_size} images, peak learning rate {plan.lr:.2g}",
            "cache": f"{job.cache.name} ({job.cache.reason})",
            "run folder": str(out),
        }
        lines = [f"{name:>17}  {value}" for name, value in rows.items()]
        logger.info("\n".join([*lines, *reasons(job.chosen)]))
    outcome = fit(job.task(world), job.stream, plan, out, world)
    if world.is_main:
        draw_curves(out)
        write_report(out)
        if outcome.last is None:
            logger.info(finished_line(plan, out, ""))


def measure(config: ResolvedRefine, out: Path) -> None:
    """k-NN accuracy of the run before and after, where there are labels; `mae knn` says more."""
    labels = config.output.labelled
    if labels == "none":
        return
    found = []
    for run in (config.run, str(out)):
        if not runfolder.is_run(Path(run)):  # a run that is resumed needs its parent no more
            logger.info(f"k-NN before: {run} is gone")
            return
        source = LabelledSourceOptions(data=labels or config.source.data)
        device = DeviceOptions(device=config.runtime.device)
        try:
            found.append(knn(Knn(run=run, source=source, runtime=device))["knn"]["features"])
        except UserError as error:
            if labels is not None:
                raise
            logger.info(f"k-NN before and after: not measured, there are no labels ({error})")
            return
    before, after = (f"{x['accuracy']:.1%} ({x['low']:.1%} to {x['high']:.1%})" for x in found)
    logger.info(f"k-NN accuracy before {before}, after {after} (95 % intervals)")
