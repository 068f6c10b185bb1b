"""Columns of Parquet files as text: paths, classes, groups."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from torchmae.errors import library


def open_parquet_file(path: str) -> Any:
    """A file of pyarrow, of which the end has been read."""
    return library("pyarrow.parquet", "parquet").ParquetFile(
        path, pre_buffer=False, page_checksum_verification=True
    )


def texts_of(file: Any, name: str) -> list[str]:
    """A column as text: "" for no value; the numbers of classes by their names, where Hugging Face
    has left these in the file."""
    pyarrow = library("pyarrow", "parquet")
    names = class_names(file.schema_arrow, name)
    values = file.read(columns=[name], use_threads=False).column(name)
    if names:
        return [
            names[k] if k is not None and 0 <= k < len(names) else "" for k in values.to_pylist()
        ]
    return [one or "" for one in values.cast(pyarrow.string()).to_pylist()]


def class_names(schema: Any, name: str) -> list[str]:
    """The names of the classes of a column, by the note that `datasets` writes into its files."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        about = json.loads((schema.metadata or {})[b"huggingface"])
        feature = about["info"]["features"][name]
        if feature["_type"] == "ClassLabel" and all(isinstance(x, str) for x in feature["names"]):
            return list(feature["names"])
    return []


def text_rows(path: str) -> Iterator[list[str]]:
    """The columns of a Parquet file that can be text as rows of a table, after their names."""
    pyarrow = library("pyarrow", "parquet")
    file = open_parquet_file(path)
    texts, names = [], []
    for field in file.schema_arrow:
        with suppress(pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):  # a list, a struct
            texts.append(texts_of(file, field.name))
            names.append(field.name)
    yield from chain([names], map(list, zip(*texts)))
