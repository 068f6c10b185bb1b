"""Slices of NIfTI volumes by nibabel."""

import struct
import zlib
from typing import Any

import numpy as np

from torchmae.data.formats.raster import BadImage, Raster, in_megapixels, known_kind, one_line
from torchmae.errors import library

GZIP, HEADER = b"\x1f\x8b", 348
MOST_BYTES = 4 * 10**9  # of an unpacked volume


def is_nifti(data: bytes) -> bool:
    """Whether bytes are a NIfTI-1 file, packed by gzip or not."""
    return start_of(data, HEADER)[344:348] in (b"n+1\0", b"ni1\0")


def start_of(data: bytes, length: int) -> bytes:
    """The first bytes, unpacked."""
    if not data.startswith(GZIP):
        return data[:length]
    try:
        return zlib.decompressobj(31).decompress(data[: 1 << 16], length)
    except zlib.error:
        return b""


def shape_of(data: bytes) -> tuple[tuple[int, ...], int]:
    """(columns, rows, slices, channels) of a volume, and its bytes when unpacked.

    Raises:
        BadImage: the header says neither 2-D nor 3-D nor 4-D.
    """
    head = start_of(data, HEADER)
    order = "<" if struct.unpack_from("<i", head)[0] == HEADER else ">"
    dim = struct.unpack_from(f"{order}8h", head, 40)
    bits = struct.unpack_from(f"{order}h", head, 72)[0]
    sides = dim[1 : dim[0] + 1]
    if not 2 <= dim[0] <= 4 or min(sides) < 1:
        raise BadImage(f"a NIfTI of shape {list(sides)}: 2 to 4 dimensions are read")
    sides += (1,) * (4 - len(sides))
    return sides, int(np.prod(sides, dtype=np.int64)) * bits // 8


def count_slices(data: bytes) -> int:
    """How many slices a volume has, along its third axis."""
    return shape_of(data)[0][2]


def read_volume(data: bytes) -> np.ndarray:
    """All values as [columns, rows, slices, channels], scaled as the header says.

    Raises:
        BadImage: whatever is wrong with it.
        UserError: nibabel is missing.
    """
    sides, size = shape_of(data)
    if size > MOST_BYTES:
        raise BadImage(f"a volume of {size / 1e9:,.1f} GB, more than {MOST_BYTES / 1e9:g}")
    nibabel: Any = library("nibabel", "nifti")
    try:
        if data.startswith(GZIP):
            unpacker = zlib.decompressobj(31)
            data = unpacker.decompress(data, size + (1 << 20))
            if not unpacker.eof:
                raise BadImage("a truncated NIfTI, or more bytes than its header says")
        image = nibabel.Nifti1Image.from_bytes(data)
        return np.asanyarray(image.dataobj).reshape(sides)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged NIfTI: {one_line(error)}") from error


def read_nifti(data: bytes, number: int, max_megapixels: float) -> Raster:
    """One slice: rows are the second axis of the volume, columns the first, channels the fourth."""
    (columns, rows, _, _), _ = shape_of(data)
    in_megapixels(rows, columns, max_megapixels)
    return Raster(known_kind(read_volume(data)[:, :, number].transpose(1, 0, 2)))
