"""`mae plan`: what a pre-training would take on this device."""

import json
import logging
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torchmae.data.scan import scan_and_report
from torchmae.disk import write_text
from torchmae.errors import RunError, UserError
from torchmae.models.sizes import SIZES
from torchmae.runfolder import is_run
from torchmae.settings.options import changed, options_of
from torchmae.settings.python_data import typed as typed_data
from torchmae.tasks.pretrain.ahead.config import Plan
from torchmae.tasks.pretrain.ahead.gain import band, known_gains
from torchmae.tasks.pretrain.ahead.measure import (
    Around,
    Candidate,
    Minutes,
    around,
    epochs_in,
    measure,
    measure_again,
    seconds_of,
)
from torchmae.tasks.pretrain.config import Pretrain, suited
from torchmae.tasks.pretrain.run import facts_of, open_data
from torchmae.tasks.pretrain.start import check_names
from torchmae.train.distributed import World, start
from torchmae.train.speed import duration, milliseconds
from torchmae.version import command

logger = logging.getLogger(__name__)

CHANGING = 1.2  # times, between two measurements: more than what the time is to be known by
LONG = 1.0  # hours, from which on the start and the end of a process do not count


def run(config: Plan) -> dict[str, Any]:
    """Measures sizes from the smallest up, and says what each would take.

    Returns:
        "images", "device", "hours", "seconds_around" (measured: of the start and the end of a
        process, in trainings below an hour); "candidates": for each size "model", "measured" (by
        name; seconds, MB, joules), "computed" ("epochs" that fit, "wanted_epochs", "seconds" of
        these, bytes of "checkpoint" and "run", "kwh"); "takes", "why", "command", "gain".

    Raises:
        UserError: what `mae pretrain` would refuse.
        RunError: no size fits into memory.
    """
    config.check()
    if is_run(Path(config.source.data).expanduser()):
        raise UserError(f"{config.source.data} is a run folder, not images")
    out = config.plan.out
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no such folder")
    with start(config.runtime.device) as world:
        if world.size > 1:
            raise UserError("mae plan measures one process: start it without torchrun")
        result = planned(config, world)
    if out is not None:
        write_text(Path(out), json.dumps(result, indent=1))
        logger.info(f"Written to {out}")
    return result


def planned(config: Plan, world: World) -> dict[str, Any]:
    """What `run` returns; says it."""
    with temporary_folder() as name:
        folder = Path(name)
        check_names(config.pretrain())
        asked, source, _ = open_data(config.pretrain(), folder)
        found = scan_and_report(source, folder, config.scan.max_bad_percent)
        facts = facts_of(found, source, world)
        hours = config.plan.hours
        every = Minutes(
            asked.output.picture_minutes,
            asked.output.save_minutes,
            around(folder) if hours < LONG else Around(),
        )
        measured: list[tuple[Candidate, float]] = []
        logger.info(f"{config.source.data}: {found.images:,} images; on {world.device}")
        at = (folder, config.plan.seconds)
        for model in config.plan.models or upto(suited(found.images)):
            one = measure(changed(asked, model=model), facts, source, found, world, at)
            if one is None:
                logger.info(f"{model}: does not fit into memory, so larger ones were not measured")
                break
            epochs = epochs_in(one.measured, 3600 * hours, found.images, every)
            if not measured:
                logger.info("\n".join(heading(one, hours)))
            measured.append((one, epochs))
            logger.info(row(one, epochs))
            if not config.plan.models and epochs < one.job.config.optim.epochs:
                logger.info(f"larger ones were not measured: {model} is too slow already")
                break
    if not measured:
        raise RunError("no size fits into memory: use a smaller --image-size")
    measured, said = twice(measured, found.images, world, every, config)
    best, epochs, why = chosen(measured, hours)
    seconds = seconds_of(best.measured, epochs, found.images, every)
    line = typed(config, best.measured.model, epochs)
    gains = known_gains(found.images, config.plan.labels_per_class)
    logger.info(
        "\n".join(
            [
                f"takes: {best.measured.model}, since {why}",
                said,
                f"time (computed): about {duration(seconds)} for {epochs:g} epochs",
                f"gain (our own results): {band(gains)}",
                f"type: {line}",
            ]
        )
    )
    return {
        "images": found.images,
        "device": str(world.device),
        "hours": hours,
        "seconds_around": every.around.both,
        "candidates": [record(one, fit, found.images, every) for one, fit in measured],
        "takes": best.measured.model,
        "why": why,
        "epochs": epochs,
        "seconds": seconds,
        "command": line,
        "gain": {"words": band(gains), "results": [gain._asdict() for gain in gains]},
    }


def twice(
    measured: Sequence[tuple[Candidate, float]],
    images: int,
    world: World,
    every: Minutes,
    config: Plan,
) -> tuple[list[tuple[Candidate, float]], str]:
    """Measures the size that would be taken once more, after all else.

    Returns:
        The candidates with both measurements of it together; what a step took each time, and
        whether these agree, in words.
    """
    first, *_ = chosen(measured, config.plan.hours)
    again, after = measure_again(first, images, world, config.plan.seconds)
    fit = epochs_in(again.measured, 3600 * config.plan.hours, images, every)
    both = [(again, fit) if one is first else (one, fits) for one, fits in measured]
    before, times = first.measured.step, "measured before and after all else"
    words = f"a step of {first.measured.model} ({times}): "
    words += f"{milliseconds(before)} and {milliseconds(after)}"
    (planned,) = (fits for one, fits in measured if one is first)
    if fit != planned:
        words += f", so {fit:g} epochs, not {planned:g}"
    if max(before, after) >= CHANGING * min(before, after):
        words += (
            ": something else on this machine begins or ends, so the time below, of the mean of "
            "both, may be as wrong as these differ"
        )
    return both, words


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder on the disk that runs/ will be on."""
    try:
        return tempfile.TemporaryDirectory(prefix=".mae-plan-", dir=".")
    except OSError as error:
        raise UserError(
            f"{Path.cwd()} cannot be written ({error.strerror}), and runs go there: change to "
            "another folder"
        ) from error


def upto(largest: str) -> list[str]:
    """The named sizes up to one of them."""
    names = list(SIZES)
    return names[: names.index(largest) + 1]


def chosen(
    measured: Sequence[tuple[Candidate, float]], hours: float
) -> tuple[Candidate, float, str]:
    """Which size it would take, its epochs, and why."""
    enough = [(one, fit) for one, fit in measured if fit >= one.job.config.optim.epochs]
    if enough:
        one, epochs = enough[-1]
        why = (
            "it is the largest that was measured with at least the "
            f"{one.job.config.optim.epochs:g} epochs that mae pretrain makes of itself, in "
            f"{hours:g} h (a rule of thumb: no training of ours has compared sizes)"
        )
        return one, epochs, why
    one, epochs = max(measured, key=lambda pair: pair[1])
    if not epochs:
        raise RunError(f"--hours {hours:g}: not one step fits, of no size: give it more time")
    wanted = one.job.config.optim.epochs
    why = f"it makes the most epochs, and no size makes the {wanted:g} of mae pretrain"
    return one, epochs, f"{why}: features may be poor"


def heading(one: Candidate, hours: float) -> Iterator[str]:
    """What all candidates have in common, and the names of the columns."""
    resolved = one.job.config
    yield (
        f"{resolved.model.image_size} px, patch {resolved.model.patch_size}, batches of "
        f"{resolved.optim.batch_size}, {resolved.optim.precision}, "
        f"{resolved.runtime.workers} workers, cache {one.job.cache.name}"
    )
    yield f"{'':10} {'measured':^34} | computed"
    yield (
        f"{'size':10} {'images/s':>9} {'a step':>9} {'peak memory':>13}  | "
        f"{f'epochs in {hours:g} h':>16} {'checkpoint':>11} {'run folder':>11}"
    )


def row(one: Candidate, epochs: float) -> str:
    """A line of the table."""
    measured = one.measured
    memory = "not known" if measured.memory_mb is None else f"{measured.memory_mb / 1000:.2f} GB"
    line = (
        f"{measured.model:10} {measured.images_per_s:>9,.1f} {milliseconds(measured.step):>9} "
        f"{memory:>13}  | {epochs:>16g} {one.bytes.checkpoint / 1e6:>8,.0f} MB "
        f"{one.bytes.run / 1e6:>8,.0f} MB"
    )
    if measured.energy is not None:
        line += f"; {measured.energy / measured.step:,.0f} W (measured, the GPU alone)"
    return line


def record(one: Candidate, epochs: float, images: int, every: Minutes) -> dict[str, Any]:
    """A candidate for the file."""
    measured = one.measured
    seconds = seconds_of(measured, epochs, images, every)
    kwh = None
    if measured.energy is not None:
        kwh = measured.energy / measured.step * seconds / 3.6e6
    return {
        "model": measured.model,
        "measured": {
            "images_per_s": measured.images_per_s,
            "seconds_per_step": measured.step,
            "seconds_per_first_step": measured.first_step,
            "seconds_to_start": measured.start,
            "seconds_per_picture": measured.picture,
            "peak_memory_mb": measured.memory_mb,
            "joules_per_step": measured.energy,
        },
        "computed": {
            "epochs": epochs,
            "wanted_epochs": one.job.config.optim.epochs,
            "seconds": seconds,
            "seconds_per_checkpoint": measured.save,
            "checkpoint_bytes": one.bytes.checkpoint,
            "run_bytes": one.bytes.run,
            "kwh": kwh,
        },
    }


def typed(config: Plan, model: str, epochs: float) -> str:
    """The command line of the training, with what was asked for."""
    words = ["--model", model, "--epochs", f"{epochs:g}"]
    asked, settings = config.shared(), options_of(Pretrain)
    for name, value in asked.items():
        option = settings[name]
        if option.positional or option.metadata["hidden"] or value == option.default:
            continue
        words += flagged(option.flag, value, bool(option.metadata["several"]))
    return f"{command()} pretrain {typed_data(config.source.data)} {shlex.join(words)}"


def flagged(flag: str, value: Any, several: bool) -> list[str]:
    """A setting as it is typed."""
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, tuple) and value and isinstance(value[0], str) and not several:
        return [word for one in value for word in (flag, one)]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [flag, str(value)]
