"""fit(): the one loop behind every training. Step, log, save, evaluate; a task is only called."""

import logging
import math
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor

from torchmae.errors import NOT_FINITE, RunError
from torchmae.runfolder import checkpoint_folder
from torchmae.train import optim
from torchmae.train.checkpoint import COOLER, Checkpoint, newest, save
from torchmae.train.config import B, BatchStream, Evaluator, Task, TrainConfig, Waitable
from torchmae.train.distributed import World, gathered
from torchmae.train.log import Log, peak_memory_mb
from torchmae.train.trainer import Trainer
from torchmae.train.watch import LOOK_SECONDS, Heard, Interrupted, watching

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 5  # steps in a row with a loss that is not finite, after which a run stops
STALL_SECONDS = 30.0  # without a batch in some process, after which all save
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
    shown = batches.batch_size * plan.views
    meter = Meter(start, shown, saved.metadata.get("meter") if saved else None)
    agenda = Agenda(plan, world)
    task.train()
    with (
        watching(world) as heard,
        Log(run, plan, start, shown, world) as log,
        world.naming_absent(lambda: heard.doing, plan.timeout_minutes),
    ):
        session = Session(trainer, log, meter, agenda, heard, start)
        if saved:
            log.say(f"resuming from step {start} of {plan.steps}")
            # Stopped between the two; the main process alone looks, as it writes there.
            if evaluation_is_due(start, plan) and world.on_main(log.lacks_evaluation):
                session.evaluate(evaluators, start)
        loader = iter(batches.loader(start, plan.steps, plan.workers, world.device.type == "cuda"))
        for step in range(start, plan.steps):
            with meter.waiting():
                batch = session.next_batch(loader, step).to(world.device)
            heard.doing = f"computing step {step + 1}"
            log.bad_files(batch.bad)
            log.changed_files(batch.changed)
            lr = optim.lr_at(
                step, plan.steps, plan.warmup_steps, plan.lr, plan.min_lr, plan.schedule
            )
            meter.add(trainer(batch, lr, optim.ema_decay_at(step, plan.ema)))
            with torch.no_grad():
                task.after_step(step)
            log.advance()
            session.first_step_is_done()

            done = step + 1
            if done == plan.steps or done % plan.log_every == 0:
                record = log_progress(trainer, batch, lr, meter, log)
            due = agenda.due(done, heard)
            if due.save:
                session.save(done)
            if due.evaluate:
                session.evaluate(evaluators, done)
            if due.stop:
                raise stopped(done, plan, heard)
    return Outcome(plan.steps, record)


@dataclass
class Session(Generic[B]):
    """What is done between the steps of a training, and what that needs.

    Attributes:
        saved: the step of the newest checkpoint, 0 where there is none.
    """

    trainer: Trainer[B]
    log: Log
    meter: "Meter"
    agenda: "Agenda"
    heard: Heard
    saved: int
    limited: bool = False

    def save(self, done: int) -> None:
        """Gathers the state from all processes; the main one writes it, each step once."""
        if done == self.saved:
            return
        self.heard.doing = f"saving at step {done}"
        save_checkpoint(self.trainer, done, self.log, self.meter)
        self.saved = done
        self.agenda.saved_at = self.meter.restart()
        if self.heard.save:
            self.log.say(f"SIGUSR1: saved at step {done}")
            self.heard.save = False

    def first_step_is_done(self) -> None:
        """From now on processes wait for each other no longer than a step may take.

        The first one compiles, and searches for what fits into memory.
        """
        if not self.limited:
            self.trainer.world.limit_waits(self.log.plan.timeout_minutes)
            self.limited = True

    def next_batch(self, loader: Iterator[B], step: int) -> B:
        """The batch of a step. While some process has none, all come together again and again.

        So a signal is heard while nothing can be read, and what was trained is saved meanwhile.

        Raises:
            RunError: a signal came, or images cannot be loaded; the steps before are saved.
        """
        plan, world = self.log.plan, self.trainer.world
        batch: B | None = None
        failure: Exception | None = None
        while True:
            self.heard.doing = f"reading the images of step {step + 1}"
            try:
                if batch is None:
                    batch = self.arrival(loader, min(STALL_SECONDS, 20 * plan.timeout_minutes))
            except Exception as error:
                failure = error
            self.heard.doing = f"waiting for the others before step {step + 1}"
            stopping, missing, failing = world.any_rank(
                self.heard.number is not None, batch is None, failure is not None
            )
            if batch is not None and not (stopping or missing):
                break
            self.save(step)
            if failing:
                raise failure or RunError("another process cannot load its images, and says why")
            if stopping:
                raise stopped(step, plan, self.heard)
        return batch

    def arrival(self, loader: Iterator[B], seconds: float) -> B | None:
        """The next batch; None where none comes for so long, or a signal comes first."""
        end = time.monotonic() + seconds
        while isinstance(loader, Waitable) and not loader.wait(LOOK_SECONDS):
            if self.heard.number is not None or time.monotonic() > end:
                return None
        return next(loader)

    def evaluate(self, evaluators: Sequence[Evaluator], done: int) -> None:
        """Logs what evaluators measure on the EMA weights, or the weights where there is no EMA.

        Raises:
            RunError: a signal came meanwhile; the steps before are saved. Not with several
                processes, which may wait for each other inside.
        """
        trainer = self.trainer
        self.heard.doing = f"evaluating at step {done}"
        trainer.task.eval()
        try:
            with torch.no_grad(), trainer.ema_weights(), gathered(trainer.module):
                for evaluator in evaluators:
                    found = self.measure(evaluator, done)
                    if found:
                        self.log.write({"step": done, **dict(found)})
            self.log.picture(done)
        except Interrupted:
            self.save(done)
            raise stopped(done, self.log.plan, self.heard) from None
        trainer.task.train()
        self.agenda.evaluated_at = self.meter.restart()

    def measure(self, evaluator: Evaluator, done: int) -> list[tuple[str, float]]:
        """What one evaluator yields; nothing where it cannot write."""
        with (
            self.log.never_ending("what was evaluated", OSError),
            self.heard.interruptible(self.trainer.world.size == 1),
        ):
            return list(evaluator(done))
        return []


def save_checkpoint(trainer: Trainer[B], done: int, log: Log, meter: "Meter") -> None:
    """Gathers the state from all processes; the main one writes it."""
    weights, optimizer_state, metadata = trainer.state()
    metadata["meter"] = meter.state()
    checkpoint = Checkpoint(done, weights, optimizer_state, metadata)
    trainer.world.on_main(lambda: save(log.run, checkpoint, optim.trunk(log.plan)))


def log_progress(
    trainer: Trainer[B], batch: B, lr: float, meter: "Meter", log: Log
) -> dict[str, Any]:
    """Logs the steps since the last record, and what is wrong with them.

    Raises:
        RunError: the loss was not finite for `MAX_BAD_STEPS` steps in a row, or at the end of the
            training in the last two, in no step since the last record or, in one of at most
            `MAX_BAD_STEPS`, in the last; a value is below the floor of the plan.
    """
    world = trainer.world
    with torch.no_grad():
        diagnosed = trainer.task.diagnose(batch)
        extra = {name: float(world.mean(value)) for name, value in diagnosed.items()}
    record, bad = meter.read()
    if log.plan.image_flops is not None:
        record["flops"] = log.plan.image_flops * record["images_seen"]
    record |= {**extra, "lr": lr, "peak_memory_mb": peak_memory_mb(world.device)}
    log.write(record)
    floor = log.plan.floor  # the mean over processes, so that all of them stop
    if floor is not None and extra.get(floor.name, floor.least) < floor.least:
        raise RunError(
            f"step {meter.step}: {floor.name} is {extra[floor.name]:.2g}, below {floor.least:g}: "
            f"{floor.words}"
        )
    if meter.is_slow():
        log.say(
            f"{record['wait']:.0%} of the time is spent waiting for data; try more --workers "
            f"(now {log.plan.workers}), smaller files (mae pack) or --cache memory"
        )
    if bad:
        log.say(f"loss or gradient not finite, step not applied: {', '.join(map(str, bad))}")
    # At the end no good step may follow any more. One bad step is skipped as anywhere else, so that
    # a long training does not end badly each time that it is resumed; where there are too few steps
    # for a streak, the last loss has to be finite.
    too_short = log.plan.steps <= MAX_BAD_STEPS and not math.isfinite(meter.last_loss)
    ends_badly = meter.step == log.plan.steps and (
        record["loss"] is None or meter.bad_in_a_row > 1 or too_short
    )
    if meter.bad_in_a_row >= MAX_BAD_STEPS or ends_badly:
        raise RunError(
            f"the loss was not finite for {meter.bad_in_a_row} steps in a row, up to step "
            f"{meter.step}. None was applied; checkpoints in {log.run}, if there are any, are "
            f"good. {COOLER}",
            NOT_FINITE,
        )
    return record


def stopped(done: int, plan: TrainConfig, heard: Heard) -> RunError:
    """The error of a run that a signal stopped, also where another process got the signal."""
    return RunError(
        f"stopped at step {done} of {plan.steps} and saved; the same command resumes it"
        if done
        else f"stopped before the first of {plan.steps} steps; the same command starts again",
        128 + (heard.number or signal.SIGTERM),
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
    trunk = optim.trunk(plan)
    if trunk is not None and checkpoint_folder(run, trunk).is_dir():
        return (
            f"{head} The same command with more --epochs continues it from step {trunk:,}, before "
            "the decay, and replaces its weights."
        )
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

    def due(self, done: int, heard: Heard) -> Due:
        """What is due after `done` steps (every process must call this)."""
        plan = self.plan
        now = time.monotonic()
        late = now - self.evaluated_at > 60 * plan.evaluate_minutes
        by_step = plan.evaluate_steps is not None
        stopping, saving, evaluating = self.world.any_rank(
            heard.number is not None,
            heard.save or (self.world.is_main and now - self.saved_at > 60 * plan.save_minutes),
            evaluation_is_due(done, plan) if by_step else self.world.is_main and late,
        )
        if done == plan.steps:
            return Due(save=True, evaluate=True, stop=False)
        saving |= done == optim.trunk(plan)  # a longer run begins there
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
        self.waited += time.monotonic() - max(began, self.began)  # a checkpoint may lie between

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
            "images_seen": self.step * self.batch_size,
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
