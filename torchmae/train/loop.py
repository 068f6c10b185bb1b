"""fit(): the one loop behind every training. Step, log, save, evaluate; a task is only called."""

import logging
import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmae.errors import NOT_FINITE, RunError
from torchmae.train import optim
from torchmae.train.checkpoint import COOLER, Checkpoint, newest, save
from torchmae.train.config import B, BatchStream, Evaluator, Task, TrainConfig
from torchmae.train.distributed import World, gathered
from torchmae.train.log import Log, peak_memory_mb
from torchmae.train.trainer import Trainer

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 5  # steps in a row with a loss that is not finite, after which a run stops
SLOW_READINGS = 3  # log records in a row with much waiting for data, before advice is logged


@dataclass(frozen=True)
class Outcome:
    """How a training ended: steps done, and its last log record (None: it was finished before)."""

    step: int
    last: dict[str, Any] | None = None


def fit(
    task: Task[B],
    batches: BatchStream[B],
    plan: TrainConfig,
    run: Path,
    world: World,
    evaluators: Sequence[Evaluator] = (),
) -> Outcome:
    """Trains until `plan.steps`, from the newest checkpoint in the folder `run` if there is one.

    Raises:
        RunError: with exit code 65 when the loss stays not finite, 1 when memory or disk do not
            suffice, 128 + its number when a signal came (the step is finished and saved first).
        UserError: there are checkpoints, and all are damaged.
    """
    task.to(world.device)
    saved = world.on_main(lambda: newest(run))
    start = saved.step if saved else 0
    if saved and start >= plan.steps:
        task.model.load_state_dict(saved.model)
        return Outcome(start)
    trainer = Trainer(task, world, plan)
    if saved:
        trainer.load(saved.model, saved.optimizer, saved.metadata)
    meter = Meter(start, batches.batch_size, saved.metadata.get("meter") if saved else None)
    agenda = Agenda(plan, world)
    task.train()
    with stop_signals() as stop, Log(run, plan, start, batches.batch_size, world) as log:
        if saved:
            log.say(f"resuming from step {start} of {plan.steps}")
            if evaluation_is_due(start, plan) and log.lacks_evaluation():  # stopped between the two
                evaluate(trainer, evaluators, start, log)
        loader = iter(batches.loader(start, plan.steps, plan.workers, world.device.type == "cuda"))
        for step in range(start, plan.steps):
            with meter.waiting():
                batch = next(loader).to(world.device)
            log.bad_files(batch.bad)
            lr = optim.lr_at(step, plan.steps, plan.warmup_steps, plan.lr, plan.min_lr)
            meter.add(trainer(batch, lr, optim.ema_decay_at(step, plan.ema)))
            with torch.no_grad():
                task.after_step(step)
            log.advance()

            done = step + 1
            if done == plan.steps or done % plan.log_every == 0:
                record = log_progress(trainer, batch, lr, meter, log)
            due = agenda.due(done, stop)
            if due.save:
                save_checkpoint(trainer, done, run, meter)
                agenda.saved_at = meter.restart()
            if due.evaluate:
                evaluate(trainer, evaluators, done, log)
                agenda.evaluated_at = meter.restart()
            if due.stop:
                raise stopped(done, plan, stop)
    return Outcome(plan.steps, record)


def evaluate(trainer: Trainer[B], evaluators: Sequence[Evaluator], done: int, log: Log) -> None:
    """Logs what the evaluators measure on the EMA weights, or the weights where there is no EMA."""
    trainer.task.eval()
    with torch.no_grad(), trainer.ema_weights(), gathered(trainer.module):
        for evaluator in evaluators:
            for name, value in evaluator(done):
                log.write({"step": done, name: value})
    trainer.task.train()


def save_checkpoint(trainer: Trainer[B], done: int, run: Path, meter: "Meter") -> None:
    """Gathers the state from all processes; the main one writes it."""
    weights, optimizer_state, metadata = trainer.state()
    metadata["meter"] = meter.state()
    checkpoint = Checkpoint(done, weights, optimizer_state, metadata)
    trainer.world.on_main(lambda: save(run, checkpoint))


def log_progress(
    trainer: Trainer[B], batch: B, lr: float, meter: "Meter", log: Log
) -> dict[str, Any]:
    """Logs the steps since the last record, and what is wrong with them.

    Raises:
        RunError: the loss was not finite for `MAX_BAD_STEPS` steps in a row, or at the end of the
            training in the last step, or no step since the last record was.
    """
    world = trainer.world
    with torch.no_grad():
        diagnosed = trainer.task.diagnose(batch)
        extra = {name: float(world.mean(value)) for name, value in diagnosed.items()}
    record, bad = meter.read()
    record |= {**extra, "lr": lr, "peak_memory_mb": peak_memory_mb(world.device)}
    log.write(record)
    if meter.is_slow():
        log.say(
            f"{record['wait']:.0%} of the time is spent waiting for data; try more --workers "
            f"(now {log.plan.workers}), smaller files (mae pack) or --cache memory"
        )
    if bad:
        log.say(f"loss or gradient not finite, step not applied: {', '.join(map(str, bad))}")
    ends_badly = meter.step == log.plan.steps and (
        record["loss"] is None or not math.isfinite(meter.last_loss)
    )
    if meter.bad_in_a_row >= MAX_BAD_STEPS or ends_badly:
        raise RunError(
            f"the loss was not finite for {meter.bad_in_a_row} steps in a row, up to step "
            f"{meter.step}. None was applied; checkpoints in {log.run}, if there are any, are "
            f"good. {COOLER}",
            NOT_FINITE,
        )
    return record


def stopped(done: int, plan: TrainConfig, stop: "Stop") -> RunError:
    """The error of a run that a signal stopped, also where another process got the signal."""
    return RunError(
        f"stopped at step {done} of {plan.steps} and saved; the same command resumes it",
        128 + (stop.number or signal.SIGTERM),
    )


def finished_line(plan: TrainConfig, run: Path, flag: str = "--from") -> str:
    """What to say of a run that is finished already: how to train longer.

    Args:
        plan: of the run.
        run: its folder.
        flag: what starts a new run from its weights; empty where a verb has none.
    """
    head = f"{run} is finished ({plan.steps:,} steps)."
    if optim.can_lengthen(plan, plan.steps):
        return f"{head} The same command with more --epochs continues it."
    start = f" with {flag} {shlex.quote(str(run))}" if flag else ""
    return (
        f"{head} Its learning rate has fallen to {plan.min_lr:g}; "
        f"for a longer run use a new --out{start}."
    )


def evaluation_is_due(done: int, plan: TrainConfig) -> bool:
    """Whether step `done` is the first at or after a multiple of `evaluate_steps` (a float)."""
    every = plan.evaluate_steps
    return (
        every is not None and done > 0 and int(done / every + 1e-9) > int((done - 1) / every + 1e-9)
    )


class Due(NamedTuple):
    """What is to be done after a step, the same in every process."""

    save: bool
    evaluate: bool
    stop: bool


class Agenda:
    """When to save, evaluate and stop; minutes are those of the main process's clock.

    Attributes:
        saved_at: when the last checkpoint was finished, by `time.monotonic`; to be set.
        evaluated_at: the same of the last evaluation.
    """

    def __init__(self, plan: TrainConfig, world: World):
        self.plan = plan
        self.world = world
        self.saved_at = self.evaluated_at = time.monotonic()

    def due(self, done: int, stop: "Stop") -> Due:
        """What is due after `done` steps (every process must call this)."""
        plan = self.plan
        now = time.monotonic()
        late = now - self.evaluated_at > 60 * plan.evaluate_minutes
        by_step = plan.evaluate_steps is not None
        stopping, saving, evaluating = self.world.any_rank(
            stop.number is not None,
            self.world.is_main and now - self.saved_at > 60 * plan.save_minutes,
            evaluation_is_due(done, plan) if by_step else self.world.is_main and late,
        )
        if done == plan.steps:
            return Due(save=True, evaluate=True, stop=False)
        return Due(save=stopping or saving, evaluate=evaluating and not stopping, stop=stopping)


class Meter:
    """Losses and gradient norms since the last log record, on the device; speed; waiting for data.

    Attributes:
        step: up to which step records were read.
        bad_in_a_row: the last steps that were not finite, without a good one between them.
        last_loss: of the last step that was read.

    Args:
        step: steps done before.
        batch_size: images of a step.
        saved: what `state` returned at that step, so that the next record is as if nothing had
            been interrupted.
    """

    def __init__(self, step: int, batch_size: int, saved: dict[str, Any] | None = None):
        saved = saved or {"unlogged": [], "bad_in_a_row": 0}
        unlogged = saved["unlogged"]
        self.step = step - len(unlogged)
        self.batch_size = batch_size
        self.bad_in_a_row = saved["bad_in_a_row"]
        self.slow_in_a_row = 0
        self.advised = False
        self.last_loss = 0.0
        nan = math.nan
        self.values = [torch.tensor([nan if x is None else x for x in pair]) for pair in unlogged]
        self.restart()

    def restart(self) -> float:
        """Restarts the clock, so that saving and drawing do not count as training; returns now."""
        self.began = time.monotonic()
        self.steps = 0
        self.waited = 0.0
        return self.began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def add(self, values: Tensor) -> None:
        """Takes loss and gradient norm of one step, [2]."""
        self.values.append(values)
        self.steps += 1

    def read(self) -> tuple[dict[str, Any], list[int]]:
        """The record of the steps since the last one, and which of them were not finite.

        Steps are 1-based here, as in the log. The loss is the mean over the finite steps.
        """
        values = self.pairs()
        seconds = time.monotonic() - self.began
        finite = [math.isfinite(sum(pair)) for pair in values]
        for good in finite:
            self.bad_in_a_row = 0 if good else self.bad_in_a_row + 1
        self.last_loss = values[-1][0]
        bad = [self.step + 1 + i for i, good in enumerate(finite) if not good]
        losses = [loss for (loss, _), good in zip(values, finite) if good]
        self.step += len(values)
        wait = self.waited / seconds
        record = {
            "step": self.step,
            "loss": sum(losses) / len(losses) if losses else None,
            "grad_norm": values[-1][1] if finite[-1] else None,
            "images_per_s": self.steps * self.batch_size / seconds,
            "wait": wait,
            "skipped": len(bad),
        }
        self.slow_in_a_row = self.slow_in_a_row + 1 if wait > 0.1 else 0
        self.values = []
        self.restart()
        return record, bad

    def pairs(self) -> list[list[float]]:
        """Loss and gradient norm of the steps since the last record; the host waits for them."""
        if not self.values:
            return []
        device = self.values[-1].device
        pairs: list[list[float]] = torch.stack([v.to(device) for v in self.values]).tolist()
        return pairs

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the steps that no record holds yet (None: not finite), and a streak."""
        pairs = [[x if math.isfinite(x) else None for x in pair] for pair in self.pairs()]
        return {"unlogged": pairs, "bad_in_a_row": self.bad_in_a_row}

    def is_slow(self) -> bool:
        """True once: after three records in a row with over 10 % of the time spent waiting."""
        first = self.slow_in_a_row >= SLOW_READINGS and not self.advised
        self.advised |= first
        return first


@dataclass
class Stop:
    """The signal that this process got, if any."""

    number: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT are noted, and the step is finished first; a second one acts at once."""
    stop = Stop()
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        stop.number = number
        # Not by logging: a signal may come while a handler is writing.
        print(f"\n{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr)  # noqa: T201
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs that handles signals
        before = {}
    try:
        yield stop
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)
