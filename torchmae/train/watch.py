"""What a training hears and tells beside its steps: signals, and news for the other processes."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torchmae.train.distributed import World

logger = logging.getLogger(__name__)

# The first ends a training after its step, the next one at once: but not what comes with it, as
# from a terminal that closes (its shell and the system both send SIGHUP) or from a batch system.
ALWAYS = (signal.SIGTERM, signal.SIGINT)
STOPPING = (*ALWAYS, getattr(signal, "SIGHUP", None))  # Windows has no other ones
SAVING = getattr(signal, "SIGUSR1", None)  # what SLURM can send some time before its SIGTERM
SAME_SECONDS = 1.0
LOOK_SECONDS = 0.2
NEWS_SECONDS = 1.0


class Interrupted(BaseException):
    """A signal came where it may end what is being done; not for those who catch `Exception`."""


@dataclass
class Heard:
    """What this process was told by signals, and what it does.

    Attributes:
        number: of the first signal that stops.
        save: a signal asked for a checkpoint.
        doing: in words; the other processes hear it.
        may_interrupt: a signal raises `Interrupted` at once.
    """

    number: int | None = None
    save: bool = False
    doing: str = "setting up"
    may_interrupt: bool = False
    came_at: float = 0.0
    before: dict[int, Any] = field(default_factory=dict)

    def hear(self, number: int, frame: object) -> None:
        """The handler. It writes nothing: a signal may come in the middle of any output."""
        if number == SAVING:
            self.save = True
            return
        if self.number is None:
            self.number = number
            self.came_at = time.monotonic()
            if self.may_interrupt:
                raise Interrupted
        elif time.monotonic() - self.came_at > SAME_SECONDS:
            signal.signal(number, self.before[number] or signal.SIG_DFL)
            signal.raise_signal(number)

    @contextmanager
    def interruptible(self, possible: bool) -> Iterator[None]:
        """A signal leaves the block with `Interrupted`, where that is possible."""
        self.may_interrupt = possible
        try:
            yield
        finally:
            self.may_interrupt = False

    def install(self) -> None:
        """Takes the place of the signals' handlers; `restore` gives it back."""
        for number in filter(None, (*STOPPING, SAVING)):
            nohup = number not in (*ALWAYS, SAVING) and signal.getsignal(number) == signal.SIG_IGN
            if not nohup:
                self.before[number] = signal.signal(number, self.hear)
        # torch's handler raises, in the middle of whatever is done, when a loading process dies.
        if hasattr(signal, "SIGCHLD"):
            self.before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def watching(world: World) -> Iterator[Heard]:
    """Notes SIGTERM, SIGINT, SIGHUP (unless it is ignored, as by nohup) and SIGUSR1.

    A thread says that a signal came, and publishes what this process does.
    """
    heard = Heard()
    done = threading.Event()
    # Elsewhere, whoever runs the main thread handles signals.
    handles = threading.current_thread() is threading.main_thread()

    def watch() -> None:
        said = False
        told = 0.0
        while not done.wait(LOOK_SECONDS):
            if heard.number is not None and not said:
                said = True
                if world.is_main:
                    name = signal.Signals(heard.number).name
                    logger.info(f"{name}: finishing the step, then saving")
            if time.monotonic() - told >= NEWS_SECONDS:
                told = time.monotonic()
                world.publish(heard.doing)

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        if handles:
            heard.install()
        yield heard
    finally:
        heard.restore()
        done.set()
        thread.join(NEWS_SECONDS)
