"""Folders of .npy files, one image each."""

from pathlib import Path

import numpy as np
import pytest

from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source


def test_a_folder_of_them(tmp_path: Path):
    pixels = np.random.default_rng(0).normal(size=(20, 24, 5)).astype(np.float32)
    np.save(tmp_path / "1.npy", pixels)
    np.save(tmp_path / "2.npy", pixels.transpose(2, 0, 1))
    source = open_source(tmp_path)
    assert (len(source), source.channels, source.dtype) == (2, 5, "float32")
    for i in range(2):
        assert np.array_equal(read_pixels(source, i), pixels)


def test_bad_ones(tmp_path: Path):
    np.save(tmp_path / "1.npy", np.zeros((2, 3, 4, 5)))
    with pytest.raises(BadImage, match="is no image"):
        decode((tmp_path / "1.npy").read_bytes())
    np.save(tmp_path / "2.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(BadImage, match="damaged .npy"):
        decode((tmp_path / "2.npy").read_bytes())
