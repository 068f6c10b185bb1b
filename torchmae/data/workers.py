"""The items of a data set, made elsewhere: waited for with a limit, named when slow, started again.

Worker processes make them, or a thread of this process where there are none. So the main thread
never waits inside a read, which no signal interrupts where a network file system is gone.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader

from torchmae.data.sources.source import Source
from torchmae.errors import RunError, UserError, printable

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

POLL = 0.2  # seconds after which who waits for an item can look at something else
STALL_SECONDS = 30.0  # without an item, after which the files that are being read are named
MAX_DEATHS = 3  # of workers in a row, without an item, after which none are started again

# What a worker says of itself, in memory that all processes share: its number, and that of the
# image which it reads (-1: none).
PID, SAMPLE = 0, 1


@runtime_checkable
class ImageDataset(Protocol[T_co]):
    """A data set whose items are made of images of a source."""

    @property
    def source(self) -> Source: ...
    def __getitem__(self, item: int, /) -> T_co: ...


class Here(threading.local):
    """Where this thread notes which image it reads; None: nowhere."""

    slot: Any = None


HERE = Here()


@contextmanager
def reading(sample: int) -> Iterator[None]:
    """Notes that this thread reads an image, so that others can say where it is stuck."""
    if HERE.slot is None:
        yield
        return
    HERE.slot[SAMPLE] = sample
    try:
        yield
    finally:
        HERE.slot[SAMPLE] = -1


class Answer(NamedTuple):
    """An item, or the error in its place."""

    item: Any = None
    error: BaseException | None = None


class Maker(Generic[T]):
    """Makes items in a thread; it does not know the `Loading`, whose end is also its own."""

    def __init__(self, dataset: ImageDataset[T], items: range, workers: int, pin_memory: bool):
        self.dataset = dataset
        self.items = items  # that are not made yet
        self.workers = workers
        self.pin_memory = pin_memory
        on_gpu = pin_memory and torch.cuda.is_available()
        self.gpu = torch.cuda.current_device() if on_gpu else None
        self.shared = multiprocessing.RawArray("q", [-1] * 2 * max(1, workers))
        self.slots = np.frombuffer(self.shared, dtype=np.int64).reshape(-1, 2)
        self.requests: SimpleQueue[bool] = SimpleQueue()
        self.answers: SimpleQueue[Answer] = SimpleQueue()
        self.iterator: Iterator[T] | None = None
        self.children: list[Any] = []
        self.deaths = 0  # since the last item

    def serve(self) -> None:
        """What the thread does: makes an item for each request, until one is False."""
        if self.gpu is not None:  # a thread has its own; pinning would take memory of GPU 0
            torch.cuda.set_device(self.gpu)
        HERE.slot = self.slots[0]  # for a worker it is its own
        while self.requests.get():
            try:
                self.answers.put(Answer(self.make()))
            except BaseException as error:
                self.answers.put(Answer(error=error))
        self.iterator = None

    def make(self) -> T:
        """The next item. What dead workers had begun, new ones make again: the same items.

        Raises:
            RunError: workers died again and again.
        """
        while True:
            try:
                if self.iterator is None:
                    self.iterator = self.start()
                item = next(self.iterator)
            except StopIteration:
                raise
            except Exception as error:
                died = self.dead_worker(error)
                if died is None:
                    raise plain(error) from error
                self.iterator = None
                self.deaths += 1
                if self.deaths == MAX_DEATHS:
                    advice = (
                        OOM if "SIGKILL" in died else "A decoder cannot bear this file: remove it"
                    )
                    raise RunError(f"{died}, {MAX_DEATHS} times in a row. {advice}") from error
                logger.warning(f"{died}; started again, with the same batches")
                continue
            self.items = self.items[1:]
            self.deaths = 0
            return item

    def start(self) -> Iterator[T]:
        """The items that are left, by new workers."""
        self.slots[:] = -1
        before = multiprocessing.active_children()
        loader: DataLoader[T] = DataLoader(
            self.dataset,  # type: ignore[arg-type]  # nothing else of a Dataset is used
            batch_size=None,
            sampler=self.items,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=partial(start_worker, shared=self.shared) if self.workers else None,
            generator=torch.Generator(),  # it draws a seed, which would change torch's own state
        )
        iterator = iter(loader)
        self.children = [one for one in multiprocessing.active_children() if one not in before]
        return iterator

    def dead_worker(self, error: Exception) -> str | None:
        """What became of a worker that died, in words; the others are ended. None: all live."""
        for _ in range(20):  # its pipes are closed a moment before it is known to be dead
            dead = [child for child in self.children if child.exitcode not in (None, 0)]
            if dead or not isinstance(error, RuntimeError | OSError | EOFError):
                break
            time.sleep(0.02)
        if not dead:
            return None
        self.end_workers()
        code, pid = dead[0].exitcode, dead[0].pid
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        file = ", ".join(self.names(self.slots[:, PID] == pid))
        return f"a loading process was {how}" + f" while it read {file}" * bool(file)

    def names(self, which: Any = slice(None)) -> list[str]:
        """The files that workers are reading, to be printed."""
        samples = self.slots[which, SAMPLE]
        return [printable(self.dataset.source.name(i)) for i in samples[samples >= 0].tolist()]

    def end_workers(self) -> None:
        """Without waiting for what they do, which may never end."""
        for child in self.children:
            child.terminate()

    def close(self) -> None:
        """Ends workers and thread."""
        self.requests.put(False)
        self.end_workers()


def plain(error: Exception) -> Exception:
    """An error of our own from a worker without the traceback that torch writes into its text."""
    if not isinstance(error, RunError | UserError):
        return error
    return type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip())


OOM = "Most likely memory ran out (the system's OOM killer): try fewer --workers or --cache none"


def say_waiting(seconds: float, files: Sequence[str]) -> None:
    """A warning that data does not come; `files`, to be printed, are being read."""
    what = f"being read: {', '.join(files)}" if files else "no file is being read"
    logger.warning(
        f"waiting for data since {seconds:.0f} s; {what}. "
        "Does the disk or network file system answer?"
    )


class Loading(Iterator[T]):
    """Iterates over `dataset[item] for item in items`, which `workers` processes make ahead.

    Without workers a thread makes each when it is asked for. Workers that die are started again.

    Args:
        dataset: its items must be pure functions of their numbers.
        items: their numbers, in order.
        workers: how many processes make them (0: a thread of this one).
        pin_memory: put them into memory from which a GPU copies faster.
    """

    def __init__(
        self, dataset: ImageDataset[T], items: range, workers: int, pin_memory: bool = False
    ):
        self.maker = Maker(dataset, items, workers, pin_memory)
        self.answer: Answer | None = None
        self.asked = False
        self.began: float | None = None  # to wait for this item
        self.named = 0.0  # seconds of waiting after which files were named last
        self.ask()
        threading.Thread(target=self.maker.serve, name="loading", daemon=True).start()
        self.close = weakref.finalize(self, self.maker.close)

    def ask(self) -> None:
        if not self.asked:
            self.maker.requests.put(True)
            self.asked = True

    def wait(self, seconds: float) -> bool:
        """Waits for the next item, at most so long; returns whether it, or an error, is there.

        Files that take long to read are named after `STALL_SECONDS`, and each time that has
        doubled.
        """
        if self.answer is not None:
            return True
        now = time.monotonic()
        self.began = now if self.began is None else self.began
        self.ask()
        try:
            self.answer = self.maker.answers.get(timeout=seconds)
        except Empty:
            waited = time.monotonic() - self.began
            if waited > max(STALL_SECONDS, 2 * self.named):
                self.named = waited
                say_waiting(waited, self.maker.names())
            return False
        if self.named:
            logger.info(f"data came after {time.monotonic() - self.began:.0f} s")
        self.began = None
        self.named = 0.0
        self.asked = False
        return True

    def __next__(self) -> T:
        while not self.wait(POLL):
            pass
        assert self.answer is not None
        item, error = self.answer
        if error is not None:  # it stays the answer
            raise error
        self.answer = None
        return item


def start_worker(worker: int, shared: Any) -> None:
    """Workers ignore signals to the process group, and use one thread.

    The main process finishes its step first, and ends them itself.
    """
    HERE.slot = np.frombuffer(shared, dtype=np.int64).reshape(-1, 2)[worker]
    HERE.slot[PID] = os.getpid()
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere a SIGTERM ends a worker at once
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=obey_parent, daemon=True).start()


def obey_parent() -> None:
    """Ends this process at a SIGTERM from its parent; those from others are dropped."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
