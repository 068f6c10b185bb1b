"""What the loop needs: how to train, and what a task, a stream of batches and an evaluator are.

Importable without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Shapes of the learning rate after the warm-up, in words.
SCHEDULES = {
    "cosine": "half a cosine over all steps",
    "wsd": "at the peak, then a decay over the last fifth of the steps",
}
DECAY_SHARE = 0.2  # of the steps, in wsd (Hägele et al. 2024: as good as a cosine)

BatchT = TypeVar("BatchT", bound="TrainBatch")  # Self, which beartype knows in whole classes only


@dataclass(frozen=True)
class Floor:
    """A value that `Task.diagnose` gives, and below which a training is stopped."""

    name: str
    least: float
    words: str  # what has gone wrong then, and what to do


@dataclass(frozen=True)
class TrainConfig:
    """How to train, with nothing left open."""

    # These decide the weights.
    steps: int
    warmup_steps: int
    lr: float  # the peak, for the whole batch
    weight_decay: float
    betas: tuple[float, float]
    clip_grad: float | None  # the largest gradient norm; None: no clipping
    precision: str  # fp32, bf16 or fp16

    # Runtime: these may change when a run is resumed.
    compile: bool = False
    fsdp: bool = False
    workers: int = 0
    micro_batch_size: int | None = None  # of one process; None: as many images as fit
    log_every: int = 20  # steps
    save_minutes: float = 5.0
    evaluate_minutes: float = 3.0
    trackers: tuple[str, ...] = ()  # names in trackers.TRACKERS
    image_flops: int | None = None  # operations of a step for an image, which the log adds up
    evaluate_steps: float | None = None  # between two evaluations, in place of evaluate_minutes
    views: int = 1  # how often a step shows each image of its batch; counted as so many images
    floor: Floor | None = None
    timeout_minutes: float = 10.0  # of the processes for each other, once the first step is done

    # These decide the weights too; the defaults are those of pre-training.
    schedule: str = "cosine"  # a name in SCHEDULES
    min_lr: float = 0.0  # where it ends
    optimizer: str = "adamw"  # a name in optim.OPTIMIZERS
    layer_decay: float | None = None  # None: one learning rate for every layer
    ema: float | None = None  # decay of the averaged weights, which are evaluated and saved


@runtime_checkable
class TrainBatch(Protocol):
    """One batch of this process, as far as the loop knows it: it counts, moves and splits it."""

    @property
    def images(self) -> Tensor: ...

    @property
    def bad(self) -> Sequence[tuple[str, str]]:
        """Name and reason of each file that could not be read."""

    @property
    def changed(self) -> Sequence[str]:
        """Names of files that were written to after training started."""

    def chunks(self: BatchT, parts: int, /) -> Sequence[BatchT]:
        """The batch in `parts` micro-batches of nearly equal size."""

    def to(self: BatchT, device: torch.device, /) -> BatchT: ...


B = TypeVar("B", bound=TrainBatch)
B_co = TypeVar("B_co", bound=TrainBatch, covariant=True)
B_contra = TypeVar("B_contra", bound=TrainBatch, contravariant=True)


@runtime_checkable
class Task(Protocol[B_contra]):
    """What is trained: an `nn.Module` that maps a batch to its loss.

    All that a checkpoint must hold of it (weights, buffers, an EMA teacher) is in `model`.
    """

    # Parameters that the gradient norm and clipping ignore: no other parameter depends on them.
    exclude_from_grad_norm: frozenset[str]

    if TYPE_CHECKING:  # from Python 3.12 on, isinstance() does not find submodules

        @property
        def model(self) -> nn.Module: ...

    def layers(self) -> list[nn.Module]:
        """The blocks in order: what FSDP shards one by one, and what layer decay counts."""

    def forward(self, batch: B_contra, /) -> dict[str, Tensor]:
        """`{"loss": ...}`, a scalar: the mean over the images of the batch."""

    def diagnose(self, batch: B_contra, /) -> dict[str, Tensor]:
        """More scalars for the log. Called at log steps only, without gradients."""

    def after_step(self, step: int, /) -> None:
        """Called after optimizer step `step` (0-based), applied or skipped, without gradients.

        For what follows the weights, such as an EMA teacher.
        """

    # Every nn.Module has these.
    def __call__(self, batch: B_contra, /) -> dict[str, Tensor]: ...
    def to(self, device: torch.device, /) -> object: ...
    def train(self, mode: bool = True, /) -> object: ...
    def eval(self) -> object: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def compile(self) -> object: ...


@runtime_checkable
class Waitable(Protocol):
    """An iterator of batches that may be left waiting, to look at something else."""

    def wait(self, seconds: float, /) -> bool:
        """Waits for the next batch, at most so long; returns whether it is there."""


@runtime_checkable
class BatchStream(Protocol[B_co]):
    """The batches of any range of steps, in order, the same in every run."""

    @property
    def batch_size(self) -> int:
        """Images of a step, of all processes together."""

    def loader(self, start: int, stop: int, workers: int, pin_memory: bool, /) -> Iterable[B_co]:
        """An iterator that is `Waitable` too lets signals be heard while nothing comes."""


Evaluator = Callable[[int], Iterator[tuple[str, float]]]  # steps done -> (name, value) pairs
