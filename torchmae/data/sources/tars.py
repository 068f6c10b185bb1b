"""Images in plain tar files, as WebDataset writes them, read in any order."""

import glob
import os
import re
import tarfile
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import BufferedReader
from typing import Any, Protocol, runtime_checkable

import numpy as np

from torchmae.data.decode import BadImage, check_bytes, image_extensions
from torchmae.data.sources.source import (
    BadFile,
    Encoded,
    Source,
    StringArray,
    copied,
    digest,
    digest_of,
    has_time,
    suffix_of,
    time_of,
)
from torchmae.errors import UserError

MOST_SHARDS = 10**6  # that a range of numbers may name


class Handle:
    """An open file. It is closed when the last thread that reads it drops it."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    # At the interpreter's end `os` is gone, so `close` is bound here.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)


@runtime_checkable
class Ranged(Protocol):
    """Bytes of files that are elsewhere."""

    def at(self, number: int, offset: int, size: int) -> bytes: ...
    def file(self, number: int) -> BufferedReader: ...


class Tars(Encoded):
    """The images in plain tar files.

    One pass over the headers finds where each image is; nothing is unpacked. The label of KEY.jpg
    is the text of KEY.cls, as in WebDataset, or else the name of its folder.
    """

    most_open = 128  # descriptors are scarce: 1024 a process is a common limit
    remote: Ranged | None = None  # what has the bytes of the tar files; None: they are here
    known: str | None = None  # a digest that changes with their content, where they are elsewhere

    def __init__(
        self,
        paths: Sequence[str],
        unusable: Sequence[BadFile] = (),
        remote: Ranged | None = None,
    ):
        self.remote = remote
        self.paths = [os.path.abspath(path) if remote is None else path for path in paths]
        self.unusable = unusable
        self.handles: dict[int, Handle] = {}
        self.facts: list[tuple[str, int, int]] = []  # path, bytes and time of each, at opening
        root = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        self.shard_names = [os.path.relpath(path, root) for path in self.paths]
        wanted = image_extensions()
        names = []
        labels = []
        places = array("q")
        for shard, path in enumerate(self.paths):
            if remote is None:
                with suppress(OSError):  # `_members` raises a better error
                    about = os.stat(path)
                    self.facts.append((path, about.st_size, time_of(about)))
            images, classes = _members(path, partial(self.stream, shard), wanted)
            for member, offset, size in images:
                folder, _, base = member.rpartition("/")
                names.append(f"{self.shard_names[shard]}/{member}")
                labels.append(
                    classes.get(f"{folder}/{base.partition('.')[0]}", folder.rpartition("/")[2])
                )
                places.extend((shard, offset, size))
        if not names:
            raise UserError(
                f"no images in {len(self.paths)} tar file(s), the first of them '{self.paths[0]}'"
            )
        self.names = StringArray(names)
        self.labels = StringArray(labels)
        self.places = np.array(places, dtype=np.int64).reshape(-1, 3)

    def stream(self, shard: int) -> BufferedReader:
        """A tar file to read through."""
        return open(self.paths[shard], "rb") if self.remote is None else self.remote.file(shard)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "handles": {}}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def member(self, i: int) -> str:
        """The name inside its tar file."""
        return self.names[i][len(self.shard_names[int(self.places[i, 0])]) + 1 :]

    def label(self, i: int) -> str | None:
        return self.labels[i] or None

    def select(self, ids: Sequence[int] | np.ndarray) -> "Tars":
        ids = np.array(ids, dtype=np.int64)
        return copied(
            self,
            handles={},
            names=self.names.take(ids),
            labels=self.labels.take(ids),
            places=self.places[ids],
            kinds=None,
        )

    def read(self, i: int) -> bytes:
        shard, offset, size = self.places[i].tolist()
        check_bytes(size, self.decode)
        if self.remote is not None:
            return self.remote.at(shard, offset, size)
        handle = self.handles.get(shard)
        if handle is None:
            while len(self.handles) >= self.most_open:
                self.handles.pop(next(iter(self.handles)), None)
            handle = self.handles[shard] = Handle(self.paths[shard])
        # pread has no file position, so that forked workers and threads may share a descriptor.
        data = os.pread(handle.descriptor, size, offset)
        if len(data) < size:
            raise BadImage("the tar file is shorter than when it was listed")
        return data

    def fingerprint(self) -> str:
        return digest(self.names, self.places[:, 2])

    def stamp(self) -> str | None:
        if self.remote is not None:
            return self.known and digest_of(self.known, digest(self.names, self.places))
        return digest_of(self.facts, digest(self.names, self.places))

    def is_changed(self, i: int) -> bool:
        if self.remote is not None:
            return False
        path, _, time = self.facts[int(self.places[i, 0])]
        return not has_time(path, time)


def _members(
    path: str, opener: Callable[[], BufferedReader], wanted: frozenset[str]
) -> tuple[list[tuple[str, int, int]], dict[str, str]]:
    """The images of one tar file as (member, offset, bytes), and its .cls texts by "folder/key"."""
    images = []
    classes = {}
    try:
        with (
            opener() as file,
            tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar,
        ):
            while (member := tar.next()) is not None:
                name = member.name.removeprefix("./")
                if member.isreg() and member.sparse is None and suffix_of(name) in wanted:
                    images.append((name, member.offset_data, member.size))
                elif member.isreg() and suffix_of(name) == ".cls":
                    folder, _, base = name.rpartition("/")
                    file.seek(member.offset_data)
                    text = file.read(min(member.size, 4096))
                    classes[f"{folder}/{base.partition('.')[0]}"] = text.decode(
                        errors="replace"
                    ).strip()
                tar.members = []  # type: ignore[attr-defined]  # a million objects otherwise
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"'{path}' is not a whole, uncompressed tar file ({error}); unpack .tar.gz with gunzip"
        ) from error
    return images, classes


def open_tar(spec: str) -> Source:
    """One tar file, a glob ("shards/*.tar"), a range ("s-{000..009}.tar") or a folder of tars."""
    spec = os.path.expanduser(spec)
    if os.path.isdir(spec):
        paths = sorted(glob.glob(os.path.join(glob.escape(spec), "**", "*.tar"), recursive=True))
    elif os.path.exists(spec):
        paths = [spec]
    else:
        paths = [
            path
            for part in braces(spec)
            for path in (sorted(glob.glob(part)) if glob.has_magic(part) else [part])
        ]
    if not paths or not os.path.exists(paths[0]):
        raise UserError(f"no tar file at '{spec}'")
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} tar files of '{spec}' do not exist: {missing[0]} "
            "..."
        )
    return Tars(paths)


def braces(spec: str) -> list[str]:
    """The names that a range of numbers stands for: "s-{000..009}.tar"."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", spec)
    if not match:
        return [spec]
    numbers = range(int(match[1]), int(match[2]) + 1)
    if len(numbers) > MOST_SHARDS:
        raise UserError(f"'{spec}' is {len(numbers):,} tar files: at most {MOST_SHARDS:,}")
    head, tail, width = spec[: match.start()], spec[match.end() :], len(match[1])
    return [path for number in numbers for path in braces(f"{head}{number:0{width}}{tail}")]
