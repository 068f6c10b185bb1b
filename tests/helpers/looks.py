"""Pictures that look different from each other."""

import numpy as np
from PIL import Image


def smooth(seed: int, width: int = 120, height: int = 90) -> np.ndarray:
    """Soft blobs of color, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
