"""Images in files: folders, and patterns of paths."""

import glob
import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchmae.data.decode import Kind, image_extensions
from torchmae.data.formats import FORMATS
from torchmae.data.sources.packed import is_packed, open_packed
from torchmae.data.sources.source import (
    BadFile,
    Encoded,
    Source,
    StringArray,
    copied,
    digest,
    digest_of,
    has_time,
    read_file,
    suffix_of,
    time_of,
)
from torchmae.data.sources.tars import Tars
from torchmae.errors import UserError
from torchmae.runfolder import is_run


class Found(NamedTuple):
    """Files: their paths, bytes, and what `time_of` says of when they changed."""

    names: StringArray
    sizes: np.ndarray  # int64 [N]
    times: np.ndarray  # int64 [N]


class Files(Encoded):
    """Image files below `root`, labelled by a list ("" for none) or by the first folder of each
    name."""

    labels: StringArray | None = None
    groups: StringArray | None = None  # "" for none
    columns: Sequence[str] = ()  # of the table that lists them, if it has a header
    emptied: frozenset[str] = frozenset()  # first folders from which `select` took images out

    def __init__(self, root: str, found: Found, unusable: Sequence[BadFile]):
        self.root = root
        self.unusable = unusable
        self.names, self.sizes, self.times = found

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def label(self, i: int) -> str | None:
        return (
            self.labels[i] if self.labels else self.names[i].rpartition("/")[0].partition("/")[0]
        ) or None

    def group(self, i: int) -> str | None:
        return (self.groups[i] if self.groups else "") or None

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def select(self, ids: Sequence[int] | np.ndarray) -> "Files":
        ids = np.array(ids, dtype=np.int64)
        out = set(range(len(self))) - set(ids.tolist())
        return copied(
            self,
            names=self.names.take(ids),
            sizes=self.sizes[ids],
            times=self.times[ids],
            labels=self.labels.take(ids) if self.labels else None,
            groups=self.groups.take(ids) if self.groups else None,
            kinds=None,
            emptied=frozenset(self.names[i].partition("/")[0] for i in out),
        )

    def kind_at(self, i: int) -> Kind | None:
        """What one image is; None if that cannot be read, or reading it could wait for ever."""
        regular = os.path.isfile(os.path.join(self.root, self.names[i]))
        return super().kind_at(i) if regular else None

    def read(self, i: int) -> bytes:
        return read_file(os.path.join(self.root, self.names[i]), self.decode)

    def fingerprint(self) -> str:
        return digest(self.names, self.sizes)

    def stamp(self) -> str | None:
        return digest_of(self.root, digest(self.names, self.sizes, self.times))

    def is_changed(self, i: int) -> bool:
        return not has_time(os.path.join(self.root, self.names[i]), int(self.times[i]))


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
    if any(others[suffix] for suffix in FORMATS["NumPy"].extensions):  # one image each
        return Files(root, *walk(root, FORMATS["NumPy"].extensions)[:2])
    more = ""
    if unusable:
        more = f", {len(unusable)} unusable ({unusable[0]})"
    seen = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    raise UserError(
        f"no images in '{path}': {others.total()} other files ({seen or 'none at all'})"
        f"{more}{extra_for(others)}; "
        f"extensions looked for: {' '.join(sorted(wanted))}"
    )


def extra_for(others: Counter[str]) -> str:
    """How to read files of other extensions, if some extra can."""
    if others[".heic"] or others[".heif"]:
        return '; for HEIC: pip install "torchmae[heif]"'
    return ""


def walk(root: str, wanted: Collection[str]) -> tuple[Found, list[BadFile], Counter[str]]:
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


class Gathered:
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

    def all(self) -> Found:
        names = StringArray.of(bytes(self.blob), np.array(self.ends, dtype=np.int64))
        return Found(
            names, np.array(self.sizes, dtype=np.int64), np.array(self.times, dtype=np.int64)
        )

    def once(self, rounds: Sequence[int]) -> Found:
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
        return Found(
            StringArray(names[i] for i in kept.tolist()), listing.sizes[kept], listing.times[kept]
        )


class _Tree:
    """What a walk has found so far, and which folders it has entered."""

    def __init__(self, root: str, wanted: Collection[str]):
        self.root = root
        self.wanted = wanted
        self.found = Gathered()
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


def open_images(paths: Sequence[str]) -> Source:
    """Single image files, in the order given, each once; they are named as they were given.

    Raises:
        UserError: one of them is no file.
    """
    found = Gathered()
    for path in dict.fromkeys(paths):
        try:
            facts = os.stat(os.path.expanduser(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {path}: {reason}") from error
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(
                f"{path} is not a file: give image files, or one folder, list, tar, ... by itself"
            )
        found.add(os.path.expanduser(path), facts)
    return Files(os.getcwd(), found.all(), [])


def is_image_file(path: str) -> bool:
    """Whether a name that a user typed means one image: by its extension, and not a folder."""
    known = suffix_of(path) in image_extensions() and not is_glob(path)
    return known and not os.path.isdir(os.path.expanduser(path))


def open_glob(spec: str) -> Source:
    """The images that a pattern names, such as "photos/**/*.jpg", and those in folders that it
    names.

    Names are relative to the part of the pattern before its first wildcard. Files of run folders
    are not taken: their pictures would be trained on.
    """
    pattern = os.path.expanduser(spec)
    root = os.path.abspath(glob_root(pattern))
    tree = _Tree(root, image_extensions())
    skipped = 0
    for path in sorted(glob.glob(pattern, recursive=True)):
        name = os.path.relpath(path, root)
        if inside_run(path, root):
            skipped += 1
        elif not os.path.isdir(path):
            with suppress(OSError):  # it is gone again
                tree.add(name, os.stat(path))
        elif not pattern.endswith("**"):  # whose matches are the files too
            tree.enter("" if name == "." else name)
    found = tree.found.once([0, len(tree.found)])  # a file may match twice
    if not len(found.names):
        others = ", ".join(f"{count} {suffix}" for suffix, count in tree.others.most_common(5))
        raise UserError(
            f"no image matches '{spec}' ({others or 'and no other file'}"
            f"{f', {skipped} in run folders' if skipped else ''}): * stands for a name or a part "
            "of it, **/ for any folders"
        )
    return Files(root, found, tree.unusable)


def is_glob(path: str) -> bool:
    """Whether a path that does not exist is a pattern; "?" also begins the options of a source."""
    if os.path.exists(path):
        return False
    before, question, _ = path.partition("?")
    return bool(re.search(r"[*]|\[.+\]", path)) or (
        question != ""
        and not suffix_of(before)
        and ":" not in before
        and os.path.isdir(os.path.dirname(before) or ".")
    )


def glob_root(pattern: str) -> str:
    """The folder before the first wildcard of a pattern."""
    return os.path.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0]) or "."


def inside_run(path: str, root: str) -> bool:
    """Whether a run folder is between a file and the root of its set."""
    above = Path(path).absolute().parents
    return any(is_run_folder(str(folder)) for folder in above if folder.is_relative_to(root))


@cache
def is_run_folder(folder: str) -> bool:
    return is_run(Path(folder))
