"""Images that are in Python already: what an object is, and what opens it."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from torchmae.data.config import KINDS
from torchmae.data.sources.arrays import Arrays
from torchmae.data.sources.hubs import HuggingFace, TorchVision, columns_of_hf
from torchmae.data.sources.lists import from_rows
from torchmae.data.sources.python.items import Items, Layout, channels_last, label_text
from torchmae.data.sources.source import Source
from torchmae.errors import UserError
from torchmae.settings.python_data import PREFIX, PythonData, is_place

ROWS = 4096  # of a table, that are Python objects at a time
TAKEN = (
    "a torch Dataset with numbered items, a list of images, an array [N, H, W] or [N, H, W, C], "
    "such a list or array with labels (images, labels), a DataFrame with a column of paths, or a "
    "datasets.Dataset"
)


class Columns(NamedTuple):
    """The columns that the caller names: of paths or images, of classes, of what no split
    divides."""

    path: str | None = None
    label: str | None = None
    group: str | None = None


def open_python(
    spec: str,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> Source:
    """The images that a caller of the library holds.

    Args:
        spec: a `PythonData`.
        path_column: of a DataFrame, the column of paths; of a Hugging Face set that of images.
        label_column: that of the classes.
        group_column: of a DataFrame, that of what no split divides.

    Raises:
        UserError: it is only the text, the object holds no images that are numbered, or it has no
            such column.
    """
    if not isinstance(spec, PythonData):
        raise UserError(
            f"{spec}: these images were in Python, and no file holds them; from Python, give the "
            "data itself: data=..."
        )
    columns = Columns(path_column, label_column, group_column)
    opener = next((opener for fits, opener in OPENERS if fits(spec.data)), None)
    if opener is None:
        raise UserError(f"{spec}: a {type(spec.data).__name__} is no set of images; give {TAKEN}")
    if any(columns) and opener not in (open_table, open_hf_object):
        named = next(name for name, value in zip(Columns._fields, columns) if value is not None)
        raise UserError(f"{named}_column is for DataFrames, and {spec} is none: leave it out")
    if hasattr(spec.data, "__len__") and not len(spec.data):
        raise UserError(f"{spec}: no images")
    source = opener(spec, columns)
    source.data_id = spec.data_id
    return source


def open_table(spec: PythonData, columns: Columns) -> Source:
    """A pandas or polars DataFrame with a column of paths, relative to the current folder."""
    frame = spec.data
    names = list(frame.columns)

    def rows() -> Iterator[list[str]]:
        for first in range(0, len(frame), ROWS):
            part = frame[first : first + ROWS]
            for row in zip(*(part[name].to_list() for name in names)):
                yield [cell_text(cell) for cell in row]

    header = [str(name) for name in names]
    return listed(spec, chain([header], rows()), columns)


def cell_text(cell: Any) -> str:
    """A cell as a table in a file would have it; "" for a missing value."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell:
        return ""
    whole = isinstance(cell, float) and cell.is_integer()  # integers beside missing values
    return str(int(cell)) if whole else str(cell)


def open_paths(spec: PythonData, columns: Columns) -> Source:
    """A list of paths, relative to the current folder."""
    return listed(spec, chain([["path"]], ([os.fspath(path)] for path in spec.data)), columns)


def listed(spec: PythonData, rows: Iterator[list[str]], columns: Columns) -> Source:
    """The files that rows name; the first row is a header."""
    return from_rows(os.path.join(os.getcwd(), spec.partition("?")[0]), rows, columns)


def open_hf_object(spec: PythonData, columns: Columns) -> Source:
    """A `datasets.Dataset`; one with a transform of its own is read through it."""
    data = spec.data
    if columns.group is not None:
        raise UserError(f"group_column is for DataFrames, and {spec} is none: leave it out")
    if data.format["type"] == "custom":
        return Items(data, name_of(spec))
    image, label = columns_of_hf(data, str(spec), columns.path, columns.label)
    return HuggingFace(data.with_format(None), name_of(spec), image, label)


def open_block(spec: PythonData, columns: Columns) -> Source:
    """An array or tensor of images, which is not copied."""
    return block(spec, spec.data, None)


def open_labelled(spec: PythonData, columns: Columns) -> Source:
    """Images and their labels: an array or a list of each."""
    images, labels = spec.data
    names = [label_text(label) for label in labels]
    if None in names:
        raise UserError(f"{spec}: label {names.index(None)} is no class: a number or a text")
    if is_block(images):
        return block(spec, images, [str(name) for name in names])
    return Items(images, name_of(spec), names)


def block(spec: PythonData, images: Any, labels: Sequence[str] | None) -> Source:
    """The source of an array [N, H, W], [N, H, W, C] or [N, C, H, W]."""
    tensor = isinstance(images, Tensor)
    pixels = images.detach().cpu().numpy() if tensor else np.asanyarray(images)
    what = f"{spec} is {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype.name not in KINDS or not pixels.dtype.isnative:
        raise UserError(
            f"{what}; {', '.join(KINDS)} are read: convert it, such as x.astype('float32')"
        )
    flat = pixels.ndim == 3 and pixels.shape[2] > 4
    if 0 in pixels.shape or not (flat or pixels.ndim == 4):
        raise UserError(f"{what}; expected images as [N, H, W], [N, H, W, C] or [N, C, H, W]")
    layout: Layout = "CHW" if tensor else "HWC"
    pixels = pixels[..., None] if flat else channels_last(pixels, layout)
    return Arrays(partial(itself, pixels), name_of(spec), labels)


def itself(pixels: np.ndarray) -> np.ndarray:
    """What `Arrays` loads from memory."""
    return pixels


def open_torchvision_object(spec: PythonData, columns: Columns) -> Source:
    """A set of torchvision without transforms: image files are read by this library's rules."""
    return TorchVision(spec.data, name_of(spec))


def open_items(spec: PythonData, columns: Columns) -> Source:
    """Anything with numbered items."""
    if isinstance(spec.data, list | tuple):
        return Items(spec.data, name_of(spec), held=True)
    return Items(spec.data, name_of(spec))


def name_of(spec: PythonData) -> str:
    """What images are called, before their numbers."""
    return spec.removeprefix(PREFIX).partition("-")[0]


def package_of(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def is_table(data: Any) -> bool:
    """Of pandas or polars, which need not be installed; others with their names too."""
    return package_of(data) in ("pandas", "polars") and hasattr(data, "columns")


def is_hf(data: Any) -> bool:
    return package_of(data) == "datasets" and hasattr(data, "features") and hasattr(data, "__len__")


def is_block(data: Any) -> bool:
    return isinstance(data, np.ndarray | Tensor)


def is_labelled(data: Any) -> bool:
    """(images, labels), equally many: not two images, which are no labels of each other."""
    if not isinstance(data, tuple) or len(data) != 2:
        return False
    images, labels = data
    if not (is_block(images) or isinstance(images, list | tuple)):
        return False
    if is_block(labels):
        return labels.ndim == 1 and len(images) == len(labels)
    plain = isinstance(labels, list | tuple) and not any(map(is_block, labels[:1]))
    return plain and len(images) == len(labels)


def is_torchvision(data: Any) -> bool:
    plain = getattr(data, "transforms", None) is None and getattr(data, "transform", None) is None
    return type(data).__module__.startswith("torchvision.datasets") and plain


def is_paths(data: Any) -> bool:
    return isinstance(data, list | tuple) and bool(data) and all(map(is_place, data))


def is_numbered(data: Any) -> bool:
    numbered = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return numbered and not isinstance(data, dict | set | bytes | IterableDataset)


Opener = Callable[[PythonData, Columns], Source]

# The first that fits opens an object.
OPENERS: tuple[tuple[Callable[[Any], bool], Opener], ...] = (
    (is_table, open_table),
    (is_hf, open_hf_object),
    (is_block, open_block),
    (is_labelled, open_labelled),
    (is_torchvision, open_torchvision_object),
    (is_paths, open_paths),
    (is_numbered, open_items),
)
