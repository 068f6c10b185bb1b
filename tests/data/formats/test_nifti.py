"""Slices of volumes that nibabel writes are read back equal to the bit."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import read_pixels
from torchmae.data.sources import open_source

nibabel = pytest.importorskip("nibabel", reason="an extra")
VOLUME = np.random.default_rng(0).integers(-1000, 1000, (24, 20, 5)).astype(np.int16)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices(tmp_path: Path, ending: str):
    nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), tmp_path / f"v{ending}")
    source = open_source(tmp_path)
    assert (len(source), source.dtype, source.channels) == (5, "int16", 1)
    assert source.name(3) == f"v{ending}[3]"
    theirs = np.asanyarray(nibabel.load(tmp_path / f"v{ending}").dataobj)
    for k in range(5):
        assert np.array_equal(read_pixels(source, k)[..., 0], theirs[:, :, k].T)


def test_scaled_values_and_channels(tmp_path: Path):
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(2, 1)
    nibabel.save(image, tmp_path / "scaled.nii")
    theirs = np.asanyarray(nibabel.load(tmp_path / "scaled.nii").dataobj)
    made = decode((tmp_path / "scaled.nii").read_bytes())
    assert made.dtype == np.float32 and np.array_equal(made[..., 0], theirs[:, :, 0].T)
    several = np.stack([VOLUME, -VOLUME], axis=3)
    nibabel.save(nibabel.Nifti1Image(several, np.eye(4)), tmp_path / "several.nii")
    made = decode((tmp_path / "several.nii").read_bytes())
    assert np.array_equal(made, several[:, :, 0].transpose(1, 0, 2))


def test_bad_ones(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), tmp_path / "v.nii.gz")
    data = (tmp_path / "v.nii.gz").read_bytes()
    more = gzip.compress(gzip.decompress(data) + bytes(10**7))  # than the header says
    for bad in (data[:1000], data[:-20], more, gzip.decompress(data)[:900]):
        with pytest.raises(BadImage, match="NIfTI"):
            decode(bad)
