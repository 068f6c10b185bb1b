"""Images that a list names: a .txt of paths, or a table (.csv, .tsv, .jsonl) with columns."""

import csv
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from torchmae.data.decode import image_extensions
from torchmae.data.sources.containers.columns import text_rows
from torchmae.data.sources.files import Files, Gathered
from torchmae.data.sources.source import BadFile, Source, StringArray, suffix_of
from torchmae.disk import parse_json
from torchmae.errors import UserError

# How tables call their columns, in lower case.
PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image"),
    *("image_path", "image_file", "img", "img_path"),
)
LABELS = ("label", "labels", "class", "class_name", "target", "category", "diagnosis")

DELIMITERS = "\t;,"  # a comma last: it is also in paths and in decimal numbers
LOOK = 50  # rows that show what a table is like
LOOK_CHARACTERS = 1 << 16


def open_list(
    path: str,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> Source:
    """The images of a list; paths are relative to its folder.

    A .txt has a path in each line and # comments. A .csv or .tsv has columns, divided by commas,
    semicolons or tabs. A .jsonl has an object in each line, whose names are the columns.

    Args:
        path: the list.
        path_column: the header or number of the column of paths; None finds it.
        label_column: that of the classes.
        group_column: that of what no split divides.

    Raises:
        UserError: it cannot be read, has no such column, or names no image that exists.
    """
    path = os.path.abspath(os.path.expanduser(path))
    return from_rows(path, table_rows(path), (path_column, label_column, group_column))


def from_rows(
    path: str, rows: Iterator[list[str]], named: tuple[str | None, str | None, str | None]
) -> Source:
    """The images that the rows of a table name.

    Args:
        path: the list; paths are relative to its folder, and messages name it.
        rows: its cells.
        named: the columns of paths, classes and groups, where they are named.
    """
    root = os.path.dirname(path)
    first = list(islice(rows, LOOK))
    has_header, places = find_columns(path, first, named)
    path_at, label_at, group_at = places
    header = [cell.strip() for cell in first[0]] if has_header else []
    found = Gathered()
    labels: list[str] = []
    groups: list[str] = []
    unusable: list[BadFile] = []
    for row in chain(first[1:] if has_header else first, rows):
        name, facts = locate(root, cell_of(row, path_at))
        if isinstance(facts, str):
            unusable.append(BadFile(name, f"listed, but{facts}"))
            continue
        found.add(name, facts)
        labels.append(sys.intern(cell_of(row, label_at)))
        groups.append(sys.intern(cell_of(row, group_at)))
    if not len(found):
        raise UserError(nothing_found(path, header, unusable))
    source = Files(root, found.all(), unusable)
    source.labels = StringArray(labels)
    source.groups = StringArray(groups) if group_at is not None else None
    source.columns = header
    return source


def cell_of(row: Sequence[str], at: int | None) -> str:
    """A cell; "" where the row is too short, or there is no such column."""
    return row[at].strip() if at is not None and at < len(row) else ""


def locate(root: str, name: str) -> tuple[str, os.stat_result | str]:
    """A listed file: its name with "/", and the facts of the file or what is wrong."""
    names = [name, name.replace("\\", "/")] if "\\" in name else [name]
    reason = " not a file"
    for one in names:  # a backslash is a letter of a name here, and divides folders on Windows
        try:
            facts = os.stat(os.path.join(root, one))
            if one and stat.S_ISREG(facts.st_mode):
                return one, facts
        except (OSError, ValueError) as error:
            reason = f": {getattr(error, 'strerror', None) or error}"
    return name, reason


def nothing_found(path: str, header: Sequence[str], unusable: Sequence[BadFile]) -> str:
    """Why a list is of no use, and what to do."""
    text = f"the list '{path}' names no image that exists"
    if unusable:
        name, reason = unusable[0]
        name = name.splitlines()[0] if name else ""
        text += f"; the first of {len(unusable)}: '{name}' {reason}"
        if re.match(r"[A-Za-z]:[\\/]", name):
            text += " (a path of Windows, with a drive)"
    text += f". Paths are relative to '{os.path.dirname(path)}'"
    if len(header) > 1:
        text += f"; --path-column names another column: {', '.join(header)}"
    return text


def find_columns(
    path: str, rows: Sequence[Sequence[str]], named: Sequence[str | None]
) -> tuple[bool, tuple[int, int | None, int | None]]:
    """Whether the first row is a header, and where paths, labels and groups are.

    Args:
        path: the list.
        rows: its first ones.
        named: the headers or numbers of these three columns, where the user names them.
    """
    if not rows:
        return False, (0, None, None)
    if suffix_of(path) == ".txt":
        if any(named):
            raise UserError(
                f"'{path}' has no columns to name: a table is a .csv, .tsv, .jsonl or .parquet"
            )
        return False, (0, None, None)
    head = [cell.strip().lower() for cell in rows[0]]
    root = os.path.dirname(path)
    by_name = any(name is not None and not name.isdecimal() for name in named)
    path_at = next((k for k, cell in enumerate(head) if cell in PATHS), None)
    has_header = by_name or path_at is not None or suffix_of(path) in (".jsonl", ".parquet")
    if path_at is None or named[0] is not None:
        path_at = column(path, head, named[0])
    if path_at is None:  # the first column with files; a header is no file and has no ending
        there = (k for k in range(len(head)) if any(is_file(root, row, k) for row in rows))
        path_at = next(there, 0)
    top = cell_of(head, path_at)
    has_header |= not is_file(root, rows[0], path_at) and suffix_of(top) not in image_extensions()
    label_at = column(path, head, named[1])
    if label_at is None and has_header:
        label_at = next((k for k, cell in enumerate(head) if cell in LABELS), None)
    elif label_at is None and path_at == 0:
        label_at = 1
    return has_header, (path_at, label_at, column(path, head, named[2]))


def is_file(root: str, row: Sequence[str], at: int) -> bool:
    """Whether a cell names a file."""
    return not isinstance(locate(root, cell_of(row, at))[1], str)


def column(path: str, head: Sequence[str], name: str | None) -> int | None:
    """Where the column with a header is, or the one with a number from 1."""
    if name is None:
        return None
    wanted = name.strip().lower()
    if wanted in head:
        return head.index(wanted)
    if wanted.isdecimal() and 1 <= int(wanted) <= len(head):
        return int(wanted) - 1
    raise UserError(
        f"'{path}' has no column '{name}'; its first line is: {', '.join(head)} (a name of these, "
        f"or a number from 1 to {len(head)})"
    )


def table_rows(path: str) -> Iterator[list[str]]:
    """Rows of a table, or lines of a .txt as rows of one cell, without empty ones and comments."""
    if suffix_of(path) == ".parquet":
        yield from text_rows(path)
        return
    try:
        with open(path, "rb") as raw:
            wide = raw.read(2) in (b"\xff\xfe", b"\xfe\xff")  # as Excel's "Unicode text" begins
        encoding = "utf-16" if wide else "utf-8-sig"
        with open(path, encoding=encoding, errors="surrogateescape", newline="") as file:
            lines = (line.strip() for line in file)
            if suffix_of(path) == ".txt":
                yield from ([line] for line in lines if line and not line.startswith("#"))
                return
            if suffix_of(path) == ".jsonl":
                yield from object_rows(path, lines)
                return
            delimiter = find_delimiter(file.read(LOOK_CHARACTERS))
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter)
            yield from (row for row in rows if any(cell.strip() for cell in row))
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"cannot read the list '{path}': {error}") from error


def object_rows(path: str, lines: Iterable[str]) -> Iterator[list[str]]:
    """JSON objects, one a line, as rows of a table, after a header: the names that the first ones
    have. A cell is text as it is, no value is "", anything else is JSON.

    Raises:
        UserError: a line is no JSON object.
    """
    objects = (object_of(path, k, line) for k, line in enumerate(lines, 1) if line)
    first = list(islice(objects, LOOK))
    names = list(dict.fromkeys(name for one in first for name in one))
    if first:
        yield names
    for one in chain(first, objects):
        yield [text_of(one.get(name)) for name in names]


def object_of(path: str, number: int, line: str) -> dict[str, Any]:
    """The object in a line of a .jsonl."""
    try:
        found = parse_json(line)
        if isinstance(found, dict):
            return found
        reason = f"{type(found).__name__} in place of an object"
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"line {number} of '{path}' is no JSON object ({reason}): each line is one, such as "
        '{"path": "a.png", "label": "cat"}'
    )


def text_of(value: Any) -> str:
    """A value of JSON as a cell."""
    if value is None or isinstance(value, str):
        return re.sub(r"[\ud800-\udc7f\udd00-\udfff]", "?", value or "")  # half a character
    return json.dumps(value)


def find_delimiter(text: str) -> str:
    """The delimiter that divides the beginning of a table into rows of one length, above 1."""
    lines = text.splitlines(keepends=True)[:LOOK]
    if len(text) == LOOK_CHARACTERS:
        lines = lines[:-1]  # it may be cut
    widths = {d: [len(row) for row in csv.reader(lines, delimiter=d) if row] for d in DELIMITERS}
    even = [d for d, found in widths.items() if len(set(found)) == 1 and found[0] > 1]
    # Where rows have several lengths, the first one decides; a comma where nothing divides it.
    return even[0] if even else max(DELIMITERS[::-1], key=lambda d: (widths[d] or [0])[0])
