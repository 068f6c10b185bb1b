"""Processes and devices; no other file imports torch.distributed. One process is a World of 1."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from torchmae.errors import UserError

T = TypeVar("T")
WORLDS = count()  # opened so far in this process; the others open as many


@dataclass(frozen=True)
class World:
    """This process (`rank` of `size`) and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """Processes on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag: whether it is true in any process.

        Reduced on the host (gloo), so that a GPU's queue is not waited for.
        """
        if self.size == 1:
            return flags
        values = torch.tensor([float(flag) for flag in flags])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(bool(value) for value in values)

    def on_main(self, work: Callable[[], T]) -> T:
        """Calls `work` in the main process; returns its result, or raises its error, in all."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def wrap(self, task: nn.Module, layers: list[nn.Module], fsdp: bool) -> nn.Module:
        """The task for training with all processes: replicated (DDP) or sharded (FSDP2).

        Args:
            task: returned as it is where there is one process only.
            layers: what FSDP2 gathers at a time, beside the rest of the task.
            fsdp: shard the parameters, in place.
        """
        if self.size == 1:
            return task
        if fsdp:
            for layer in layers:
                fully_shard(layer)
            fully_shard(task)
            return task
        return DistributedDataParallel(
            task, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def gather(self, value: Tensor) -> Tensor:
        """A parameter or state tensor, unsharded (every process must call this)."""
        return value.full_tensor() if isinstance(value, DTensor) else value

    def scatter_into(self, target: Tensor, value: Tensor) -> None:
        """Copies an unsharded tensor into a parameter or state tensor with any sharding."""
        value = value.to(target.device)
        with torch.no_grad():
            if isinstance(target, DTensor):
                value = distribute_tensor(value, target.device_mesh, target.placements)
            target.copy_(value)

    def swap(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Exchanges the values of the two tensors of each pair, whatever their layout."""
        for one, other in pairs:
            if isinstance(one, DTensor):  # FSDP2 holds the storage of its own, so it has to stay
                with torch.no_grad():
                    before = one.detach().clone()
                    one.copy_(other)
                    other.copy_(before)
            else:  # without a copy
                one.data, other.data = other.data, one.data

    def match_layout(self, value: Tensor, example: Tensor) -> Tensor:
        """A scalar as a DTensor if `example` is one, so that a fused operation takes both."""
        if not isinstance(example, DTensor):
            return value
        return DTensor.from_local(value, example.device_mesh, [Replicate()], run_check=False)


def synchronize(device: torch.device) -> None:
    """Waits until a device has finished all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def no_sync(module: nn.Module, accumulating: bool) -> Iterator[None]:
    """While accumulating, gradients stay in their process; the last micro-batch reduces them."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not accumulating)
        yield
    elif isinstance(module, DistributedDataParallel) and accumulating:
        with module.no_sync():
            yield
    else:
        yield


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """For evaluators, which call parts of a task: FSDP2 gathers a root only when it is called."""
    if isinstance(module, FSDPModule):
        module.unshard()
        yield
        module.reshard()
    else:
        yield


def is_main() -> bool:
    """Whether this process writes results and messages; also where no `World` is open."""
    return int(os.environ.get("RANK", "0")) == 0


def find_device(name: str) -> torch.device:
    """The named device; "auto" is the GPU if there is one.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(without_device(name)) from error
    return device


def without_device(name: str) -> str:
    """Why a device is not there, and what to do."""
    kind = name.partition(":")[0]
    otherwise = "--device cpu, or leave --device out (auto)"
    if kind == "mps":
        return f"device '{name}' is not there: it is the GPU of Apple's computers. Use {otherwise}"
    if kind != "cuda":
        hint = "; cuda is the GPU" if kind == "gpu" else ""
        return f"device '{name}' is not known: auto, cpu, cuda or cuda:N{hint}"
    count = torch.cuda.device_count()
    if count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        return f"device '{name}' is not there: this machine has {there}"
    why = (
        f"this PyTorch ({torch.__version__}) is built without CUDA: install one that has it "
        "(https://pytorch.org/get-started)"
        if torch.version.cuda is None
        else f"PyTorch (for CUDA {torch.version.cuda}) finds no GPU: nvidia-smi shows whether "
        "there is a GPU with a driver, and CUDA_VISIBLE_DEVICES can hide it"
    )
    return f"device '{name}' is not there; {why}. On a CPU: {otherwise}"


@contextmanager
def start(device: str = "auto") -> Iterator[World]:
    """The World of this process; it joins the others where torchrun started it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    found = find_device(device)
    if size == 1:
        yield World(0, 1, found)
        return
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(found)
    backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"
    # The others wait while the main process scans the data, which may take long.
    patience = timedelta(hours=3)
    # torchrun's store outlives a World: without a prefix of its own, the next one could read the
    # addresses of closed sockets from it ("Connection refused" in the second training of a sweep).
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))
    store = dist.PrefixStore(f"world-{next(WORLDS)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    try:
        yield World(rank, size, found)
    finally:
        dist.destroy_process_group()
        # Gloo's threads free the tensors of the last collectives and need the interpreter for it:
        # one that still waits when Python ends aborts a process that has finished its work (seen
        # in 1 of 10 FSDP runs on the CPU). While this one sleeps, they have it.
        time.sleep(0.1)


def machine_facts(world: World) -> dict[str, Any]:
    """What `settings.defaults.Facts` says of the machine."""
    return {
        "device": world.device.type,
        "precision": fast_precision(world.device),
        "cores": available_cores(),
        "processes": world.size,
        "local_processes": world.local_size,
    }


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fast_precision(device: torch.device) -> str:
    """The lowest precision that a device is fast at: "bf16", "fp16" (older GPUs) or "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU computes bf16 products itself (AMX or AVX512-BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
