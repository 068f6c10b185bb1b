"""The runner of dense prediction: a model from a run and annotated images, for the verb it is
given."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmae import manifest, runfolder
from torchmae.data.cache.choose import with_cache
from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.scan import max_bad_files, scan_and_report
from torchmae.errors import UserError
from torchmae.models.heads import blocks_of
from torchmae.models.sizes import architecture
from torchmae.models.weights import load, seeded
from torchmae.report.curves import draw_curves
from torchmae.report.html.run import Page, write_report
from torchmae.runfolder import note_bad_files
from torchmae.scaling import scale_again
from torchmae.settings import defaults
from torchmae.settings.defaults import Facts, why
from torchmae.settings.options import build, changed, flatten, requested
from torchmae.tasks.dense.config import Dense, check_batch
from torchmae.tasks.dense.job import Job, Looked, Verb, default_out
from torchmae.tasks.dense.plan import describe, summary, train_config
from torchmae.tasks.dense.start import channels_of, encoder_of
from torchmae.tasks.dense.validation import Validation
from torchmae.train.checkpoint import MEASURED
from torchmae.train.distributed import World, machine_facts, start
from torchmae.train.loop import fit
from torchmae.train.resuming import resume, run_folder
from torchmae.train.speed import is_timed, measure_seconds_per_step, measured_facts

logger = logging.getLogger(__name__)


def run(config: Dense, verb: Verb[Any, Any], quiet: bool = False) -> Path:
    """Trains a model, or resumes its training.

    Args:
        config: its settings.
        verb: what the model is, and what it is trained on.
        quiet: without plan and summary, for verbs that run several.

    Returns:
        The run folder.
    """
    if config.model.train in ("0", "0.0"):
        config = changed(config, train="head")
    verb.check(config)
    name = runfolder.name_of(config.source.data)
    out = Path(config.output.out or default_out(config, verb.name, name))
    resuming = bool(runfolder.checkpoints(out))
    if config.run != "none" and not resuming:
        # An encoder of another kind need not have this name; its task checks it later.
        depth = runfolder.read_config(config.run)["model"]["encoder"].get("depth")
        if depth is not None:
            blocks_of(config.model.train, depth)
    with start(config.runtime.device) as world:
        known = str(out) if resuming else config.run
        listing = listing_as_run(config.listing, config.source.data, known, resuming)
        config = changed(config, **listing.settings(config.listing))
        decode = decode_as_run(known, config.decode)
        sets = verb.open(config, decode, listing)
        with run_folder(out, config.source.data, world) as resuming:
            job = (resumed if resuming else begun)(config, verb, sets, out, world)
            return train(job, verb, out, world, quiet)


def identity_of(sets: Any) -> dict[str, Any]:
    """What the annotated images are recognised by: files and annotations."""
    return {
        **runfolder.stamped_identity(sets.train_source),
        "val": runfolder.stamped_identity(sets.val_source),
        "annotations": sets.fingerprint(),
    }


def resumed(
    config: Dense, verb: Verb[Any, Any], sets: Any, out: Path, world: World
) -> Job[Any, Any]:
    """The job that the run folder holds; settings of the runtime are those of this call."""
    stored = runfolder.read_any_config(out)
    # Which images the seeds leave is compared by the images themselves.
    config = changed(config, avoid_seeds=tuple(stored["config"].get("avoid_seeds", ())))
    sets = verb.known(sets, stored)
    identity = identity_of(sets)
    before: Any = build(
        verb.resolved, {**requested(config), **runfolder.stored_settings(out, verb.name)}
    )
    plan = train_config(before, len(sets.train_source))
    settings, described = resume(config, verb.name, identity, plan, out, world)
    resolved: Any = build(verb.resolved, settings)
    own = resolved.decode
    sets = sets.with_decode(replace(decode_as_run("none", own), channels=own.channels))
    model = verb.rebuild(described)
    batches = verb.batches(resolved, sets, model, world)
    return Job(resolved, sets, model, {}, batches, batches, [])


def begun(config: Dense, verb: Verb[Any, Any], sets: Any, out: Path, world: World) -> Job[Any, Any]:
    """A new job: the data scanned, everything chosen, the model built, config.json written."""
    world.on_main(lambda: manifest.forget(out, MEASURED))
    pretrained = None if config.run == "none" else load(config.run)
    channels = channels_of(config, sets.train_source, pretrained)
    decode = replace(sets.train_source.decode, channels=channels, dtype=sets.train_source.dtype)
    sets = sets.with_decode(decode)
    like = architecture(config.model.model)
    before = like.get("scaling") if pretrained is None else pretrained.scaling
    scale, percent = scale_again(before, channels, str(decode.dtype)), config.scan.max_bad_percent
    found = world.on_main(lambda: scan_and_report(sets.train_source, out, percent, scale))
    looked: Looked[Any] = world.on_main(lambda: look(config, verb, sets, out))
    sets = looked.sets
    config = changed(
        config,
        channels=channels,
        **decode.stored(),
        **looked.settings,
    )
    named = like if pretrained is None else {}
    facts = Facts(
        images=len(sets.train_source),
        val_images=len(sets.val_source),
        height=found.height,
        width=found.width,
        channels=channels,
        grey=found.grey,
        embed_dim=pretrained.embed_dim if pretrained is not None else named["embed_dim"],
        run_size=None if pretrained is None else pretrained.image_size,
        run_patch=None if pretrained is None else tuple(pretrained.patch),
        **machine_facts(world),
    )
    resolved, chosen = resolve(config, verb, facts)
    with seeded(resolved.optim.seed):
        encoder = encoder_of(resolved, pretrained, found.mean, found.std, found.scaling)
        model = verb.build(resolved, encoder, sets)
    batches = verb.batches(resolved, sets, model, world)
    job = Job(resolved, sets, model, chosen, batches, batches, looked.notes, found)
    plan, task = train_config(resolved, len(sets.train_source)), verb.task(model, resolved)
    asked = (config.optim.minutes, config.runtime.compile)
    if is_timed(plan.steps, *asked):
        job = with_stream(job, world)
        if job.cache.name in ("memory", "disk"):  # the first time everything is decoded
            measure_seconds_per_step(task, job.stream, plan, world)
        known = measured_facts(task, job.stream, plan, world, *asked)
        resolved, chosen = resolve(config, verb, replace(facts, **known))
        job = replace(job, config=resolved, chosen=chosen)
    settings, identity = flatten(resolved), identity_of(sets)
    world.on_main(
        lambda: runfolder.write_config(
            out, verb.name, settings, identity, model.config(), why(chosen)
        )
    )
    return job


def resolve(config: Dense, verb: Verb[Any, Any], facts: Facts) -> tuple[Any, dict[str, Any]]:
    """The settings with nothing left to choose, and what was chosen with reasons to show."""
    resolved, chosen = defaults.resolve(config, verb.resolved, verb.rules, facts)
    check_batch(resolved, facts)
    return resolved, {name: choice for name, choice in chosen.items() if choice.value is not None}


def look(config: Dense, verb: Verb[Any, Any], sets: Any, out: Path) -> Looked[Any]:
    """A look at every annotation; what cannot be used goes to bad-files.jsonl, and is counted.

    Raises:
        UserError: too much of it cannot be used.
    """
    looked = verb.look(sets, config)
    note_bad_files(out, [*sets.left_out, *looked.counted, *looked.bad])
    count = len(sets.train_source) + len(sets.val_source)
    notes = list(looked.notes)
    for words, files in (("left out", sets.left_out), ("not used", looked.bad)):
        if files:
            first = f"the first: {files[0]}; all are in {out / runfolder.BAD_FILES}"
            notes.append(f"{len(files)} files are {words}; {first}")
    if len(looked.bad) > max_bad_files(count, config.scan.max_bad_percent) or (
        len(looked.bad) >= count
    ):
        examples = "; ".join(map(str, looked.bad[:3]))
        raise UserError(
            f"the annotations of {len(looked.bad)} of {count} images cannot be used, more than "
            f"--max-bad-percent {config.scan.max_bad_percent:g} and 20 files allow. {examples}. "
            f"All are listed in {out / runfolder.BAD_FILES}"
        )
    return replace(looked, notes=notes)


def with_stream(job: Job[Any, Any], world: World) -> Job[Any, Any]:
    """The job as it computes: with its cache, and with gradient checkpointing."""
    runtime, data = job.config.runtime, job.config.source.data
    job.model.encoder.set_grad_checkpointing(runtime.grad_checkpointing)
    cache, stream = with_cache(job.batches, runtime.cache, data, world, runtime.workers)
    return replace(job, cache=cache, stream=stream)


def train(job: Job[Any, Any], verb: Verb[Any, Any], out: Path, world: World, quiet: bool) -> Path:
    """Says the plan, trains by `fit` with validation now and then, says what was made."""
    config = job.config
    plan = train_config(config, len(job.sets.train_source))
    if runfolder.last_step(out) < plan.steps and job.stream is job.batches:
        job = with_stream(job, world)
    task = verb.task(job.model, config)
    assert isinstance(task, nn.Module)
    if world.is_main and not quiet:
        where = f"{world.size} process{'es' * (world.size > 1)}, to {out}"
        logger.info(describe(job, verb, task, plan, where))
    validation = Validation(job, verb, out, world)
    fit(task, job.stream, plan, out, world, [validation, *([Page(out)] if world.is_main else [])])
    # A kill may have come between the last save and its validation.
    if world.on_main(lambda: validation.step() != plan.steps):
        task.eval()
        with torch.no_grad():
            list(validation(plan.steps))
    world.on_main(lambda: draw_curves(out))
    if not quiet:
        world.on_main(validation.draw_worst)
    text = world.on_main(lambda: summary(out, verb, plan))  # writes results.json too
    world.on_main(lambda: write_report(out))
    if world.is_main and not quiet:
        logger.info(text)
    return out
