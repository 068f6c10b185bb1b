"""Images that are a .npy or .npz file each."""

import io
import math
import zipfile
from typing import Any

import numpy as np

from torchmae.data.formats.raster import BadImage, Raster, in_megapixels, known_kind, one_line

MOST_CHANNELS = 64  # of an array whose first axis are its channels
ZIP = b"PK\3\4"


def is_npy(data: bytes) -> bool:
    """Whether bytes are an array of numpy, or a .npz."""
    return data.startswith((np.lib.format.MAGIC_PREFIX, ZIP))


def read_npy(data: bytes, number: int, max_megapixels: float) -> Raster:
    """[H, W] or [H, W, C]; [C, H, W] where that has its shortest axis first. A .npz holds one.

    Raises:
        BadImage: whatever is wrong with it.
    """
    suffix = ".npz" if data.startswith(ZIP) else ".npy"
    try:
        if suffix == ".npy":
            values = read_array(io.BytesIO(data), max_megapixels)
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = archive.namelist()
                if len(names) != 1:
                    listed = ", ".join(one.removesuffix(".npy") for one in names[:8])
                    raise BadImage(f"{len(names)} arrays ({listed}): one image in each .npz")
                with archive.open(names[0]) as member:
                    values = read_array(member, max_megapixels)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged {suffix}: {one_line(error)}") from error
    if is_first(values.shape):
        values = values.transpose(1, 2, 0)
    return Raster(known_kind(values.reshape(*values.shape[:2], -1)))


def is_first(shape: tuple[int, ...]) -> bool:
    """Whether an image of this shape has its channels on the first axis."""
    return len(shape) == 3 and shape[0] <= MOST_CHANNELS and shape[0] < shape[2]


def read_array(file: Any, max_megapixels: float) -> np.ndarray:
    """The array of a .npy, whose header says first whether it is an image, and how large."""
    version = np.lib.format.read_magic(file)
    one = version == (1, 0)
    header = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(file)
    if len(shape) not in (2, 3):
        raise BadImage(f"an array {list(shape)} is no image [H, W], [H, W, C], [C, H, W]")
    if dtype.hasobject:
        raise BadImage(f"{dtype} values are no pixels")
    height, width = shape[1:] if is_first(shape) else shape[:2]
    in_megapixels(height, width, max_megapixels)
    size = math.prod(shape) * dtype.itemsize
    data = file.read(size)  # of a .npz no more is unpacked than that
    if len(data) < size:
        raise BadImage("truncated: its header says more values than there are")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
