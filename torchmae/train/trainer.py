"""One optimizer step: micro-batches, mixed precision, clipping, a loss that is not finite, memory that does not suffice."""

import ctypes
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from torchmae.errors import RunError
from torchmae.train import optim
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World, no_sync

logger = logging.getLogger(__name__)


class Trainer:
    """The moving parts of a training: call it on a batch with a learning rate, and the task's weights have moved.

    `micro_batch_size` is how many images a device takes at a time (None: not known yet; the first call finds out what fits).
    """

    def __init__(self, task: Any, world: World, plan: TrainConfig):
        self.task = task
        self.world = world
        self.clip_grad = plan.clip_grad
        self.requested_micro_batch_size = plan.micro_batch_size
        self.micro_batch_size: int | None = None
        if world.device.type == "cpu":
            keep_freed_memory(True)
        if plan.compile:
            task.compile()
        self.module = world.wrap(task, task.layers(), plan.fsdp)
        if plan.layer_decay is None:
            groups = optim.param_groups_weight_decay(task.model, plan.weight_decay)
        else:
            groups = optim.param_groups_layer_decay(
                task.model, task.layers(), plan.weight_decay, plan.layer_decay
            )
        self.optimizer = optim.OPTIMIZERS[plan.optimizer](groups, plan.betas)
        self.parameters = {n: p for n, p in task.model.named_parameters() if p.requires_grad}
        for parameter in (
            self.parameters.values()
        ):  # made now, so that resuming and the search for memory find it there
            self.optimizer.state[parameter] = optim.init_optimizer_state(plan.optimizer, parameter)
        kept = self.parameters if plan.ema is not None else {}
        self.ema = {name: parameter.detach().clone() for name, parameter in kept.items()}
        self.counted = [
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

    def __call__(self, batch: Any, lr: float, ema: float = 0.0) -> Tensor:
        """Moves the weights, and their average (if there is one, which keeps the share `ema` of itself); gives `[2]`, the loss
        and the gradient norm over all processes, without waiting for the device.

        If either is not finite, the step is left out, on the device itself: weights and moments stay as they are.
        """
        self.micro_batch_size = self.micro_batch_size or self.find_micro_batch_size(batch)
        num_micro_batches = -(-len(batch.images) // self.micro_batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.world.mean(self.accumulate(self.module, batch, num_micro_batches))
        if (
            self.scaler.is_enabled()
        ):  # a scaler looks at gradients only: one of them tells it of the loss
            first = self.counted[0].grad
            first.add_(self.world.match_layout(loss * 0, first))  # 0, or NaN
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.counted if p.grad is not None]
        norm = self.world.gather(nn.utils.get_total_norm(gradients))
        if self.clip_grad is not None:
            scale = (self.clip_grad / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(self.world.match_layout(scale, gradient))
        if not self.scaler.is_enabled():  # a scaler has found this out by itself
            found = (~torch.isfinite(loss + norm)).float()
            self.optimizer.found_inf = self.world.match_layout(found, self.counted[0])  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            weights = [parameter.detach() for parameter in self.parameters.values()]
            torch._foreach_lerp_(list(self.ema.values()), weights, 1 - ema)
        return torch.stack([loss, norm])

    def accumulate(self, module: nn.Module, batch: Any, num_micro_batches: int) -> Tensor:
        """Forward and backward over the micro-batches; the loss of the whole batch."""
        total = torch.zeros((), device=self.world.device)
        for i, micro_batch in enumerate(batch.chunks(num_micro_batches)):
            with no_sync(module, i < num_micro_batches - 1), torch.autocast(**self.autocast):
                loss = module(micro_batch)["loss"] * (len(micro_batch.images) / len(batch.images))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def find_micro_batch_size(self, batch: Any) -> int:
        """How many images fit at a time: as many as were wanted, half as many whenever memory runs out."""
        share, buffers = len(batch.images), [(b, b.clone()) for b in self.task.buffers()]
        num_micro_batches = -(-share // min(self.requested_micro_batch_size or share, share))
        while True:
            out_of_memory = False
            try:
                self.accumulate(self.task, next(iter(batch.chunks(num_micro_batches))), 1)
            except RuntimeError as error:  # torch.OutOfMemoryError is one too
                if not is_out_of_memory(error):
                    raise
                out_of_memory = True
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in buffers:  # a trial must not count among a BatchNorm's statistics
                buffer.copy_(before)
            if not self.world.any_rank(out_of_memory)[0]:
                return -(-share // num_micro_batches)
            gc.collect()
            keep_freed_memory(False)
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
            if num_micro_batches >= share:
                raise RunError(
                    "out of memory even with one image at a time: choose a smaller --model or --image-size, with a new --out"
                )
            num_micro_batches = min(share, 2 * num_micro_batches)
            if self.world.is_main:
                logger.info(
                    f"out of memory: going on with micro-batches of {-(-share // num_micro_batches)} images"
                )

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within it the task has the averaged weights, if there is an average: what is evaluated, and what a run shows."""
        pairs = [
            (parameter, self.ema[name]) for name, parameter in self.parameters.items() if self.ema
        ]
        swap(pairs)
        try:
            yield
        finally:
            swap(pairs)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Weights (the averaged ones, if there is an average), tensors to go on with, numbers: all in full, whatever the
        sharding (all processes must ask)."""
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
        return (
            weights,
            optimizer_state,
            {
                "micro_batch_size": self.micro_batch_size,
                "place": place_of(self.world.device),
                "scaler": self.scaler.state_dict(),
            },
        )

    def load(
        self,
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        metadata: dict[str, Any],
    ) -> None:
        """Takes over what `state` gave."""
        for name, value in self.task.model.state_dict().items():
            self.world.scatter_into(value, weights[name])
        for name, average in self.ema.items():
            self.world.scatter_into(average, weights[name])
            self.world.scatter_into(self.parameters[name], optimizer_state[f"raw.{name}"])
        for name, parameter in self.parameters.items():
            for kind, value in self.optimizer.state[parameter].items():
                self.world.scatter_into(value, optimizer_state[f"{kind}.{name}"])
        same = not self.requested_micro_batch_size and metadata["place"] == place_of(
            self.world.device
        )
        self.micro_batch_size = (
            metadata["micro_batch_size"] if same else None
        )  # searched again elsewhere
        self.scaler.load_state_dict(metadata["scaler"])


def keep_freed_memory(keep: bool) -> None:
    """Lets the C library keep the memory of freed tensors for the next ones. Left alone it gives back each large one at once,
    and every step pays for tens of thousands of fresh pages (measured: 3 to 5 % of a ViT-B step on 2 cores). Where memory is
    scarce that would leave holes too small for anything: `keep=False` is how it was, with all given back."""
    with suppress(AttributeError, OSError):  # another system, or another C library
        library = ctypes.CDLL("libc.so.6")
        if not keep:
            library.mallopt(M_MMAP_THRESHOLD, 1 << 17)
            library.mallopt(M_TRIM_THRESHOLD, 1 << 17)
            library.malloc_trim(0)
        elif library.mallopt(M_MMAP_THRESHOLD, 1 << 30) or library.mallopt(
            M_MMAP_THRESHOLD, 1 << 25
        ):  # by the version
            library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def swap(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Exchanges the values of each pair, without copying them."""
    for one, other in pairs:
        one.data, other.data = other.data, one.data


def place_of(device: torch.device) -> str:
    """What kind of device it is: memory that sufficed on one need not on another."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_out_of_memory(error: RuntimeError) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or "t allocate memory" in str(error)
    )
