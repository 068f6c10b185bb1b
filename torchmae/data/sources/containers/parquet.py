"""Images in rows of Parquet files: bytes, in a plain column or as Hugging Face stores them."""

import glob
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from torchmae.data.decode import BadImage, check_bytes, image_extensions
from torchmae.data.formats.raster import one_line
from torchmae.data.sources.arrays import refuse_large
from torchmae.data.sources.containers.blocks import Blocks
from torchmae.data.sources.containers.columns import open_parquet_file, texts_of
from torchmae.data.sources.lists import LABELS, PATHS, column, open_list
from torchmae.data.sources.source import (
    Encoded,
    Source,
    StringArray,
    digest_of,
    has_time,
    read_file,
    suffix_of,
    time_of,
)
from torchmae.errors import UserError


class Parquet(Encoded):
    """The images of one column of Parquet files.

    A row group is unpacked as a whole, of this column alone: images in their order cost little,
    one from anywhere as much as its group.

    Args:
        paths: of the files.
        image: the column of the images.
        label: that of the classes; None for none.
        group: likewise that of what no split divides.
    """

    named = False

    def __init__(self, paths: Sequence[str], image: str, label: str | None, group: str | None):
        self.paths = list(paths)
        self.facts: list[tuple[str, int, int]] = []  # path, bytes and time of each, at opening
        groups, rows, sizes, self.firsts = [], [], [], [0]
        texts: dict[str, list[str]] = {name: [] for name in (label, group) if name is not None}
        for path in self.paths:
            about = os.stat(path)
            self.facts.append((path, about.st_size, time_of(about)))
            file = open_parquet_file(path)
            for k in range(file.num_row_groups):
                facts = file.metadata.row_group(k)
                groups.append((path, k))
                rows.append(facts.num_rows)
                sizes.append(size_of(facts, image))
            self.firsts.append(self.firsts[-1] + file.metadata.num_rows)
            for name, found in texts.items():
                found += texts_of(file, name)
        most = max(sizes, default=0)
        refuse_large(
            f"a row group of '{paths[0]}' or its like has {most / 1e9:,.1f} GB of images",
            most,
            "write smaller ones, such as pandas.DataFrame.to_parquet(path, row_group_size=100)",
        )
        self.known = digest_of(rows, sizes)
        self.starts = np.cumsum([0, *rows])[:-1]  # of each group
        self.labels = StringArray(texts[label]) if label is not None else None
        self.groups = StringArray(texts[group]) if group is not None else None
        self.blocks = Blocks(partial(list, groups), partial(read_group, image=image))

    def __len__(self) -> int:
        return self.firsts[-1]

    def file_of(self, i: int) -> int:
        return int(np.searchsorted(self.firsts, i, side="right")) - 1

    def name(self, i: int) -> str:
        file = self.file_of(i)
        return f"{os.path.basename(self.paths[file])}[{i - self.firsts[file]}]"

    def label(self, i: int) -> str | None:
        return (self.labels[i] if self.labels else "") or None

    def group(self, i: int) -> str | None:
        return (self.groups[i] if self.groups else "") or None

    def read(self, i: int) -> bytes:
        i = range(len(self))[i]
        block = int(np.searchsorted(self.starts, i, side="right")) - 1
        try:
            found = self.blocks[block][i - int(self.starts[block])].as_py()
        except Exception as error:  # hostile bytes can raise anything
            raise BadImage(f"its row group is damaged: {one_line(error)}") from error
        path = found.get("path") if isinstance(found, dict) else None
        data = found.get("bytes") if isinstance(found, dict) else found
        if isinstance(data, bytes):
            check_bytes(len(data), self.decode)
            return data
        if not path:
            raise BadImage("no image in this row")
        root = os.path.dirname(self.paths[self.file_of(i)])
        return read_file(os.path.join(root, path), self.decode)

    def fingerprint(self) -> str:
        return self.known

    def stamp(self) -> str | None:
        return digest_of(self.facts, self.known)

    def is_changed(self, i: int) -> bool:
        path, _, time = self.facts[self.file_of(i)]
        return not has_time(path, time)


def size_of(group: Any, name: str) -> int:
    """The unpacked bytes of a column in a row group; those of a struct are several."""
    parts = map(group.column, range(group.num_columns))
    own = (one for one in parts if one.path_in_schema.partition(".")[0] == name)
    return sum(one.total_uncompressed_size for one in own)


def read_group(groups: Sequence[tuple[str, int]], number: int, image: str) -> Any:
    """The images of a row group, as an array of Arrow."""
    path, k = groups[number]
    # Threads of Arrow would not be there in a forked worker.
    table = open_parquet_file(path).read_row_group(k, columns=[image], use_threads=False)
    return table.column(image)


def holds_images(kind: Any) -> bool:
    """Whether a column of this type of Arrow may hold images: bytes, or a struct with bytes."""
    names = [kind.field(k).name for k in range(kind.num_fields)] if "struct" in str(kind) else []
    kind = kind.field(names.index("bytes")).type if "bytes" in names else kind
    return str(kind) in ("binary", "large_binary", "binary_view")


def only_parquet(folder: str) -> bool:
    """Whether a folder holds Parquet files, and neither folders nor images beside them."""
    found, others = False, {".tar", *image_extensions()}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            suffix = suffix_of(entry.name)
            if suffix in others or entry.is_dir():
                return False
            found |= suffix == ".parquet"
    return found


def open_parquet(
    spec: str,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> Source:
    """The images of a Parquet file, of the files in a folder, or of those that a pattern names; or
    the images whose paths are in a file's column.

    Args:
        spec: "x.parquet", "train/", "train-*.parquet".
        path_column: the name or number of the column of images or paths; None finds it.
        label_column: that of the classes.
        group_column: that of what no split divides.

    Raises:
        UserError: they cannot be read, or have no such column.
    """
    spec = os.path.expanduser(spec)
    pattern = os.path.join(glob.escape(spec), "**", "*.parquet") if os.path.isdir(spec) else spec
    found = [spec] if os.path.isfile(spec) else sorted(glob.glob(pattern, recursive=True))
    paths = [os.path.abspath(path) for path in found]
    if not paths:
        raise UserError(f"no Parquet file at '{spec}'")
    path = ""
    try:
        for path in paths[::-1]:  # the first is the last one
            schema = open_parquet_file(path).schema_arrow
        names = [name.strip().lower() for name in schema.names]
        fitting = [k for k, field in enumerate(schema) if holds_images(field.type)]
        usual = [k for k in fitting if names[k] in PATHS]
        at = column(path, names, path_column)
        at = next(iter(usual or fitting), None) if at is None else at
        if at not in fitting and len(paths) == 1:
            return open_list(path, path_column, label_column, group_column)
        if at is None or at not in fitting:
            raise UserError(
                f"'{path}' has no column of images (bytes, or bytes and path as of Hugging Face): "
                f"{', '.join(schema.names)}"
            )
        label = column(path, names, label_column)
        if label is None:
            label = next((k for k, name in enumerate(names) if name in LABELS), None)
        others = (label, column(path, names, group_column))
        beside = [None if k is None else schema.names[k] for k in others]
        source = Parquet(paths, schema.names[at], *beside)
    except UserError:
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise UserError(f"cannot read '{path}' as Parquet: {one_line(error)}") from error
    if not len(source):
        raise UserError(f"no rows in '{path}'")
    return source
