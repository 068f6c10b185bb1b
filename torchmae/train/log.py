"""What a person sees of a run: the progress bar, log.jsonl, TensorBoard, curves.png, bad-files.jsonl."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchmae.disk import write_text
from torchmae.errors import missing_extra
from torchmae.runfolder import read_log

logger = logging.getLogger(__name__)


class Log:
    """Records of one run. In processes other than the main one it does nothing."""

    def __init__(self, run: Path, steps: int, start: int, active: bool, tensorboard: bool = False):
        self.run, self.steps, self.start, self.active = run, steps, start, active
        self.began = self.shown = time.monotonic()
        self.estimated, self.measured = False, ""
        self.writer: Any = None
        if not active:
            return
        # What was logged after the checkpoint that this process resumes from will be logged again.
        path = run / "log.jsonl"
        write_text(path, "".join(json.dumps(r) + "\n" for r in read_log(run) if r["step"] <= start))
        self.file = path.open("a", buffering=1)
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit=" steps",
            dynamic_ncols=True,
            disable=None,
            smoothing=0.05,
        )
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise missing_extra("tensorboard", "tensorboard") from error
            self.writer = SummaryWriter(str(run), purge_step=start)

    def lacks_evaluation(self) -> bool:
        """Whether nothing was logged at the step that this process resumes from but the training itself."""
        return not any(r["step"] == self.start and "loss" not in r for r in read_log(self.run))

    def advance(self) -> None:
        if self.active:
            self.bar.update()

    def write(self, record: dict[str, Any]) -> None:
        """One logged step: to the file and TensorBoard always, to the screen as a bar or, without a terminal, a line."""
        if not self.active:
            return
        self.file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if self.writer is not None and name != "step" and value is not None:
                self.writer.add_scalar(name, value, record["step"])
        if "loss" not in record:
            self.measured = "".join(
                f"  {name} {value:.4g}" for name, value in record.items() if name != "step"
            )
        if record.get("loss") is not None:
            self.show(record)

    def show(self, record: dict[str, Any]) -> None:
        """The numbers on the screen, and once the expected duration."""
        step, speed = record["step"], f"{record['images_per_s']:.1f} images/s"
        text = f"loss {record['loss']:.4f}{self.measured}  {speed}  waiting for data {record['wait']:.0%}"
        now = time.monotonic()
        left = (now - self.began) / (step - self.start) * (self.steps - step)
        if not self.estimated and now - self.began > 5 and left > 0:
            self.estimated = True
            self.say(f"expected duration from here: about {duration(left)} ({speed})")
        self.bar.set_postfix_str(text)
        if self.bar.disable and (now - self.shown > 15 or step == self.steps):
            self.shown = now
            logger.info(f"step {step}/{self.steps}  {text}  {duration(left)} left")

    def say(self, message: str) -> None:
        """A line for the user that does not tear the progress bar."""
        if self.active:
            logger.info(message)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.bar.close()
            self.file.close()
            if self.writer is not None:
                self.writer.close()


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory so far, in MB (10^6): on a GPU, of this process's tensors there; else all that this process held,
    libraries and decoded images included, workers not (None on systems that do not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6  # macOS counts bytes, Linux KiB
