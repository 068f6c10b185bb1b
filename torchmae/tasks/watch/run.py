"""`mae watch`: a run on the console, from another terminal."""

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from torchmae.errors import UserError
from torchmae.report.console import ASCII, BLOCKS, State, look, progress_line, screen
from torchmae.runfolder import CONFIG
from torchmae.settings.options import check_ranges
from torchmae.tasks.watch.config import Watch
from torchmae.train.checkpoint import is_locked

logger = logging.getLogger(__name__)


def run(config: Watch) -> str:
    """Shows a run until it ends, or once.

    Returns:
        How it is: "training", "finished", "stopped" or "starting".

    Raises:
        UserError: there is no such folder, or it holds no run.
    """
    check_ranges(config)
    folder = Path(config.folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the run folder of a training")
    if is_locked(folder) is False and not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} is not a run folder (it has no {CONFIG}), and no training is starting there"
        )
    if config.once:
        state = look(folder, is_locked(folder))
        logger.info("\n".join(screen(state, *sizes())))
        return state.what
    show = on_terminal if sys.stdout.isatty() else by_line
    try:
        return show(states(folder, config.seconds))
    except KeyboardInterrupt:
        return "left"


def states(folder: Path, seconds: float) -> Iterator[State]:
    """The state now and again, until the run has ended."""
    while True:
        state = look(folder, is_locked(folder))
        yield state
        if state.ended:
            return
        time.sleep(seconds)


def sizes() -> tuple[int, str]:
    """Columns of the terminal, and what draws curves on it."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return columns(), ASCII
    return columns(), BLOCKS


def columns() -> int:
    """Columns of the terminal; one stays free, since some wrap at the last."""
    return max(40, shutil.get_terminal_size().columns - 1)


def on_terminal(found: Iterator[State]) -> str:
    """Draws each state over the last one."""
    drawn, what = 0, ""
    for state in found:
        (width, blocks), what = sizes(), state.what
        lines = screen(state, width, blocks)
        lines = lines[: max(5, shutil.get_terminal_size().lines - 2)]  # what scrolled stays
        up = f"\x1b[{drawn}F" if drawn else ""
        sys.stdout.write(up + "\x1b[J" + "\n".join(lines) + "\n")
        sys.stdout.flush()
        drawn = sum(1 + max(0, len(line) - 1) // (width + 1) for line in lines)
    return what


def by_line(found: Iterator[State]) -> str:
    """A line for each state with a new record, then all of the last one."""
    step, last = -1, None
    for last in found:
        if last.step > step and not last.ended:
            step = last.step
            of = f" of {last.steps:,}" if last.steps else ""
            logger.info(f"step {step:,}{of}  {progress_line(last)}")
    assert last is not None
    logger.info("\n".join(screen(last, *sizes())))
    return last.what
