"""What a person sees of a run: progress bar, messages, log.jsonl, trackers."""

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchmae.disk import write_text
from torchmae.errors import printable
from torchmae.runfolder import BAD_FILES, LOG, PICTURES, note_bad_files, read_log
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World, synchronize
from torchmae.train.speed import WARMUP_STEPS, duration, enough, expected_duration
from torchmae.train.trackers import open_trackers
from torchmae.train.trackers.tracker import Tracker

logger = logging.getLogger(__name__)

POWERS = [10**k for k in range(1, 12)]


class Log:
    """Records of one run. In processes other than the main one it does nothing.

    Args:
        run: the run folder.
        plan: its steps, and the trackers to write to.
        start: steps done before; what was logged after them will be logged again.
        batch_size: images of a step.
        world: only its main process logs.
    """

    def __init__(self, run: Path, plan: TrainConfig, start: int, batch_size: int, world: World):
        self.run = run
        self.plan = plan
        self.start = start
        self.batch_size = batch_size
        self.device = world.device
        self.active = world.is_main
        self.began = self.settled_at = self.shown_at = time.monotonic()
        self.taken = 0  # steps of this process
        self.estimated = False
        self.scores = ""  # what evaluators measured last
        self.unwritten: set[str] = set()  # what could not be written, and was said
        self.replaced: set[str] = set()  # bad files that were named
        self.changed: set[str] = set()  # files
        self.lines = b""  # of log.jsonl that are not on the disk
        self.trackers: dict[str, Tracker] = {}
        if not self.active:
            return
        records = [r for r in read_log(run) if r["step"] <= start]
        write_text(run / LOG, "".join(json.dumps(record) + "\n" for record in records))
        self.file = (run / LOG).open("ab", buffering=0)  # to know how much of a line was written
        self.bar = tqdm(
            total=plan.steps,
            initial=start,
            unit=" steps",
            dynamic_ncols=True,
            disable=None,
            smoothing=0.05,
        )
        self.trackers = open_trackers(plan.trackers, run, start)

    def lacks_evaluation(self) -> bool:
        """Whether no evaluation was logged at the step that this process resumes from."""
        return not any(r["step"] == self.start and "loss" not in r for r in read_log(self.run))

    def advance(self) -> None:
        """One step was taken. After the first ones it says once how long all will take."""
        if not self.active:
            return
        with self.never_ending("the progress bar"):
            self.bar.update()
        self.taken += 1
        if self.taken == WARMUP_STEPS:
            synchronize(self.device)  # the host runs ahead of a GPU
            self.settled_at = time.monotonic()
        counted = self.taken - WARMUP_STEPS
        last = self.start + self.taken == self.plan.steps
        if self.estimated or last or not enough(counted, time.monotonic() - self.settled_at):
            return
        synchronize(self.device)
        seconds = (time.monotonic() - self.settled_at) / counted
        self.say(expected_duration(seconds, self.start, self.plan.steps, self.batch_size))
        self.estimated = True

    def write(self, record: dict[str, Any]) -> None:
        """One record: to the file, to the trackers, and the loss to the screen."""
        if not self.active:
            return
        self.lines += f"{json.dumps(record)}\n".encode()
        self.write_lines()
        values = {
            name: value for name, value in record.items() if name != "step" and value is not None
        }
        for name, tracker in self.trackers.items():
            with self.never_ending(f"what {name} keeps"):
                tracker.scalars(record["step"], values)
        if "loss" not in record:
            named = (pair for pair in record.items() if pair[0] != "step")
            self.scores = "".join(f"  {name} {value:.4g}" for name, value in named)
        if record.get("loss") is not None:
            self.show(record)

    def picture(self, step: int) -> None:
        """The picture of a step, if one was drawn, to the trackers."""
        path = self.run / PICTURES / f"step-{step:08d}.png"
        if not (self.trackers and path.is_file()):
            return
        for name, tracker in self.trackers.items():
            with self.never_ending(f"what {name} keeps"):
                tracker.picture(step, path)

    def show(self, record: dict[str, Any]) -> None:
        """The numbers beside the bar or, without a terminal, every 15 s in a line."""
        step = record["step"]
        text = (
            f"loss {record['loss']:.4f}{self.scores}  {record['images_per_s']:.1f} images/s  "
            f"waiting for data {record['wait']:.0%}"
        )
        with self.never_ending("the progress bar"):
            self.bar.set_postfix_str(text)
        now = time.monotonic()
        if self.bar.disable and (now - self.shown_at > 15 or step == self.plan.steps):
            self.shown_at = now
            left = (now - self.began) / self.taken * (self.plan.steps - step)
            self.say(f"step {step}/{self.plan.steps}  {text}  {duration(left)} left")

    def bad_files(self, files: Sequence[tuple[str, str]]) -> None:
        """Names each file that could not be read once in the life of the run."""
        if not files:
            return
        new = list(dict(files))
        with self.never_ending(BAD_FILES):
            new = note_bad_files(self.run, files)
        for name in new:
            if name not in self.replaced:
                self.replaced.add(name)
                where = self.run / BAD_FILES
                self.say(f"bad file, replaced by another image: {printable(name)} (see {where})")

    def changed_files(self, names: Sequence[str]) -> None:
        """Names the first files that were written to meanwhile, then counts them."""
        for name in names:
            if name not in self.changed:
                self.changed.add(name)
                count = len(self.changed)
                what = (
                    printable(name)
                    if count <= 3
                    else f"{count:,} files"
                    if count in POWERS
                    else None
                )
                if what:
                    logger.warning(
                        f"{what} changed since training started (by its times); used as it is "
                        "now: a resumed or repeated run may differ"
                    )

    def write_lines(self) -> None:
        """Appends what is not in log.jsonl yet; on a full disk that is tried again."""
        with self.never_ending(LOG):
            while self.lines:
                self.lines = self.lines[self.file.write(self.lines) or 0 :]

    @contextmanager
    def never_ending(self, what: str, errors: type[Exception] = Exception) -> Iterator[None]:
        """No output may end a training: a failure is said once, and training continues.

        Trackers and tqdm raise whatever they like for a disk or a terminal that is gone.
        """
        try:
            yield
        except errors as error:
            if what not in self.unwritten:
                self.unwritten.add(what)
                reason = getattr(error, "strerror", None) or error
                logger.warning(f"{what} cannot be written ({reason}); training continues")

    def say(self, message: str) -> None:
        """A message of the main process."""
        if self.active:
            logger.info(message)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if not self.active:
            return
        with self.never_ending("the progress bar"):
            self.bar.close()
        self.write_lines()
        if self.lines:
            lost = self.lines.count(b"\n")
            logger.warning(
                f"{lost} line{'s' * (lost > 1)} of {self.run / LOG} could not be written"
            )
        self.file.close()
        for name, tracker in self.trackers.items():
            with self.never_ending(f"what {name} keeps"):
                tracker.close(error is None)


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory so far, in MB (10^6 bytes).

    On a GPU that of this process's tensors there; else all that this process held, libraries and
    decoded images included, workers not. None on systems that do not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6  # macOS counts bytes, Linux KiB


def restart_peak_memory(device: torch.device) -> None:
    """From here on `peak_memory_mb` knows only of what comes; it does not where Linux has no such
    switch (`/proc/self/clear_refs`)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
