"""A run on a text screen: how far it is, its curves in block characters, the verdict in words."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import Any, NamedTuple

from torchmae import manifest, runfolder
from torchmae.errors import printable
from torchmae.report.curves import panels
from torchmae.report.words.health import steps_of, words_of

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:-=+*#@"  # where the terminal has no block characters
TALL = 5  # lines of the loss; of the others one
RECENT = 10  # records whose speed is that of now
NAME = 18  # columns of a curve's name

# What happens to a run, and how it is said.
TRAINING, FINISHED, STOPPED, STARTING = "training", "finished", "stopped", "starting"


class State(NamedTuple):
    """A run as its files show it.

    Attributes:
        config: its config.json; None where that is not written yet.
        records: of its log.
        steps: of the whole training; None where that is not known.
        what: training, finished, stopped or starting.
    """

    run: Path
    config: Mapping[str, Any] | None
    records: Sequence[Mapping[str, Any]]
    steps: int | None
    what: str

    @property
    def losses(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if "loss" in record]

    @property
    def step(self) -> int:
        return max([0, *(record["step"] for record in self.records)])

    @property
    def ended(self) -> bool:
        return self.what in (FINISHED, STOPPED)


def look(run: Path, active: bool | None) -> State:
    """The state of a run.

    Args:
        run: its folder.
        active: whether a process trains it; None: the system does not tell, so a log that has
            been silent for long says that none does.

    Raises:
        UserError: config.json is damaged.
    """
    if not (run / runfolder.CONFIG).is_file():
        return State(run, None, [], None, STOPPED if active is False else STARTING)
    with manifest.verification(False):  # a damaged run can be looked at too
        config = runfolder.read_any_config(run)
    records = runfolder.read_log(run)
    steps = steps_of(config)
    done = max([0, runfolder.last_step(run), *(record["step"] for record in records)])
    finished = steps is None or done >= steps
    if active is None:
        active = not finished and silence(run) < 600
    return State(
        run, config, records, steps, TRAINING if active else FINISHED if finished else STOPPED
    )


def silence(run: Path) -> float:
    """Seconds since a line was logged; infinite where there is no log."""
    try:
        return time.time() - (run / runfolder.LOG).stat().st_mtime
    except OSError:
        return math.inf


def screen(state: State, width: int = 80, blocks: str = BLOCKS) -> list[str]:
    """The lines of a screen, none longer than `width` but the path of the last picture, which is
    there to be copied."""
    lines = [*head(state, width, blocks), "", *curves(state, width, blocks)]
    for said in verdict(state):
        lines += wrap(printable(said), width, subsequent_indent="  ") or [""]
    picture = last_picture(state.run)
    last = [] if picture is None else ["", printable(f"last picture: {picture}")]
    return [*(printable(line)[:width] for line in lines), *last]


def head(state: State, width: int, blocks: str) -> Iterator[str]:
    """What it is, how far, how fast, until when."""
    config = state.config or {}
    about = [config.get("verb"), (config.get("config") or {}).get("model"), state.run]
    yield f"{state.what}: {', '.join(str(one) for one in about if one)}"
    if state.config is None:
        yield "no config.json yet: the images are being looked at, or the start failed"
        return
    if state.steps:
        share = min(1.0, state.step / state.steps)
        room = max(10, width - 40)
        bar = blocks[-1] * int(share * room)
        yield f"[{bar:{room}}] {share:4.0%}  step {state.step:,} of {state.steps:,}"
    elif state.records:
        yield f"step {state.step:,}"
    yield progress_line(state)


def progress_line(state: State) -> str:
    """Speed, waiting for data, and the time that is left, in one line; also for a log file."""
    last = state.losses[-RECENT:]
    speeds = [r["images_per_s"] for r in last if number(r.get("images_per_s"))]
    parts = []
    if last and number(last[-1].get("loss")):
        parts.append(f"loss {last[-1]['loss']:.4f}")
    if speeds:
        parts.append(f"{median(speeds):,.1f} images/s")
    waits = [r["wait"] for r in last if number(r.get("wait"))]
    if waits:
        parts.append(f"waiting for data {sum(waits) / len(waits):.0%}")
    left = seconds_left(state, speeds)
    if left is not None:
        parts.append(f"about {clock(left)} left")
    return "  ".join(parts) or "nothing has been logged yet"


def seconds_left(state: State, speeds: Sequence[float]) -> float | None:
    """Seconds of the steps that are left, at the speed of now."""
    seen, step = state.losses[-1].get("images_seen") if state.losses else None, state.step
    if state.what != TRAINING or not (speeds and state.steps and step and number(seen)):
        return None
    return (state.steps - step) * (seen / state.losses[-1]["step"]) / median(speeds)


def clock(seconds: float) -> str:
    """Such as 0:45 or 13:02:07."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def curves(state: State, width: int, blocks: str) -> Iterator[str]:
    """Each logged value: its name, its curve, its first and last number."""
    room = max(10, width - NAME - 24)
    for title, names in panels([dict(record) for record in state.records]).items():
        values = [r[names[0]] for r in state.records if names and number(r.get(names[0]))]
        if not values:
            continue
        if len(values) == 1:
            yield f"{title:{NAME}.{NAME}} {values[0]:.4g}, one record so far"
            continue
        rows = curve(values, room, TALL if title == "loss" else 1, blocks)
        ends = f"{values[0]:.4g} to {values[-1]:.4g}"
        for k, row in enumerate(rows):
            last = k == len(rows) - 1
            yield f"{title if last else '':{NAME}.{NAME}} {row:{room}} {ends if last else ''}"


def curve(values: Sequence[float], width: int, height: int, blocks: str = BLOCKS) -> list[str]:
    """A curve as text: at most `width` columns, each the mean of a span of the values; few values
    take several columns each.

    Args:
        values: finite, at least one.
        width: columns.
        height: lines, each of eight levels.
        blocks: a character for each level, from empty to full.
    """
    columns = min(width, len(values))
    cuts = [k * len(values) // columns for k in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high, top = min(means), max(means), len(blocks) - 1
    levels = [1 + round((m - low) / (high - low or 1) * (height * top - 1)) for m in means]
    wide = width // columns
    return [
        "".join(wide * blocks[min(top, max(0, level - row * top))] for level in levels)
        for row in reversed(range(height))
    ]


def verdict(state: State) -> Iterator[str]:
    """What is said of the run in words."""
    if state.config is None:
        return
    yield ""
    for word in words_of(state.run, dict(state.config)):
        yield f"{MARKS[word.kind]} {word.text}"


MARKS = {"bad": "!", "good": "+", "": "-"}


def last_picture(run: Path) -> Path | None:
    """The newest picture of a training."""
    return max((run / runfolder.PICTURES).glob("step-*.png"), default=None)


def number(value: object) -> bool:
    """Whether a logged value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
