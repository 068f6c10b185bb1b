"""Images in files: folders, and lists of paths."""

import csv
import os
import stat
from collections import Counter
from collections.abc import Sequence

import numpy as np

from torchmae.data.decode import image_extensions
from torchmae.data.packed import is_packed, open_packed
from torchmae.data.source import BadFile, Source, Strings, digest, suffix_of
from torchmae.data.tars import Tars
from torchmae.errors import UserError


class Files:
    """Image files below `root`. Labels are as given ("" for none), or else the first folder of each name."""

    channels = 3

    def __init__(
        self, root: str, names: Strings, sizes: np.ndarray, unusable: Sequence[BadFile], labels: Strings | None = None
    ):
        self.root, self.names, self.sizes, self.unusable, self.labels = root, names, sizes, unusable, labels

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def label(self, i: int) -> str | None:
        return (self.labels[i] if self.labels else self.names[i].rpartition("/")[0].partition("/")[0]) or None

    def read(self, i: int) -> bytes:
        with open(os.path.join(self.root, self.names[i]), "rb") as file:
            return file.read()

    def fingerprint(self) -> str:
        return digest(self.names, self.sizes)


def open_folder(path: str) -> Source:
    """A packed set; or all images below a folder, sorted by path; or its tar shards, where it has shards and no images."""
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        raise UserError(f"no such folder: '{path}'")
    if is_packed(root):
        return open_packed(path)
    found, unusable = walk(root)
    wanted = image_extensions()
    images = [(name, size) for name, size in found if suffix_of(name) in wanted]
    if images:
        names, sizes = zip(*images)
        return Files(root, Strings(names), np.array(sizes, dtype=np.int64), unusable)
    shards = [os.path.join(root, name) for name, _ in found if suffix_of(name) == ".tar"]
    if shards:
        return Tars(shards, unusable)
    seen = Counter(suffix_of(name) or "no extension" for name, _ in found).most_common(5)
    raise UserError(
        f"no images in '{path}': {len(found)} other files ({', '.join(f'{n} {s}' for s, n in seen) or 'none at all'})"
        f"{f', {len(unusable)} unusable ({unusable[0].name}: {unusable[0].reason})' if unusable else ''}; "
        f"extensions looked for: {' '.join(sorted(wanted))}"
    )


def walk(root: str) -> tuple[list[tuple[str, int]], list[BadFile]]:
    """(path, bytes) of the regular files below `root`, each file once, sorted; and what could not be followed.

    Round by round: first what is really there, then what its symlinks lead to, and so on, so that a real entry wins over
    links to it, and the file system's own order never shows.
    """
    found: list[tuple[str, int]] = []
    unusable: list[BadFile] = []
    folders: set[tuple[int, int]] = set()
    files: set[tuple[int, int]] = set()
    may_matter = image_extensions() | {"", ".tar"}  # a broken link without an extension may have been a folder
    links = [""]
    while links:
        here: list[tuple[str, os.stat_result]] = []
        further: list[str] = []
        for link in sorted(links):
            try:
                facts = os.stat(os.path.join(root, link))
            except OSError as error:
                if suffix_of(link) in may_matter:
                    unusable.append(BadFile(link, f"broken symlink: {error.strerror}"))
                continue
            if not stat.S_ISDIR(facts.st_mode):
                here.append((link, facts))
            elif (facts.st_dev, facts.st_ino) in folders:
                unusable.append(BadFile(link, "symlink to a folder that is already counted"))
            else:
                _enter(root, link, folders, here, further, unusable)
        for path, facts in sorted(here):
            if stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) not in files:
                files.add((facts.st_dev, facts.st_ino))
                found.append((path, facts.st_size))
        links = further
    return sorted(found), unusable


def _enter(
    root: str,
    top: str,
    folders: set[tuple[int, int]],
    files: list[tuple[str, os.stat_result]],
    links: list[str],
    unusable: list[BadFile],
) -> None:
    """Adds the real files below `top` to `files`, the symlinks to `links`, the folders that it entered to `folders`."""
    stack = [top]
    while stack:
        folder = stack.pop()
        try:
            facts = os.stat(os.path.join(root, folder))
            if (facts.st_dev, facts.st_ino) in folders:
                continue
            folders.add((facts.st_dev, facts.st_ino))
            with os.scandir(os.path.join(root, folder)) as entries:
                inside = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            unusable.append(BadFile(folder or ".", f"unreadable folder: {error.strerror}"))
            continue
        for entry in inside:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_symlink():
                    links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    stack.append(path)
                else:
                    files.append((path, entry.stat(follow_symlinks=False)))
            except OSError as error:
                unusable.append(BadFile(path, f"unreadable: {error.strerror}"))


def open_list(path: str) -> Source:
    """Images that a .txt (a path a line, # comments) or .csv (path, label) names, relative to the list's own folder."""
    columns, labels = ("path", "file", "filename", "image"), ("label", "class")
    path = os.path.abspath(os.path.expanduser(path))
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if suffix_of(path) == ".csv":
                rows = [row for row in csv.reader(file) if row and row[0].strip()]
            else:
                lines = (line.strip() for line in file)
                rows = [[line] for line in lines if line and not line.startswith("#")]
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read the list '{path}': {error}") from error
    at, label_at = 0, 1
    head = [cell.strip().lower() for cell in rows[0]] if rows and suffix_of(path) == ".csv" else []
    if any(cell in columns for cell in head):
        at = next(k for k, cell in enumerate(head) if cell in columns)
        label_at = next((k for k, cell in enumerate(head) if cell in labels), len(head))
        rows = rows[1:]
    root, usable, unusable = os.path.dirname(path), [], []
    for row in rows:
        name = row[at].strip() if at < len(row) else ""
        try:
            facts = os.stat(os.path.join(root, name))
        except (OSError, ValueError) as error:
            unusable.append(BadFile(name, f"listed, but: {getattr(error, 'strerror', None) or error}"))
            continue
        if name and stat.S_ISREG(facts.st_mode):
            usable.append((name, facts.st_size, row[label_at].strip() if label_at < len(row) else ""))
        else:
            unusable.append(BadFile(name, "listed, but not a file"))
    if not usable:
        first = f"; the first of {len(unusable)}: '{unusable[0].name}' {unusable[0].reason}" if unusable else ""
        raise UserError(f"the list '{path}' names no image that exists{first}. Paths are relative to '{root}'")
    names, sizes, classes = zip(*usable)
    return Files(root, Strings(names), np.array(sizes, dtype=np.int64), unusable, Strings(classes))
