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
    np.save(tmp_path / "2.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(BadImage, match="object values are no pixels"):
        decode((tmp_path / "2.npy").read_bytes())
    np.save(tmp_path / "3.npy", np.zeros((20, 20)))
    with pytest.raises(BadImage, match="damaged .npy"):
        decode((tmp_path / "3.npy").read_bytes()[:99])
    with pytest.raises(BadImage, match="more values than there are"):
        decode((tmp_path / "3.npy").read_bytes()[:-9])


def test_npz_files_of_one_array(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 999, (20, 24, 5)).astype(np.uint16)
    np.savez_compressed(tmp_path / "1.npz", pixels)
    np.savez(tmp_path / "2.npz", scan=np.asfortranarray(pixels))
    np.savez(tmp_path / "3.npz", pixels, pixels)
    np.savez_compressed(tmp_path / "4.npz", np.zeros((11_000, 11_000), bool))
    (tmp_path / "5.npz").write_bytes((tmp_path / "1.npz").read_bytes()[:300])
    source = open_source(tmp_path)
    assert (len(source), source.channels, source.dtype) == (5, 5, "uint16")
    for i in range(2):
        assert np.array_equal(read_pixels(source, i), pixels)
    for i, message in (
        (2, r"2 arrays \(arr_0, arr_1\): one image in each .npz"),
        (3, "121.0 megapixels, more than the limit"),
        (4, "damaged .npz"),
    ):
        with pytest.raises(BadImage, match=message):
            read_pixels(source, i)
