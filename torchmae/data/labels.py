"""Labelled images: which set is for training and which for testing, class numbers, seeded subsets."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from torchmae.data.source import BadFile, Pixels, Source
from torchmae.data.sources import open_source
from torchmae.errors import UserError
from torchmae.hashing import SPLIT, hash32


class Subset:
    """Some images of a source: itself a source."""

    def __init__(self, source: Source, ids: Sequence[int] | np.ndarray):
        self.source, self.ids = source, np.array(ids, dtype=np.int64)
        self.channels: int = source.channels
        self.unusable: Sequence[BadFile] = source.unusable

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, i: int) -> str:
        return self.source.name(int(self.ids[i]))

    def label(self, i: int) -> str | None:
        return self.source.label(int(self.ids[i]))

    def read(self, i: int) -> bytes | Pixels:
        return self.source.read(int(self.ids[i]))

    def fingerprint(self) -> str:
        return sha256(self.source.fingerprint().encode() + self.ids.tobytes()).hexdigest()


def open_pair(data: str, test: str | None) -> tuple[Source, Source | None]:
    """Training and test images. A folder that holds train/ and val/ (or test/) brings its own split; None: none is given."""
    folder = Path(data).expanduser()
    if test is not None:
        return open_source(data), open_source(test)
    if (folder / "train").is_dir():
        for name in ("val", "test"):
            if (folder / name).is_dir():
                return open_source(str(folder / "train")), open_source(str(folder / name))
    return open_source(data), None


def labelled(source: Source, what: str) -> tuple[Subset, list[str]]:
    """The images of a source that have labels, and these; `UserError` if none has."""
    pairs = [(i, label) for i in range(len(source)) if (label := source.label(i)) is not None]
    if not pairs:
        raise UserError(f"{what} has no labels: put the images of each class in a folder of its name")
    ids, labels = zip(*pairs)
    return Subset(source, ids), list(labels)


def by_class(labels: Sequence[str], seed: int) -> Iterator[tuple[str, list[int]]]:
    """For each class, its images in a seeded order."""
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    for label in sorted(members):
        yield label, sorted(members[label], key=lambda i: hash32(seed, SPLIT, i))


def hold_out(labels: Sequence[str], fraction: float, seed: int) -> Bool[np.ndarray, "N"]:
    """True for the images held out: of each class the given share, at least one, but not all."""
    out = np.zeros(len(labels), dtype=bool)
    for _, members in by_class(labels, seed):
        out[members[: min(len(members) - 1, max(1, round(fraction * len(members))))]] = True
    if not out.any():
        raise UserError("every class has only one image: nothing is left to test on")
    return out


def few(labels: Sequence[str], per_class: int, seed: int) -> list[int]:
    """`per_class` images of each class; `UserError` for a class that has fewer."""
    chosen: list[int] = []
    for label, members in by_class(labels, seed):
        if len(members) < per_class:
            raise UserError(f"--labels-per-class {per_class}: class '{label}' has only {len(members)} images")
        chosen += members[:per_class]
    return sorted(chosen)
