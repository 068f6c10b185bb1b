"""Images in files: folders, and lists of paths."""

import csv
import os
import stat
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from torchmae.data.decode import image_extensions
from torchmae.data.sources.packed import is_packed, open_packed
from torchmae.data.sources.source import (
    BadFile,
    Source,
    StringArray,
    digest,
    digest_of,
    suffix_of,
    time_of,
)
from torchmae.data.sources.tars import Tars
from torchmae.errors import UserError


class Listing(NamedTuple):
    """Files: their paths, bytes, and what `time_of` says of when they changed."""

    names: StringArray
    sizes: np.ndarray  # int64 [N]
    times: np.ndarray  # int64 [N]


class Files(Source):
    """Image files below `root`, labelled by a list ("" for none) or by the first folder of each
    name."""

    def __init__(
        self,
        root: str,
        listing: Listing,
        unusable: Sequence[BadFile],
        labels: StringArray | None = None,
    ):
        self.root = root
        self.unusable = unusable
        self.labels = labels
        self.names, self.sizes, self.times = listing

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def label(self, i: int) -> str | None:
        return (
            self.labels[i] if self.labels else self.names[i].rpartition("/")[0].partition("/")[0]
        ) or None

    def read(self, i: int) -> bytes:
        with open(os.path.join(self.root, self.names[i]), "rb") as file:
            return file.read()

    def fingerprint(self) -> str:
        return digest(self.names, self.sizes)

    def stamp(self) -> str | None:
        return digest_of(self.root, digest(self.names, self.sizes, self.times))


def open_folder(path: str) -> Source:
    """A packed set; else all images below a folder, sorted by path; else its tar shards."""
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        raise UserError(f"no such folder: '{path}'")
    if is_packed(root):
        return open_packed(path)
    wanted = image_extensions()
    images, unusable, others = walk(root, wanted)
    if len(images.names):
        return Files(root, images, unusable)
    if others[".tar"]:
        shards, unusable, _ = walk(root, {".tar"})
        return Tars([os.path.join(root, name) for name in shards.names], unusable)
    more = ""
    if unusable:
        more = f", {len(unusable)} unusable ({unusable[0].name}: {unusable[0].reason})"
    seen = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    raise UserError(
        f"no images in '{path}': {others.total()} other files ({seen or 'none at all'})"
        f"{more}; "
        f"extensions looked for: {' '.join(sorted(wanted))}"
    )


def walk(root: str, wanted: Collection[str]) -> tuple[Listing, list[BadFile], Counter[str]]:
    """The regular files below `root` with the wanted extensions, each file once, sorted by path.

    Round by round: first real entries, then what their symlinks lead to, and so on. So a real entry
    wins over links to it, and the file system's own order never shows.

    Returns:
        The files, what could not be followed, and how many other files there are by extension.
    """
    tree = _Tree(root, wanted)
    may_matter = image_extensions() | {
        "",
        ".tar",
    }  # a broken link without an extension may have been a folder
    # of each round, how many files there are after it
    links = [""]
    rounds = []
    while links:
        tree.links = []
        for link in sorted(links):
            try:
                facts = os.stat(os.path.join(root, link))
            except OSError as error:
                if suffix_of(link) in may_matter:
                    tree.unusable.append(BadFile(link, f"broken symlink: {error.strerror}"))
                continue
            if not stat.S_ISDIR(facts.st_mode):
                tree.add(link, facts)
            elif (facts.st_dev, facts.st_ino) in tree.folders:
                tree.unusable.append(BadFile(link, "symlink to a folder that is already counted"))
            else:
                tree.enter(link)
        rounds.append(len(tree.found))
        links = tree.links
    return tree.found.once(rounds), tree.unusable, tree.others


class _Found:
    """Files gathered in compact arrays: as Python objects, a million of them take a gigabyte."""

    def __init__(self) -> None:
        self.blob = bytearray()
        self.ends = array("q", [0])
        self.sizes = array("q")
        self.times = array("q")
        self.inodes = array("Q")
        self.hard_links = False

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, path: str, facts: os.stat_result) -> None:
        self.blob += path.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.blob))
        self.sizes.append(facts.st_size)
        self.times.append(time_of(facts))
        self.inodes.extend((facts.st_dev, facts.st_ino))
        self.hard_links = self.hard_links or facts.st_nlink > 1

    def all(self) -> Listing:
        names = StringArray.of(bytes(self.blob), np.array(self.ends, dtype=np.int64))
        return Listing(
            names, np.array(self.sizes, dtype=np.int64), np.array(self.times, dtype=np.int64)
        )

    def once(self, rounds: Sequence[int]) -> Listing:
        """Each file once, sorted by path.

        Of several names of one file it has the first by path of the earliest round.
        """
        listing = self.all()
        if len(rounds) == 1 and not self.hard_links:  # what is really there is sorted as it comes
            return listing
        names = listing.names
        order = np.arange(len(names))
        if len(rounds) > 1:
            order = np.array(sorted(order.tolist(), key=names.__getitem__), dtype=np.int64)
        device, inode = np.array(self.inodes, dtype=np.uint64).reshape(-1, 2)[order].T
        best = np.lexsort(
            (np.searchsorted(rounds, order, side="right"), inode, device)
        )  # stable: ties stay sorted by path
        first = np.ones(len(order), dtype=bool)
        first[1:] = (np.diff(device[best]) != 0) | (np.diff(inode[best]) != 0)
        kept = order[np.sort(best[first])]
        return Listing(
            StringArray(names[i] for i in kept.tolist()), listing.sizes[kept], listing.times[kept]
        )


class _Tree:
    """What a walk has found so far, and which folders it has entered."""

    def __init__(self, root: str, wanted: Collection[str]):
        self.root = root
        self.wanted = wanted
        self.found = _Found()
        self.others = Counter[str]()
        self.unusable: list[BadFile] = []
        self.links: list[str] = []
        self.folders: set[tuple[int, int]] = set()  # those that were entered

    def add(self, path: str, facts: os.stat_result) -> None:
        """Takes a regular file if its extension is wanted, or else counts it."""
        suffix = suffix_of(path)
        if not stat.S_ISREG(facts.st_mode):
            return
        if suffix in self.wanted:
            self.found.add(path, facts)
        else:
            self.others[suffix or "no extension"] += 1

    def enter(self, top: str) -> None:
        """Adds the real files below a folder, sorted by path, and notes the symlinks."""
        # The next one last; folders end with "/", so that they sort among the paths below them.
        waiting = [f"{top}/" if top else ""]
        while waiting:
            path = waiting.pop()
            folder = not path or path.endswith("/")
            try:
                if folder:
                    waiting += sorted(self._inside(path), reverse=True)
                else:
                    self.add(path, os.lstat(f"{self.root}/{path}"))
            except OSError as error:
                reason = f"unreadable{' folder' * folder}: {error.strerror}"
                self.unusable.append(BadFile(path.removesuffix("/") or ".", reason))

    def _inside(self, folder: str) -> list[str]:
        """The wanted files and the folders in a folder; none if it was entered before."""
        facts = os.stat(f"{self.root}/{folder}")
        if (facts.st_dev, facts.st_ino) in self.folders:
            return []
        self.folders.add((facts.st_dev, facts.st_ino))
        inside = []
        with os.scandir(f"{self.root}/{folder}") as entries:
            for entry in entries:  # an entry that is kept would take ten times its name
                path = folder + entry.name
                try:
                    if entry.is_symlink():
                        self.links.append(path)
                    elif entry.is_dir(follow_symlinks=False):
                        inside.append(f"{path}/")
                    elif suffix_of(path) in self.wanted:
                        inside.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        self.others[suffix_of(path) or "no extension"] += 1
                except OSError as error:
                    self.unusable.append(BadFile(path, f"unreadable: {error.strerror}"))
        return inside


def open_list(path: str) -> Source:
    """The images of a list; paths are relative to its folder.

    A .txt has a path in each line and # comments; a .csv has columns path and label.
    """
    columns = ("path", "file", "filename", "image")
    labels = ("label", "class")
    path = os.path.abspath(os.path.expanduser(path))
    rows = _rows(path)
    at = 0
    label_at = 1
    top = next(rows, [])
    head = [cell.strip().lower() for cell in top] if suffix_of(path) == ".csv" else []
    if any(cell in columns for cell in head):
        at = next(k for k, cell in enumerate(head) if cell in columns)
        label_at = next((k for k, cell in enumerate(head) if cell in labels), len(head))
    elif top:
        rows = chain([top], rows)
    root = os.path.dirname(path)
    found = _Found()
    classes: list[str] = []
    unusable: list[BadFile] = []
    for row in rows:
        name = row[at].strip() if at < len(row) else ""
        try:
            facts = os.stat(os.path.join(root, name))
        except (OSError, ValueError) as error:
            unusable.append(
                BadFile(name, f"listed, but: {getattr(error, 'strerror', None) or error}")
            )
            continue
        if name and stat.S_ISREG(facts.st_mode):
            found.add(name, facts)
            classes.append(sys.intern(row[label_at].strip() if label_at < len(row) else ""))
        else:
            unusable.append(BadFile(name, "listed, but not a file"))
    if not len(found):
        first = (
            f"; the first of {len(unusable)}: '{unusable[0].name}' {unusable[0].reason}"
            if unusable
            else ""
        )
        raise UserError(
            f"the list '{path}' names no image that exists{first}. Paths are relative to '{root}'"
        )
    return Files(root, found.all(), unusable, StringArray(classes))


def _rows(path: str) -> Iterator[list[str]]:
    """Rows of a .csv, or lines of a .txt as rows of one cell, without empty ones and comments."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if suffix_of(path) == ".csv":
                yield from (row for row in csv.reader(file) if row and row[0].strip())
            else:
                lines = (line.strip() for line in file)
                yield from ([line] for line in lines if line and not line.startswith("#"))
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read the list '{path}': {error}") from error
