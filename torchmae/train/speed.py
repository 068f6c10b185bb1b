"""How long a training takes, what energy, and whether torch.compile pays: measured on a few real
steps."""

import copy
import ctypes
import math
import time
from contextlib import suppress
from dataclasses import replace
from shutil import which
from typing import Any, NamedTuple

import torch

from torchmae.settings.defaults import Choice
from torchmae.train.config import B, BatchStream, Task, TrainConfig
from torchmae.train.distributed import World, synchronize
from torchmae.train.trainer import Trainer, compiler

# The first steps do not count: they search for what fits into memory, compile, start workers.
WARMUP_STEPS = 2

# torch.compile is tried where a training is long enough to pay for a trial (a minute or two), and
# taken where it saves so much. Shorter trainings are the same bits on every call.
LEAST_STEPS = 1000
LEAST_SECONDS = 1800.0
LEAST_GAIN = 0.05  # of a step's time; less is within the noise of a busy machine
WINDOW = (500, 5.0)  # steps or seconds, whichever come first, of each of a trial's measurements

NVML = "libnvidia-ml.so.1"  # comes with NVIDIA's driver


def enough(steps: int, seconds: float, least: float = 2.0) -> bool:
    """Whether so many steps in so many seconds say how fast a training is."""
    return steps >= 3 and seconds >= least


class Speed(NamedTuple):
    """Seconds of a step, loading included, and of what comes before the first one that counts;
    joules of a step (None: the device does not tell)."""

    step: float
    warmup: float
    energy: float | None = None


class Trial(NamedTuple):
    """Seconds of a step without and with torch.compile, and of compiling."""

    plain: float
    compiled: float
    compiling: float

    def choice(self, steps: int) -> Choice:
        """Whether compiling pays for itself in the first half of so many steps."""
        plain, compiled = milliseconds(self.plain), milliseconds(self.compiled)
        words = f"measured: {compiled} a step against {plain}"
        saved = self.plain - self.compiled
        if saved < LEAST_GAIN * self.plain:
            return Choice(False, f"{words} without")
        pays = math.ceil(self.compiling / saved)
        words += f", {duration(self.compiling)} to compile, pays after {pays:,} of {steps:,} steps"
        return Choice(pays <= steps / 2, words)


def is_timed(steps: int, minutes: float | None, compile: bool | None) -> bool:
    """Whether settings of a training are decided by `measured_facts`, so far as is known before.

    Args:
        steps: of the training, where `minutes` is None.
        minutes: of `--minutes`.
        compile: of `--compile` or `--no-compile`.
    """
    return minutes is not None or (compile is None and steps >= LEAST_STEPS)


def measured_facts(
    task: Task[B],
    batches: BatchStream[B],
    plan: TrainConfig,
    world: World,
    minutes: float | None,
    compile: bool | None,
) -> dict[str, Any]:
    """What rules may depend on that only real steps tell; every process must call this.

    Args:
        task: on any device; it stays as it is.
        batches: as of `measure_speed`.
        plan: its number of steps matters where `minutes` is None.
        world: its main process measures torch.compile.
        minutes: of `--minutes`, which decides the number of steps.
        compile: as requested; None: it is chosen.

    Returns:
        `seconds_per_step` and `compile` of `torchmae.settings.defaults.Facts`.
    """
    seconds = measure_seconds_per_step(task, batches, plan, world)
    if compile is not None:
        return {"seconds_per_step": seconds}
    ahead = plan.steps * seconds if minutes is None else 60 * minutes
    steps = round(ahead / seconds)
    why_not = why_no_trial(steps, ahead, plan, world)
    if why_not is not None:
        return {"seconds_per_step": seconds, "compile": Choice(False, why_not)}
    choice, factor = world.on_main(lambda: try_compile(task, batches, plan, world.device, steps))
    return {"seconds_per_step": seconds * factor, "compile": choice}


def why_no_trial(steps: int, seconds: float, plan: TrainConfig, world: World) -> str | None:
    """Why torch.compile is not tried for a training of so many steps and seconds; None: it is."""
    if steps < LEAST_STEPS or seconds < LEAST_SECONDS:
        return f"the training is short: {duration(seconds)} without"
    if world.device.type not in ("cpu", "cuda"):
        return f"not tried on {world.device.type}"
    if plan.fsdp and world.size > 1:
        return "not tried with --fsdp"
    return None if which(compiler()) else f"no C++ compiler here ({compiler()})"


def try_compile(
    task: Task[B], batches: BatchStream[B], plan: TrainConfig, device: torch.device, steps: int
) -> tuple[Choice, float]:
    """Whether torch.compile pays in a training of so many steps: measured by one process alone.

    Returns:
        The choice, and the time of a step with it over the time without.
    """
    alone = World(0, 1, device)  # a process that cannot compile must not leave others waiting
    plain, compiled = replace(plan, compile=False), replace(plan, compile=True)
    try:
        before = measure_speed(task, batches, plain, alone, *WINDOW)
        inside = measure_speed(task, batches, compiled, alone, *WINDOW)
        after = measure_speed(task, batches, plain, alone, *WINDOW)
    except Exception as error:  # compilers fail in many ways, and the training needs none
        return Choice(False, f"torch.compile failed here ({type(error).__name__})"), 1.0
    finally:
        # The training compiles as a process without a trial does, so that it can be resumed.
        torch.compiler.reset()
    # The first may have found cold caches, and a busy machine slows down one of them.
    step = min(before.step, after.step)
    trial = Trial(step, inside.step, max(0.0, inside.warmup - after.warmup))
    choice = trial.choice(steps)
    return choice, trial.compiled / trial.plain if choice.value else 1.0


def measure_seconds_per_step(
    task: Task[B], batches: BatchStream[B], plan: TrainConfig, world: World, steps: int = 20
) -> float:
    """The time of `measure_speed` alone."""
    return measure_speed(task, batches, plan, world, steps, 2.0).step


def measure_speed(
    task: Task[B],
    batches: BatchStream[B],
    plan: TrainConfig,
    world: World,
    steps: int,
    least: float,
) -> Speed:
    """How fast training steps are; every process must call this.

    The steps are real ones of a copy of the task, with an optimizer of its own, sharded as the
    training will be. Weights, buffers, random numbers and the order of batches are not touched: a
    `fit` afterwards is bit for bit what it would have been.

    Args:
        task: on any device.
        batches: the first ones are loaded, and again when the training starts.
        plan: its number of steps does not matter.
        world: its main process's clock decides.
        steps: the most that are measured; it ends earlier as soon as that is `enough`.
        least: seconds that are `enough`.

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

        began = time.monotonic()
        for _ in range(WARMUP_STEPS):
            step()
        synchronize(world.device)
        warmup = time.monotonic() - began
        for _ in range(prefetched):  # loaded meanwhile: they would hide that loading is slow
            next(loader)
        synchronize(world.device)
        before = energy_joules(world.device)
        began = time.monotonic()
        for count in range(1, steps + 1):
            step()
            if world.any_rank(world.is_main and enough(count, time.monotonic() - began, least))[0]:
                break
        synchronize(world.device)
        seconds, after = time.monotonic() - began, energy_joules(world.device)
        used = None if before is None or after is None else (after - before) / count
        speed = Speed(seconds / count, warmup, used)
    return world.on_main(lambda: speed)


def energy_joules(device: torch.device) -> float | None:
    """Joules since the driver was loaded, to be subtracted, as NVIDIA's management library counts
    them; None where no device tells.

    GPUs tell from Volta on. What the rest of the machine uses is not in it.
    """
    if device.type != "cuda":
        return None
    with suppress(OSError, AttributeError):  # no driver, or an old one
        return counted(NVML, str(torch.cuda.get_device_properties(device).uuid))
    return None


def counted(library: str, uuid: str) -> float | None:
    """The counter of the GPU with this UUID; None where NVML answers with an error."""
    nvml = ctypes.CDLL(library)
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    wrong = (
        nvml.nvmlInit_v2()
        or nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
    )
    return None if wrong else millijoules.value / 1000


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


def milliseconds(seconds: float) -> str:
    """The time of a step for people: 74 ms, 1.23 s."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
