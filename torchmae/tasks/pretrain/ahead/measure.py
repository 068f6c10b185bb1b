"""What a pre-training of one size takes: measured on real steps, and what follows from that."""

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from torchmae import runfolder
from torchmae.data.scan import Scan
from torchmae.data.sources.source import Source
from torchmae.errors import RunError
from torchmae.report.curves import draw_curves
from torchmae.settings.defaults import Facts
from torchmae.tasks.pretrain.config import Pretrain
from torchmae.tasks.pretrain.job import Job
from torchmae.tasks.pretrain.pictures import Pictures
from torchmae.tasks.pretrain.plan import train_config
from torchmae.tasks.pretrain.run import new_job, with_stream
from torchmae.train.checkpoint import KEEP, Checkpoint, save
from torchmae.train.distributed import World
from torchmae.train.log import peak_memory_mb, restart_peak_memory
from torchmae.train.speed import measure_speed
from torchmae.train.trainer import keep_freed_memory

MOST_STEPS = 500  # that are measured of a size
MOST_EPOCHS = 1600.0  # the longest training of the paper


@dataclass(frozen=True)
class Measured:
    """What was measured of a size; seconds, bytes, joules.

    Attributes:
        step: of a training step with loading, its images as every epoch but the first finds them.
        first_step: the same where they are decoded for a cache.
        start: from the settings to the first step that counts, the scan not included.
        picture: drawing reconstructions once.
        save: writing a checkpoint: its weights were written, and its other bytes are as fast.
        memory_mb: the most that was held; None where the system does not tell.
        energy: of a step; None where the device does not tell.
    """

    model: str
    batch: int
    step: float
    first_step: float
    start: float
    picture: float
    save: float
    memory_mb: float | None
    energy: float | None

    @property
    def images_per_s(self) -> float:
        return self.batch / self.step


@dataclass(frozen=True)
class Around:
    """Seconds of a training before its settings are known and after its last step.

    They are the same for every size, and nothing in a training of hours.
    """

    start: float = 0.0  # of a process, up to the imported library
    end: float = 0.0  # curves.png and report.html

    @property
    def both(self) -> float:
        return self.start + self.end


def around(folder: Path) -> Around:
    """Starts a process that imports what `mae pretrain` does, and draws what it draws at its end.

    Args:
        folder: an empty one, for a run with two lines of log.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torchmae.tasks.pretrain.run"], check=True)
    started = time.monotonic()
    lines = [{"step": k, "loss": 1 / k, "lr": 1e-3, "images_per_s": 1.0} for k in (1, 2)]
    (folder / runfolder.LOG).write_text("".join(json.dumps(one) + "\n" for one in lines))
    draw_curves(folder)
    return Around(started - began, time.monotonic() - started)


@dataclass(frozen=True)
class Bytes:
    """What a size takes on the disk, from the shapes of its tensors."""

    weights: int
    checkpoint: int  # with the moments of AdamW

    @property
    def run(self) -> int:
        """A run folder's: the checkpoints that are kept, one that is being written, the weights."""
        return (KEEP + 1) * self.checkpoint + self.weights


@dataclass(frozen=True)
class Minutes:
    """Between two pictures and two checkpoints of a training; and what is around it."""

    picture: float
    save: float
    around: Around = Around()


@dataclass(frozen=True)
class Candidate:
    """A size: what was measured, and its job."""

    measured: Measured
    bytes: Bytes
    job: Job


def measure(
    config: Pretrain,
    facts: Facts,
    source: Source,
    found: Scan,
    world: World,
    at: tuple[Path, float],
) -> Candidate | None:
    """Measures one size; None where not even one image fits into memory.

    Args:
        config: with the size.
        facts: of data and machine.
        source: the images.
        found: their scan.
        world: of this process.
        at: a folder for what is written, and seconds of steps that are measured.
    """
    folder, least = at
    began = time.monotonic()
    job = with_stream(new_job(config, facts, source, found, world), world)
    built = time.monotonic() - began
    plan = train_config(job.config, found.images)
    task = job.task()
    try:
        keep_freed_memory(False)  # what the last size held is given back
        restart_peak_memory(world.device)
        speed = first = measure_speed(task, job.stream, plan, world, MOST_STEPS, least)
        if job.cache.name in ("memory", "disk"):  # the same images again, now decoded
            again = max(3, min(MOST_STEPS, round(least / first.step)))
            speed = measure_speed(task, job.stream, plan, world, again, least)
        memory = peak_memory_mb(world.device)
    except RunError as error:
        if "out of memory" not in str(error):
            raise
        return None
    weights, size = bytes_of(job)
    seconds = time_of_saving(job, folder)
    name = str(job.config.model.model)
    batch, start = job.config.optim.batch_size, built + first.warmup
    measured = Measured(
        model=name,
        batch=batch,
        step=speed.step,
        first_step=max(first.step, speed.step) if first is not speed else speed.step,
        start=start,
        picture=time_of_picture(job, folder, world),
        save=seconds * size / weights,
        memory_mb=memory,
        energy=speed.energy,
    )
    return Candidate(measured, Bytes(weights, size), job)


def measure_again(
    one: Candidate, images: int, world: World, seconds: float
) -> tuple[Candidate, float]:
    """Measures the steps of a size a second time, after all the others.

    Machines are shared: two measurements apart from each other show whether the load changes, and
    their mean is nearer to what a training will find.

    Args:
        one: the size.
        images: of the set.
        world: of this process.
        seconds: of steps that are measured.

    Returns:
        The size with the mean of both, and seconds of a step the second time.
    """
    plan, first = train_config(one.job.config, images), one.measured
    steps = max(3, min(MOST_STEPS, round(seconds / first.step)))
    second = measure_speed(one.job.task(), one.job.stream, plan, world, steps, seconds).step
    step = 2 / (1 / first.step + 1 / second)  # all steps of two equally long times
    measured = replace(first, step=step, first_step=max(step, first.first_step))
    return replace(one, measured=measured), second


def bytes_of(job: Job) -> tuple[int, int]:
    """Bytes of the weights, and of a checkpoint."""
    weights = sum(value.nbytes for value in job.model.state_dict().values())
    trained = sum(p.nbytes for p in job.model.parameters() if p.requires_grad)
    return weights, weights + 2 * trained


def time_of_saving(job: Job, folder: Path) -> float:
    """Seconds to write the weights of a job as a checkpoint does."""
    out = folder / str(job.config.model.model)
    out.mkdir()
    runfolder.write_config(out, "pretrain", {}, None, job.model.config())
    began = time.monotonic()
    save(out, Checkpoint(0, job.model.state_dict(), {}, {}))
    return time.monotonic() - began


def time_of_picture(job: Job, folder: Path, world: World) -> float:
    """Seconds to draw reconstructions; 0 where the target has no pictures."""
    if not job.model.target.has_pictures():
        return 0.0
    job.model.to(world.device)
    draw = Pictures(job.model, job.batches, job.config, folder, world)
    with torch.no_grad():
        list(draw(0))  # the first one imports what draws
        began = time.monotonic()
        list(draw(1))
        seconds = time.monotonic() - began
    job.model.to("cpu")
    return seconds


def seconds_of(measured: Measured, epochs: float, images: int, every: Minutes) -> float:
    """Seconds of a training of so many epochs, the scan of the data not included.

    The first epoch is as slow as decoding makes it. Pictures and checkpoints come by the clock, and
    once more at the end.
    """
    each = images / measured.batch  # steps of an epoch
    steps = max(1, round(epochs * each))
    training = min(steps, each) * measured.first_step + max(0, steps - each) * measured.step
    pictures = training // (60 * every.picture) if every.picture else steps
    saves = training // (60 * every.save) if every.save else steps
    drawn, saved = (pictures + 1) * measured.picture, (saves + 1) * measured.save
    return every.around.both + measured.start + training + drawn + saved


def epochs_in(measured: Measured, seconds: float, images: int, every: Minutes) -> float:
    """The most epochs that take at most so many seconds, at most the paper's longest; 0 where not
    even one step fits. Three digits of it, so that it can be typed."""
    low, high = 0, math.ceil(MOST_EPOCHS * images / measured.batch)
    while low < high:  # the time grows with the steps
        middle = (low + high + 1) // 2
        if seconds_of(measured, middle * measured.batch / images, images, every) <= seconds:
            low = middle
        else:
            high = middle - 1
    return rounded_down(low * measured.batch / images)


def rounded_down(epochs: float) -> float:
    """Three digits, never more than it was."""
    if epochs <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(epochs)) - 2)
    return float(f"{min(MOST_EPOCHS, math.floor(epochs / unit + 1e-9) * unit):.3g}")
