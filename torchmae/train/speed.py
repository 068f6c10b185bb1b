"""How long a training takes: measured on a few real steps, in words."""

import copy
import time

import torch

from torchmae.train.config import B, BatchStream, Task, TrainConfig
from torchmae.train.distributed import World, synchronize
from torchmae.train.trainer import Trainer

# The first steps do not count: they search for what fits into memory, compile, start workers.
WARMUP_STEPS = 2


def enough(steps: int, seconds: float) -> bool:
    """Whether so many steps in so many seconds say how fast a training is."""
    return steps >= 3 and seconds >= 2


def measure_seconds_per_step(
    task: Task[B], batches: BatchStream[B], plan: TrainConfig, world: World, steps: int = 20
) -> float:
    """Seconds of a training step, loading included; every process must call this.

    The steps are real ones of a copy of the task, with an optimizer of its own, sharded as the
    training will be. Weights, buffers, random numbers and the order of batches are not touched: a
    `fit` afterwards is bit for bit what it would have been.

    Args:
        task: on any device.
        batches: the first ones are loaded, and again when the training starts.
        plan: its number of steps does not matter.
        world: its main process's clock decides.
        steps: the most that are measured; it ends earlier as soon as that is `enough`.

    Returns:
        The main process's measurement, in every process.

    Raises:
        RunError: not even one image fits into memory.
    """
    trial = copy.deepcopy(task)
    cuda = world.device.type == "cuda"
    prefetched = 2 * plan.workers  # DataLoader's default: two batches a worker
    stop = WARMUP_STEPS + prefetched + steps
    with torch.random.fork_rng([world.device] if cuda else []):  # DataLoader draws a seed
        trial.to(world.device)
        trial.train()
        trainer = Trainer(trial, world, plan)
        loader = iter(batches.loader(0, stop, plan.workers, cuda))

        def step() -> None:
            trainer(next(loader).to(world.device), lr=0.0)

        for _ in range(WARMUP_STEPS):
            step()
        for _ in range(prefetched):  # loaded meanwhile: they would hide that loading is slow
            next(loader)
        synchronize(world.device)
        began = time.monotonic()
        for count in range(1, steps + 1):
            step()
            if world.any_rank(world.is_main and enough(count, time.monotonic() - began))[0]:
                break
        synchronize(world.device)
        seconds = (time.monotonic() - began) / count
    return world.on_main(lambda: seconds)


def expected_duration(seconds_per_step: float, start: int, steps: int, batch_size: int) -> str:
    """One line for people: "about 34 min for 1,200 steps (46.0 images/s)".

    Args:
        seconds_per_step: as measured.
        start: steps that were done before this process resumed the run.
        steps: of the whole run.
        batch_size: images of a step.
    """
    ahead = steps - start
    which = f"the remaining {ahead:,}" if start else f"{ahead:,}"
    speed = f"{batch_size / seconds_per_step:.1f} images/s"
    return f"about {duration(seconds_per_step * ahead)} for {which} steps ({speed})"


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
