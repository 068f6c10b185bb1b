"""How `mae bench` measures: candidates take turns in one process, beside a matrix product.

Other work on the machine slows down all of a round alike: ratios are taken within each round, then
their median.
"""

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from torchmae.train.distributed import available_cores, synchronize

MIN_SECONDS = 0.3  # of a measurement: shorter steps are repeated
PRODUCT = "matrix product"


@dataclass(frozen=True)
class Candidate:
    """What is timed: `step()` does `flops` operations."""

    name: str
    step: Callable[[], object]
    flops: float
    model: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    note: str = ""
    against: str | None = None  # the candidate that its speed is compared with


def matrix_product(device: torch.device, precision: str) -> Candidate:
    """A large square product: the most that this machine reaches at this moment."""
    side = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return Candidate(
        PRODUCT, lambda: torch.mm(a, b, out=out), 2.0 * side**3, note=f"{side}x{side}, {precision}"
    )


def benchmark_interleaved(
    candidates: Sequence[Candidate], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of each candidate in each round, after two steps of warm-up.

    Every round begins with another candidate, so that none is always first or last.
    """
    repeat: dict[str, int] = {}
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    with tqdm(
        total=len(candidates) * (rounds + 1), unit=" measurements", disable=None, leave=False
    ) as bar:
        for candidate in candidates:
            timed(candidate.step, 1, device)  # compiles, finds out what fits into memory
            repeat[candidate.name] = min(
                200, math.ceil(MIN_SECONDS / timed(candidate.step, 1, device))
            )
            at_rest(candidate)
            bar.update()
        for i in range(rounds):
            turn = i % len(candidates)
            for candidate in (*candidates[turn:], *candidates[:turn]):
                seconds[candidate.name].append(
                    timed(candidate.step, repeat[candidate.name], device)
                )
                at_rest(candidate)
                bar.update()
    return seconds


def interleave(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measurement returns in each round, in the order of `benchmark_interleaved`."""
    names = list(measures)
    found: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(-1, rounds), unit=" rounds", disable=None, leave=False):
        turn = i % len(names)
        for name in (*names[turn:], *names[:turn]):
            value = measures[name]()
            if i >= 0:  # the first round is to warm up
                found[name].append(value)
    return found


def timed(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds a step, with all of its work on the device."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - began) / count


def at_rest(candidate: Candidate) -> None:
    """Drops gradients, so that only one candidate at a time has them in memory."""
    if candidate.optimizer is not None:
        candidate.optimizer.zero_grad(set_to_none=True)


def step_memory_mb(candidate: Candidate, device: torch.device) -> float | None:
    """Peak memory of one step's tensors, weights and optimizer state, in MB (10^6 bytes).

    On a CPU the profiler adds up every tensor's bytes: the size of the process says little, since
    freed memory stays with it.
    """
    if candidate.model is None or device.type not in ("cuda", "cpu"):
        return None
    at_rest(candidate)
    gc.collect()
    kept = {} if candidate.optimizer is None else candidate.optimizer.state
    state = [value for one in kept.values() for value in one.values()]
    own = sum(x.nbytes for x in (*candidate.model.parameters(), *candidate.model.buffers(), *state))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        candidate.step()
        return (own + torch.cuda.max_memory_allocated(device) - before) / 1e6
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        candidate.step()
    events = profiled.profiler.kineto_results.events()
    held = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return (own + most) / 1e6


@contextmanager
def silence() -> Iterator[None]:
    """Nothing reaches stderr: the profiler's library writes there directly, past Python."""
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Sets torch's number of threads (None: no change) and restores it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def speed_beside(own: list[float], other: list[float]) -> dict[str, float]:
    """How many times as fast as another: median, least and most of the ratios in each round."""
    ratios = [b / a for a, b in zip(own, other)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def spread(speed: dict[str, float]) -> str:
    return f"{speed['median']:.2f} ({speed['least']:.2f} to {speed['most']:.2f})"


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured on, without names of people or places.

    `load` is the average number of busy processes in the last minute: above 0 before a measurement,
    others were using the machine.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
