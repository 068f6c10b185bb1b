"""fit(): the one loop behind every training. Step, log, save, evaluate; it knows a task only by calling it."""

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmae.errors import RunError
from torchmae.runfolder import note_bad_files
from torchmae.train import optim
from torchmae.train.checkpoint import Checkpoint, newest, save
from torchmae.train.config import BatchStream, Evaluator, TrainConfig
from torchmae.train.distributed import World, gathered
from torchmae.train.log import Log, peak_memory_mb
from torchmae.train.trainer import Trainer

logger = logging.getLogger(__name__)

BAD_IN_A_ROW = 5  # steps with a loss that is not finite, after which a run gives up


WAITS = 3  # readings in a row with much waiting for data, after which the log says what would help


BROKEN_LOSS = 65  # the exit code then


@dataclass(frozen=True)
class Outcome:
    """How a training ended: steps done, and the last logged numbers (None if it had been finished before)."""

    step: int
    last: dict[str, Any] | None = None


def fit(
    task: Any,
    batches: BatchStream,
    plan: TrainConfig,
    run: Path,
    world: World,
    evaluators: Sequence[Evaluator] = (),
) -> Outcome:
    """Trains until `plan.steps`, from the newest checkpoint in `run` if there is one.

    Raises `RunError`: code 65 when the loss stays not finite, 1 when memory or disk do not suffice, 128 + its number when a
    signal stopped it (the step is finished and saved first).
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
    if saved and world.is_main:
        logger.info(f"going on from step {start} of {plan.steps}")
    log = Log(run, plan.steps, start, world.is_main, plan.tensorboard)
    meter = Meter(start, batches.batch_size)
    saved_at = evaluated_at = time.monotonic()

    def evaluate(done: int) -> None:
        task.eval()
        with torch.no_grad(), trainer.ema_weights(), gathered(trainer.module):
            for name, value in (pair for evaluator in evaluators for pair in evaluator(done)):
                log.write({"step": done, name: value})
        task.train()

    task.train()
    with stop_signals() as stop, log:
        if (
            saved and evaluation_is_due(start, plan) and log.lacks_evaluation()
        ):  # the stop came between the two
            evaluate(start)
        loader = iter(batches.loader(start, plan.steps, plan.workers, world.device.type == "cuda"))
        for step in range(start, plan.steps):
            with meter.waiting():
                batch = next(loader).to(world.device)
            for name in note_bad_files(run, batch.bad) if batch.bad else ():
                log.say(
                    f"bad file, replaced by another image: {name} (see {run / 'bad-files.jsonl'})"
                )
            lr = optim.lr_at(step, plan.steps, plan.warmup_steps, plan.lr, plan.least_lr)
            meter.add(trainer(batch, lr, optim.ema_decay_at(step, plan.ema)))
            log.advance()
            done, last = step + 1, step + 1 == plan.steps

            if last or done % plan.log_every == 0:
                with torch.no_grad():
                    extra = {
                        name: float(world.mean(value))
                        for name, value in task.diagnose(batch).items()
                    }
                record, bad = meter.read()
                record |= {**extra, "lr": lr, "peak_memory_mb": peak_memory_mb(world.device)}
                log.write(record)
                if meter.slowed():
                    log.say(
                        f"{record['wait']:.0%} of the time goes by waiting for images: what can help is more --workers (now "
                        f"{plan.workers}), smaller files (mae pack) or, for mae pretrain, --cache memory"
                    )
                if bad:
                    log.say(
                        f"loss or gradient not finite, step not applied: {', '.join(map(str, bad))}"
                    )
                if meter.streak >= BAD_IN_A_ROW:
                    raise RunError(
                        f"the loss was not finite for {meter.streak} steps in a row, up to step {done}. None was applied; "
                        f"the last checkpoint in {run} stands. With a new --out, try a lower --base-lr, "
                        "--clip-grad 1 or --precision fp32.",
                        BROKEN_LOSS,
                    )

            now = time.monotonic()
            stopping, saving, evaluating = world.any_rank(
                stop.number is not None,
                world.is_main and now - saved_at > 60 * plan.save_minutes,
                world.is_main and now - evaluated_at > 60 * plan.evaluate_minutes
                if plan.evaluate_steps is None
                else evaluation_is_due(done, plan),
            )
            if last or stopping or saving:
                everything = Checkpoint(done, *trainer.state())
                world.on_main(lambda: save(run, everything))  # noqa: B023 - called at once
                saved_at = time.monotonic()
                meter.restart()
            if last or (evaluating and not stopping):
                evaluate(done)
                evaluated_at = time.monotonic()
                meter.restart()
            if stopping and not last:
                code = 128 + (stop.number or signal.SIGTERM)
                raise RunError(
                    f"stopped at step {done} of {plan.steps} and saved; the same command goes on",
                    code,
                )
    return Outcome(plan.steps, record)


def evaluation_is_due(done: int, plan: TrainConfig) -> bool:
    """Whether step `done` is the first at or behind the end of a stretch of `evaluate_steps`, which need not be whole."""
    every = plan.evaluate_steps
    return (
        every is not None and done > 0 and int(done / every + 1e-9) > int((done - 1) / every + 1e-9)
    )


class Meter:
    """Losses and gradient norms between two log steps, left on the device; speed and the share of waiting for data."""

    def __init__(self, step: int, batch_size: int):
        self.step, self.batch_size, self.streak = step, batch_size, 0
        self.slow, self.told = 0, False
        self.values: list[Tensor] = []
        self.restart()

    def restart(self) -> None:
        """Begins the time measurement anew, so that saving and drawing do not count as training."""
        self.began, self.steps, self.waited = time.monotonic(), 0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def add(self, values: Tensor) -> None:
        self.values.append(values)
        self.steps += 1

    def read(self) -> tuple[dict[str, Any], list[int]]:
        """The record of the steps since the last reading, and which of them (1-based) were not finite."""
        values = torch.stack(
            self.values
        ).tolist()  # the one place where the host waits for the device
        seconds = time.monotonic() - self.began
        finite = [math.isfinite(sum(pair)) for pair in values]
        for good in finite:
            self.streak = 0 if good else self.streak + 1
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
        self.slow = self.slow + 1 if wait > 0.1 else 0
        self.values = []
        self.restart()
        return record, bad

    def slowed(self) -> bool:
        """True once: after the third reading in a row with more than 10 % of the time gone by waiting."""
        first = self.slow >= WAITS and not self.told
        self.told |= first
        return first


@dataclass
class Stop:
    """The signal that asked this process to stop, once it came."""

    number: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT only leave a note, and the step is finished first; the second one acts at once."""
    stop = Stop()
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        stop.number = number
        print(f"\n{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are somebody else's matter
        before = {}
    try:
        yield stop
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)
