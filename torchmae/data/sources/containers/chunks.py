"""Arrays that are read chunk by chunk: Zarr (formats 2 and 3) and HDF5."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from torchmae.data.decode import BadImage
from torchmae.data.formats.raster import one_line
from torchmae.data.sources.arrays import Arrays, channels_first, choose_array
from torchmae.data.sources.containers.blocks import KEPT, Blocks
from torchmae.data.sources.source import Source, options_of
from torchmae.errors import UserError, library

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: str) -> bool:
    """Whether a folder is an array or a group of Zarr."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ZARR_FILES)


class Library(NamedTuple):
    """How a library reads its files: `opens` one, `arrays` are all that are inside by name; an
    array that is the file itself has the name ""."""

    name: str
    extra: str
    opens: Callable[[str], Any]
    arrays: Callable[[Any], Mapping[str, Any]]


def open_store(path: str) -> Any:
    return library("zarr", "zarr").open(path, mode="r")


def arrays_of_store(store: Any) -> Mapping[str, Any]:
    if hasattr(store, "shape"):
        return {"": store}
    return {name: one for name, one in store.members(max_depth=None) if hasattr(one, "shape")}


def open_h5(path: str) -> Any:
    return library("h5py", "hdf5").File(path, "r")


def arrays_of_h5(file: Any) -> Mapping[str, Any]:
    found = {}
    file.visititems(lambda name, one: found.update({name: one}) if hasattr(one, "shape") else None)
    return found


LIBRARIES = {
    "zarr": Library("Zarr", "zarr", open_store, arrays_of_store),
    "hdf5": Library("HDF5", "hdf5", open_h5, arrays_of_h5),
}


class ChunkedArray:
    """Images [N, H, W, C] of an array in a file, of which only the chunks that are needed are read.

    Args:
        kind: a name in `LIBRARIES`.
        path: of the file or folder.
        key: the name of the array inside.
        layout: "NHWC", "NCHW" or "".
    """

    def __init__(self, kind: str, path: str, key: str, layout: str):
        self.blocks = Blocks(partial(open_array_of, kind, path, key), self.read_block)
        array = open_array_of(kind, path, key)
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        shape = tuple(map(int, array.shape))
        self.first = channels_first(f"'{path}' holds {array.dtype}", shape, self.dtype, layout)
        sides = shape[2:] + shape[1:2] if self.first else (*shape[1:], 1)[:3]
        self.shape = (shape[0], *sides)
        size = int(np.prod(sides, dtype=np.int64)) * self.dtype.itemsize
        chunks = getattr(array, "chunks", None) or (1,)  # None: HDF5 in one piece
        self.together = max(1, min(int(chunks[0]), KEPT // size))

    def __len__(self) -> int:
        return self.shape[0]

    def read_block(self, array: Any, number: int) -> np.ndarray:
        """The images of one chunk, or as many of them as are kept in memory."""
        values = np.asarray(array[number * self.together : (number + 1) * self.together])
        values = np.moveaxis(values, 1, 3) if self.first else values
        return values.reshape(len(values), *self.shape[1:]).astype(self.dtype, copy=False)

    def __getitem__(self, i: int) -> np.ndarray:
        block, within = divmod(range(len(self))[i], self.together)
        try:
            return self.blocks[block][within]
        except Exception as error:  # codecs fail in their own ways
            raise BadImage(f"its chunk cannot be read: {one_line(error)}") from error


def open_array_of(kind: str, path: str, key: str) -> Any:
    return LIBRARIES[kind].arrays(LIBRARIES[kind].opens(path))[key]


def open_chunked(kind: str, spec: str) -> Source:
    """An array [N, H, W, C], [N, C, H, W] or [N, H, W] of one of `KINDS`, and beside it, where
    there are any, the labels.

    "scans.zarr", "scans.h5?key=images/train&layout=NCHW".

    Args:
        kind: a name in `LIBRARIES`.
        spec: the path, with options.
    """
    spec = os.path.expanduser(spec)
    whole = os.path.exists(spec)
    path, options = (spec, {}) if whole else options_of(spec, ("key", "layout"))
    path, name = os.path.abspath(path), LIBRARIES[kind].name
    if not os.path.exists(path):
        raise UserError(f"no such file: '{path}'")
    try:
        arrays = LIBRARIES[kind].arrays(LIBRARIES[kind].opens(path))
        shapes = {one: (tuple(x.shape), np.dtype(x.dtype)) for one, x in arrays.items()}
        if not shapes:
            raise UserError(f"'{path}' holds no array")
        key, beside = (
            ("", None) if [*shapes] == [""] else choose_array(path, shapes, options.get("key"))
        )
        labels = beside and [label_of(value) for value in np.asarray(arrays[beside][:]).ravel()]
        origin = (path, key, options.get("layout", ""))
        return Arrays(partial(ChunkedArray, kind, *origin), os.path.basename(path), labels, origin)
    except UserError:
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise UserError(f"cannot read '{path}' as {name}: {one_line(error)}") from error


def label_of(value: Any) -> str:
    """A label as text: HDF5 has bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def open_zarr(spec: str) -> Source:
    """An array of Zarr, or in a group of it: see `open_chunked`."""
    return open_chunked("zarr", spec)


def open_hdf5(spec: str) -> Source:
    """An array in an HDF5 file: see `open_chunked`."""
    return open_chunked("hdf5", spec)
