"""Images that are a .npy file each."""

import io

import numpy as np

from torchmae.data.formats.raster import BadImage, Raster, in_megapixels, known_kind, one_line

MOST_CHANNELS = 64  # of an array whose first axis are its channels


def is_npy(data: bytes) -> bool:
    """Whether bytes are an array of numpy."""
    return data.startswith(np.lib.format.MAGIC_PREFIX)


def read_npy(data: bytes, number: int, max_megapixels: float) -> Raster:
    """[H, W] or [H, W, C]; [C, H, W] where that has its shortest axis first.

    Raises:
        BadImage: whatever is wrong with it.
    """
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged .npy: {one_line(error)}") from error
    if values.ndim == 3 and values.shape[0] <= MOST_CHANNELS and values.shape[0] < values.shape[2]:
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3):
        raise BadImage(f"an array {list(values.shape)} is no image [H, W], [H, W, C], [C, H, W]")
    in_megapixels(values.shape[0], values.shape[1], max_megapixels)
    return Raster(known_kind(values.reshape(*values.shape[:2], -1)))
