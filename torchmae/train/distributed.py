"""Processes and devices; no other file imports torch.distributed. One process is a World of 1."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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

from torchmae.errors import RunError, UserError

T = TypeVar("T")
WORLDS = count()  # opened so far in this process; the others open as many

# How long processes wait for each other before the first step is done (scanning, filling a cache,
# compiling), and for the main one whenever it works for all (saving).
PATIENCE = timedelta(hours=3)
STORE_PATIENCE = timedelta(seconds=20)
NCCL_MARGIN = timedelta(minutes=1)  # NCCL ends the process, so gloo has to be first with its words
NEWS = 3.0  # seconds within which a process that lives has published something


class LostProcess(RunError):
    """Another process did not come to where this one waits."""


@dataclass(frozen=True)
class World:
    """This process (`rank` of `size`) and its device."""

    rank: int
    size: int
    device: torch.device
    patient: dist.ProcessGroup | None = None  # of all processes, whose waits may take `PATIENCE`
    store: dist.Store | None = None  # for news

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
        cpu = torch.device("cpu")
        dist.broadcast_object_list(outcome, src=0, group=self.patient, device=cpu)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def limit_waits(self, minutes: float) -> None:
        """Sets how long processes wait for each other from now on, `on_main` excepted."""
        if self.size == 1:
            return
        group, limit = dist.distributed_c10d._get_default_group(), timedelta(minutes=minutes)
        group._get_backend(torch.device("cpu"))._set_default_timeout(limit)
        if self.device.type == "cuda":
            group._get_backend(self.device)._set_default_timeout(limit + NCCL_MARGIN)

    def publish(self, doing: str) -> None:
        """Tells the other processes what this one does, and that it lives."""
        if self.store is not None:
            with suppress(dist.DistError):  # the process that holds the store has ended
                self.store.set(f"news-{self.rank}", f"{time.monotonic()} {doing}")

    def news(self) -> dict[int, str]:
        """What the other processes published last, with the time by their own clocks."""
        found = {}
        for rank in set(range(self.size)) - {self.rank}:
            with suppress(dist.DistError):
                if self.store is not None and self.store.check([f"news-{rank}"]):
                    found[rank] = self.store.get(f"news-{rank}").decode()
        return found

    def absent(self, doing: str) -> list[str]:
        """Which processes are elsewhere, or give no sign of life, in words.

        Args:
            doing: what this process does.
        """
        before = self.news()
        time.sleep(NEWS)
        now = self.news()
        words = []
        for rank in sorted(set(range(self.size)) - {self.rank}):
            was = now.get(rank, "? setting up").partition(" ")[2]
            if now.get(rank) == before.get(rank):
                words.append(f"process {rank} gives no sign of life (last seen {was})")
            elif was != doing:
                words.append(f"process {rank} is {was}")
        return words

    @contextmanager
    def naming_absent(self, doing: Callable[[], str], limit: float) -> Iterator[None]:
        """Errors of waits inside become a `LostProcess`, which names who did not come.

        Args:
            doing: what this process does.
            limit: minutes, for the message.
        """
        try:
            yield
        except RuntimeError as error:
            # Gloo has no error class of its own.
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            here = doing()
            late = "imed out" in str(error)
            what = f"did not come within {limit:g} minutes" if late else "was lost"
            who = "; ".join(self.absent(here)) or "every process is where this one is"
            advice = " (a longer limit: --timeout-minutes)" if late else ""
            raise LostProcess(
                f"another process {what}{advice}, while this one was {here}: {who}. "
                "The same command resumes from the last checkpoint"
            ) from error

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
    # torchrun's store outlives a World: without a prefix of its own, the next one could read the
    # addresses of closed sockets from it ("Connection refused" in the second training of a sweep).
    found_store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    news = found_store.clone()  # another connection: what waits in one does not stop the other
    news.set_timeout(STORE_PATIENCE)
    prefix = f"world-{next(WORLDS)}"
    store = dist.PrefixStore(prefix, found_store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(patient, dist.ProcessGroup)
    destroy = True
    try:
        yield World(rank, size, found, patient, dist.PrefixStore(f"{prefix}-news", news))
    except LostProcess:
        destroy = found.type != "cuda"  # NCCL would wait for the lost one
        raise
    finally:
        if destroy:
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
