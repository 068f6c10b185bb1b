"""The array of a .npy file, read image by image."""

import os

import numpy as np

from torchmae.data.decode import BadImage
from torchmae.data.sources.tars import Handle


class ArrayFile:
    """Images of a file that numpy has mapped into memory, read without the mapping.

    If a mapped file is cut short meanwhile, touching what is gone kills the process (SIGBUS).

    Args:
        mapped: [N, ...], whose images are each in one piece; nothing of it is touched.
    """

    def __init__(self, mapped: np.memmap):
        assert mapped.filename is not None
        self.shape = mapped.shape
        self.dtype = mapped.dtype
        self.strides = mapped.strides
        self.start = mapped.offset
        self.file = Handle(os.fspath(mapped.filename))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> np.ndarray:
        size = self.strides[0]
        data = os.pread(self.file.descriptor, size, self.start + range(len(self))[i] * size)
        if len(data) < size:
            raise BadImage("the file is shorter than when it was opened")
        return np.ndarray(self.shape[1:], self.dtype, data, strides=self.strides[1:])


def in_one_piece(pixels: np.ndarray) -> bool:
    """Whether the bytes of each image of an array lie together; not so in Fortran order."""
    return bool(pixels.strides[0] == pixels[0].nbytes)


def unmapped(pixels: np.ndarray) -> "np.ndarray | ArrayFile":
    """The same array without a file that is mapped into memory."""
    if not isinstance(pixels, np.memmap):
        return pixels
    return ArrayFile(pixels) if in_one_piece(pixels) else np.array(pixels)
