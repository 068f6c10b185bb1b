"""What a person sees of a run: the progress bar, log.jsonl, TensorBoard, curves.png, bad-files.jsonl."""

import json
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchmae.errors import missing_extra
from torchmae.train.checkpoint import write_text


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
        self.bar = tqdm(total=steps, initial=start, unit=" steps", dynamic_ncols=True, disable=None, smoothing=0.05)
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
            self.measured = "".join(f"  {name} {value:.4g}" for name, value in record.items() if name != "step")
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
            print(f"step {step}/{self.steps}  {text}  {duration(left)} left", flush=True)

    def say(self, message: str) -> None:
        """A line for the user that does not tear the progress bar."""
        if self.active:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()

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


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl."""
    return read_lines(run / "log.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; one that a kill cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def note_bad_files(run: Path, files: Iterable[tuple[str, str]]) -> list[str]:
    """Adds files that could not be read to bad-files.jsonl, each once in the life of the run; gives the new names."""
    path = run / "bad-files.jsonl"
    known = {entry["file"] for entry in read_lines(path)}
    new = {name: reason for name, reason in files if name not in known}
    if new or not path.exists():
        with path.open("a") as out:
            out.writelines(json.dumps({"file": name, "reason": reason}) + "\n" for name, reason in new.items())
    return list(new)


def panels(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What is drawn together: every loss, the learning rate, what evaluators measured (else the gradient norm), speed."""
    names = dict.fromkeys(name for record in records for name in record)
    measured = [name for name in dict.fromkeys(n for r in records if "loss" not in r for n in r) if name != "step"]
    return {
        "loss": [name for name in names if name == "loss" or name.startswith("loss of")],
        "learning rate": ["lr"],
        **({", ".join(measured): measured} if measured else {"gradient norm": ["grad_norm"]}),
        "images per second": ["images_per_s"],
    }


def draw_curves(run: Path) -> Path | None:
    """curves.png from log.jsonl, four panels."""
    records = read_log(run)
    if not records:
        return None

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, (title, shown) in zip(figure.subplots(2, 2).flat, panels(records).items()):
        for name in shown:
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            axis.plot(*zip(*points), label=name, linewidth=1.2, marker="o" if len(points) < 10 else None, markersize=4)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(shown) > 1:
            axis.legend()
    path = run / "curves.png"
    partial = run / ".curves.partial.png"
    figure.savefig(partial, dpi=110)
    partial.replace(path)
    return path
