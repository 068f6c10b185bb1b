"""Images in blocks that are only unpacked whole: chunks of arrays, row groups of tables."""

import os
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Sized(Protocol):
    """What says its size in bytes, as arrays of numpy and of Arrow do."""

    @property
    def nbytes(self) -> int: ...


B = TypeVar("B", bound=Sized)

KEPT = 64 * 10**6  # bytes of unpacked blocks that a process keeps, beside the last one


class Here(Generic[B]):
    """What one process has: the open file, and the blocks that it read last."""

    def __init__(self, file: Any):
        self.pid = os.getpid()
        self.file = file
        self.lock = Lock()
        self.kept: OrderedDict[int, B] = OrderedDict()


class Blocks(Generic[B]):
    """The blocks of a file by number; the last ones stay in memory.

    Each process opens the file for itself: neither the threads of a library nor its locks survive
    a fork.

    Args:
        opener: opens the file; it pickles.
        read: a block of the open file, by number.
    """

    def __init__(self, opener: Callable[[], Any], read: Callable[[Any, int], B]):
        self.opener = opener
        self.read = read
        self.here: Here[B] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "here": None}

    def __getitem__(self, number: int) -> B:
        here = self.here
        if here is None or here.pid != os.getpid():
            here = self.here = Here(self.opener())
        with here.lock:  # threads of a scan want the same block
            if number not in here.kept:
                here.kept[number] = self.read(here.file, number)
            here.kept.move_to_end(number)
            while len(here.kept) > 1 and sum(one.nbytes for one in here.kept.values()) > KEPT:
                here.kept.popitem(last=False)
            return here.kept[number]
