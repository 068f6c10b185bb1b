"""Formats that Pillow does not read, known by their first bytes: each is a row of `FORMATS`. A file
may hold several images, its slices.

TIFFs are not among them: most are Pillow's, the others tifffile's (`torchmae.data.decode`).
"""

from collections.abc import Callable
from typing import NamedTuple

from torchmae.data.formats.dicom import count_frames, is_dicom, read_dicom
from torchmae.data.formats.jpegxl import is_jpegxl, read_jpegxl
from torchmae.data.formats.nifti import count_slices, is_nifti, read_nifti
from torchmae.data.formats.numpy_file import is_npy, read_npy
from torchmae.data.formats.raster import Raster


class Format(NamedTuple):
    """How files of one format become pixels.

    `claims` says whether bytes are of it, `read` makes pixels of (bytes, slice, --max-megapixels),
    `slices` says how many slices a file has (None: always one).
    """

    extensions: tuple[str, ...]
    claims: Callable[[bytes], bool]
    read: Callable[[bytes, int, float], Raster]
    slices: Callable[[bytes], int] | None = None


FORMATS: dict[str, Format] = {
    "DICOM": Format((".dcm", ".dicom"), is_dicom, read_dicom, count_frames),
    "NIfTI": Format((".nii", ".nii.gz"), is_nifti, read_nifti, count_slices),
    "JPEG XL": Format((".jxl",), is_jpegxl, read_jpegxl),
    "NumPy": Format((".npy", ".npz"), is_npy, read_npy),
}

# Of files whose slices are images of their own.
SLICED = frozenset(e for one in FORMATS.values() if one.slices for e in one.extensions)


# Of files that are images wherever they lie; .npy and .npz may be anything.
LISTED = frozenset(e for name, one in FORMATS.items() if name != "NumPy" for e in one.extensions)


def format_of(data: bytes) -> str | None:
    """The name of the format in `FORMATS` that claims bytes, if one does."""
    return next((name for name, one in FORMATS.items() if one.claims(data)), None)
