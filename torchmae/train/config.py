"""What the loop is told: how to train, and what a task, a stream of batches and an evaluator are."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class TrainConfig:
    """How to train. What stands between the lines does not decide the weights."""

    steps: int
    warmup_steps: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    clip_grad: float | None
    precision: str  # fp32, bf16 or fp16
    # ---
    compile: bool = False
    fsdp: bool = False
    workers: int = 0
    micro_batch_size: int | None = None
    log_every: int = 20
    save_minutes: float = 5.0
    evaluate_minutes: float = 3.0
    tensorboard: bool = False
    evaluate_steps: float | None = None  # between two evaluations, in place of minutes
    # ---
    least_lr: float = 0.0
    optimizer: str = "adamw"  # a name in optim.OPTIMIZERS
    layer_decay: float | None = None  # None: every layer learns at the same rate (pre-training)
    ema: float | None = (
        None  # decay of an average of the weights, which is what is evaluated and kept
    )


class Task(Protocol):
    """What is trained: a module whose call on a batch gives the loss, and all of whose weights are in `model`."""

    model: nn.Module
    exclude_from_grad_norm: frozenset[
        str
    ]  # parameters that gradient norm and clipping do not count: no other parameter hangs on them

    def layers(self) -> list[nn.Module]: ...
    def __call__(self, batch: Any) -> dict[str, Tensor]: ...
    def diagnose(self, batch: Any) -> dict[str, Tensor]:
        """More numbers for the log, asked for at log steps only, without gradients."""


@runtime_checkable
class BatchStream(Protocol):
    """The batches of any range of steps, in order, the same in every run."""

    @property
    def batch_size(self) -> int: ...

    def loader(self, start: int, stop: int, workers: int, pin_memory: bool) -> Iterable[Any]: ...


Evaluator = Callable[[int], Iterator[tuple[str, float]]]
