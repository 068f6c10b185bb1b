"""One optimizer step: micro-batches, mixed precision, clipping, losses that are not finite."""

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shutil import which
from typing import Any, Generic, cast

import torch
from torch import Tensor, nn

from torchmae.errors import RunError, UserError
from torchmae.train import optim
from torchmae.train.config import B, Task, TrainConfig
from torchmae.train.distributed import World, no_sync

logger = logging.getLogger(__name__)

# Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


class Trainer(Generic[B]):
    """The state of a training: optimizer, EMA weights, loss scale, micro-batch size.

    Attributes:
        micro_batch_size: images of one forward pass of this process; None until the first call,
            which finds out what fits into memory.
        ema: the averaged weights by name; empty without `plan.ema`.
    """

    def __init__(self, task: Task[B], world: World, plan: TrainConfig):
        self.task = task
        self.world = world
        self.clip_grad = plan.clip_grad
        self.requested_micro_batch_size = plan.micro_batch_size
        self.micro_batch_size: int | None = None
        if plan.compile:
            if which(compiler()) is None:
                raise UserError(
                    f"torch.compile needs a C++ compiler, and there is no {compiler()}: install "
                    "one, or train without (--no-compile)"
                )
            task.compile()
        # A protocol cannot say that every task is an nn.Module.
        self.module = world.wrap(cast(nn.Module, task), task.layers(), plan.fsdp)
        if plan.layer_decay is None:
            groups = optim.param_groups_weight_decay(task.model, plan.weight_decay)
        else:
            groups = optim.param_groups_layer_decay(
                task.model, task.layers(), plan.weight_decay, plan.layer_decay
            )
        self.optimizer = optim.OPTIMIZERS[plan.optimizer](groups, plan.betas)
        self.parameters = {n: p for n, p in task.model.named_parameters() if p.requires_grad}
        # Allocated now, so that loading a checkpoint and the search for what fits find it there.
        for parameter in self.parameters.values():
            self.optimizer.state[parameter] = optim.init_optimizer_state(plan.optimizer, parameter)
        averaged = self.parameters if plan.ema is not None else {}
        self.ema = {name: parameter.detach().clone() for name, parameter in averaged.items()}
        self.in_grad_norm = [
            p for name, p in self.parameters.items() if name not in task.exclude_from_grad_norm
        ]
        self.scaler = torch.amp.GradScaler(
            world.device.type, init_scale=4096.0, enabled=plan.precision == "fp16"
        )
        dtype = torch.float16 if plan.precision == "fp16" else torch.bfloat16
        self.autocast: dict[str, Any] = {
            "device_type": world.device.type,
            "dtype": dtype,
            "enabled": plan.precision != "fp32",
        }

    def __call__(self, batch: B, lr: float, ema_decay: float = 0.0) -> Tensor:
        """One optimizer step over all micro-batches.

        A step whose loss or gradient norm is not finite is skipped, on the device itself: weights
        and moments stay as they are.

        Args:
            batch: this process's share of the step.
            lr: the learning rate; that of a layer is `lr` times its group's `lr_scale`.
            ema_decay: how much of themselves the EMA weights retain, in [0, 1].

        Returns:
            float32 [2], loss and gradient norm (before clipping) averaged over ranks, left on the
            device (no sync).
        """
        self.micro_batch_size = self.micro_batch_size or self.find_micro_batch_size(batch)
        num_micro_batches = -(-len(batch.images) // self.micro_batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.world.mean(self.accumulate(self.module, batch, num_micro_batches))
        if self.scaler.is_enabled():  # it checks gradients only: a bad loss has to be in one
            first = self.in_grad_norm[0].grad
            assert first is not None
            first.add_(self.world.match_layout(loss * 0, first))  # 0, or NaN
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.in_grad_norm if p.grad is not None]
        norm = self.world.gather(nn.utils.get_total_norm(gradients))
        if self.clip_grad is not None:
            scale = (self.clip_grad / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(self.world.match_layout(scale, gradient))
        if not self.scaler.is_enabled():  # a scaler has set found_inf by itself
            found = (~torch.isfinite(loss + norm)).float()
            self.optimizer.found_inf = self.world.match_layout(found, self.in_grad_norm[0])  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            weights = [parameter.detach() for parameter in self.parameters.values()]
            torch._foreach_lerp_(list(self.ema.values()), weights, 1 - ema_decay)
        return torch.stack([loss, norm])

    def accumulate(self, module: nn.Module, batch: B, num_micro_batches: int) -> Tensor:
        """Forward and backward over the micro-batches. Returns this process's loss, a scalar."""
        total = torch.zeros((), device=self.world.device)
        for i, micro_batch in enumerate(batch.chunks(num_micro_batches)):
            with no_sync(module, i < num_micro_batches - 1), torch.autocast(**self.autocast):
                loss = module(micro_batch)["loss"] * (len(micro_batch.images) / len(batch.images))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def find_micro_batch_size(self, batch: B) -> int:
        """The requested number of images at a time, halved until a trial fits into memory.

        Raises:
            RunError: not even one image fits.
        """
        share = len(batch.images)
        # Freed memory is kept only after the trials: a failed one would leave holes in the heap.
        self.keep_freed_memory(False)
        buffers = [(buffer, buffer.clone()) for buffer in self.task.buffers()]
        module = cast(nn.Module, self.task)  # not DDP's: a failed trial must not wait for others
        first = num_micro_batches = -(
            -share // min(self.requested_micro_batch_size or share, share)
        )
        while True:
            out_of_memory = False
            try:
                self.accumulate(module, batch.chunks(num_micro_batches)[0], 1)
            except RuntimeError as error:  # torch.OutOfMemoryError is one too
                if not is_out_of_memory(error):
                    raise
                out_of_memory = True
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in buffers:  # BatchNorm's statistics without the trial
                buffer.copy_(before)
            if not self.world.any_rank(out_of_memory)[0]:
                self.keep_freed_memory(num_micro_batches == first)
                return -(-share // num_micro_batches)
            gc.collect()
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
            if num_micro_batches >= share:
                raise RunError(
                    "out of memory even with one image at a time: "
                    "choose a smaller --model or --image-size, with a new --out"
                )
            num_micro_batches = min(share, 2 * num_micro_batches)
            if self.world.is_main:
                size = -(-share // num_micro_batches)
                logger.info(f"out of memory: continuing with micro-batches of {size} images")

    def keep_freed_memory(self, keep: bool) -> None:
        """Like the function of this name, where the tensors are in the host's memory."""
        if self.world.device.type == "cpu":
            keep_freed_memory(keep)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Puts the EMA weights, if there are any, into the task: to be evaluated and saved."""
        pairs = [(self.parameters[name], average) for name, average in self.ema.items()]
        self.world.swap(pairs)
        try:
            yield
        finally:
            self.world.swap(pairs)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs, unsharded (every process must call this).

        Returns:
            The model's state (EMA weights if there are any), the optimizer's tensors together with
            the raw weights behind an EMA ("raw.NAME"), and metadata that JSON can hold.
        """
        with self.ema_weights():
            weights = {
                name: self.world.gather(value).contiguous()
                for name, value in self.task.model.state_dict().items()
            }
        optimizer_state = {
            f"{kind}.{name}": self.world.gather(value)
            for name, parameter in self.parameters.items()
            for kind, value in self.optimizer.state[parameter].items()
        }
        optimizer_state |= {
            f"raw.{name}": self.world.gather(self.parameters[name].detach()) for name in self.ema
        }
        metadata = {
            "micro_batch_size": self.micro_batch_size,
            "place": device_name(self.world.device),
            "scaler": self.scaler.state_dict(),
        }
        return weights, optimizer_state, metadata

    def load(
        self,
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        metadata: dict[str, Any],
    ) -> None:
        """Restores what `state` returned, in a process with any sharding."""
        for name, value in self.task.model.state_dict().items():
            self.world.scatter_into(value, weights[name])
        for name, average in self.ema.items():
            self.world.scatter_into(average, weights[name])
            self.world.scatter_into(self.parameters[name], optimizer_state[f"raw.{name}"])
        for name, parameter in self.parameters.items():
            for kind, value in self.optimizer.state[parameter].items():
                self.world.scatter_into(value, optimizer_state[f"{kind}.{name}"])
        # What fitted on one device need not fit on another: there the first call searches again.
        same = not self.requested_micro_batch_size
        same = same and metadata["place"] == device_name(self.world.device)
        self.micro_batch_size = metadata["micro_batch_size"] if same else None
        self.keep_freed_memory(True)
        self.scaler.load_state_dict(metadata["scaler"])


def keep_freed_memory(keep: bool) -> None:
    """Whether glibc keeps the memory of freed tensors for the next ones.

    By default it returns each large one to the system at once, and every step pays for tens of
    thousands of fresh pages (measured: 3 to 5 % of a ViT-B step on 2 cores). Where memory is
    scarce, keeping it leaves holes too small for anything: `keep=False` restores the default and
    returns all that is free.
    """
    with suppress(AttributeError, OSError):  # another system, or another C library
        library = ctypes.CDLL("libc.so.6")
        if not keep:
            library.mallopt(M_MMAP_THRESHOLD, 1 << 17)
            library.mallopt(M_TRIM_THRESHOLD, 1 << 17)
            library.malloc_trim(0)
        # The largest threshold depends on glibc's version.
        elif any(library.mallopt(M_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25)):
            library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def compiler() -> str:
    """The C++ compiler that torch.compile calls."""
    usual = {"darwin": "clang++", "win32": "cl"}
    return os.environ.get("CXX", usual.get(sys.platform, "g++"))


def device_name(device: torch.device) -> str:
    """The name of the GPU, else the device's type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also on a CPU, where torch has only a message for it."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or "t allocate memory" in str(error)
    )
