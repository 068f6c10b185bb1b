"""Arrays in .npy and .npz files, and the digits."""

import io
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers.sources import labels, noise

from torchmae.data.sources import arrays, open_source
from torchmae.errors import UserError


class TestArray:
    @pytest.mark.parametrize(
        "shape, want",
        [
            ((5, 32, 40, 3), (32, 40, 3)),
            ((5, 3, 32, 40), (32, 40, 3)),
            ((5, 32, 40), (32, 40, 1)),
            ((5, 12, 64, 64), (64, 64, 12)),
            ((5, 64, 20, 1), (64, 20, 1)),
        ],
    )
    def test_layouts(self, tmp_path, shape, want):
        pixels = noise(*shape)
        np.save(tmp_path / "x.npy", pixels)
        source = open_source(tmp_path / "x.npy")
        assert (
            source.read(3).shape == want
            and source.channels == want[2]
            and source.name(3) == "x.npy[3]"
        )
        straight = pixels[3][..., None] if len(shape) == 3 else pixels[3]
        again = np.moveaxis(straight, 0, -1) if straight.shape != want else straight
        np.testing.assert_array_equal(source.read(3), again)

    def test_said_layout(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(5, 8, 8, 8))
        with pytest.raises(UserError, match=r"not clear; add \?layout=NHWC"):
            open_source(tmp_path / "x.npy")
        plain, moved = (
            open_source(f"{tmp_path}/x.npy?layout={layout}").read(1) for layout in ("NHWC", "NCHW")
        )
        np.testing.assert_array_equal(np.moveaxis(plain, 0, -1), moved)  # type: ignore[type-var]

    def test_the_right_array_of_many(self, tmp_path):
        some, more = noise(4, 20, 20, 3), noise(2, 20, 20, 3)
        np.savez_compressed(tmp_path / "a.npz", pictures=some, y=[1, 0, 1, 2], weights=np.zeros(4))
        source = open_source(tmp_path / "a.npz")
        np.testing.assert_array_equal(source.read(2), some[2])
        assert labels(source) == ["1", "0", "1", "2"]
        np.savez(tmp_path / "b.npz", x_train=some, y_train=[1, 0, 1, 2], x_test=more, y_test=[5, 6])
        assert labels(open_source(tmp_path / "b.npz")) == ["1", "0", "1", "2"]
        assert labels(open_source(f"{tmp_path}/b.npz?key=x_test")) == ["5", "6"]
        np.savez(
            tmp_path / "c.npz",
            train_images=some,
            train_labels=np.array([[1], [0], [1], [2]]),
            val_images=more,
        )
        assert labels(open_source(f"{tmp_path}/c.npz?key=train_images")) == ["1", "0", "1", "2"]
        assert labels(open_source(f"{tmp_path}/c.npz?key=val_images")) == [None, None]
        with pytest.raises(
            UserError,
            match=r"which of the arrays .* one of: train_images, train_labels, val_images",
        ):
            open_source(tmp_path / "c.npz")
        with pytest.raises(UserError, match="Did you mean val_images"):
            open_source(f"{tmp_path}/c.npz?key=val_image")
        with pytest.raises(UserError, match="Did you mean key"):
            open_source(f"{tmp_path}/c.npz?keys=val_images")

    def test_a_mapped_file_is_not_read_or_pickled_whole(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(100, 64, 64, 3))
        assert len(pickle.dumps(open_source(tmp_path / "x.npy"))) < 2000

    @pytest.mark.parametrize(
        "array, reason",
        [
            (np.zeros((4, 20, 20, 3), np.float64), "holds float64"),
            (np.zeros((20, 20, 3), np.uint8), "expected images as"),
            (np.zeros((4, 300), np.uint8), "expected images as"),
            (np.zeros((0, 20, 20, 3), np.uint8), "expected images as"),
            (np.array([{}, {}]), "cannot read the array"),
        ],
    )
    def test_errors(self, tmp_path, array, reason):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(UserError, match=reason):
            open_source(tmp_path / "x.npy")

    def test_damaged_files(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(9, 20, 20, 3))
        os.truncate(tmp_path / "x.npy", 500)
        (tmp_path / "x.npz").write_bytes(b"PK\3\4 nonsense")
        for name in ("x.npy", "x.npz", "none.npy"):
            with pytest.raises(UserError, match="cannot read the array"):
                open_source(tmp_path / name)


def test_a_stamp_of_an_array_says_which_of_them(tmp_path):
    np.savez(tmp_path / "x.npz", one=noise(4, 20, 20, 3), two=noise(4, 20, 20, 3))
    specs = [f"{tmp_path}/x.npz?key={rest}" for rest in ("one", "two", "two&layout=NHWC")]
    assert len({open_source(spec).stamp() for spec in specs}) == 3


def test_digits():
    source = open_source("digits")
    assert source.name(17) == "digits[17]" and set(labels(source)) == set("0123456789")
    assert source.channels == 1 and source.read(0).shape == (32, 32, 1)
    assert 0 <= source.read(0).min() < 20 < 235 < source.read(0).max()


class TestUnpacking:
    """A .npz is in memory as a whole: 3 MB of a file can be 3.1 GB there."""

    def packed(self, path, **named):
        np.savez_compressed(path, **named)
        return path

    def refused(self, path) -> str:
        tracemalloc.start()
        try:
            with pytest.raises(UserError) as caught:
                open_source(path)
            assert tracemalloc.get_traced_memory()[1] < 2e6  # nothing is unpacked
        finally:
            tracemalloc.stop()
        return str(caught.value)

    def test_what_unpacks_to_too_much_is_refused(self, tmp_path, monkeypatch):
        blank = np.zeros((100, 128, 128, 3), np.uint8)
        path = self.packed(tmp_path / "blank.npz", images=blank)
        assert len(open_source(path)) == 100  # 5 MB are not worth a word
        monkeypatch.setattr(arrays, "SMALL", 10**6)
        assert "times its size in the file: not unpacked" in self.refused(path)
        monkeypatch.setattr(arrays, "free_memory", lambda: 9e6)
        full = self.packed(tmp_path / "full.npz", images=noise(100, 128, 128, 3))
        assert "more than half of the free memory" in self.refused(full)
        assert "numpy.save" in self.refused(full)
        np.save(tmp_path / "full.npy", noise(100, 128, 128, 3))  # stays on the disk
        assert len(open_source(tmp_path / "full.npy")) == 100
        np.save(tmp_path / "f.npy", np.asfortranarray(noise(100, 128, 128, 3)))
        assert "Fortran order and has to be loaded whole" in self.refused(tmp_path / "f.npy")

    def test_labels_count_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(arrays, "SMALL", 10**6)
        long = np.zeros(20, dtype="U100000")
        path = self.packed(tmp_path / "x.npz", images=noise(20, 8, 8, 3), labels=long)
        assert "'labels'" in self.refused(path)

    def test_a_header_that_is_not_true_is_refused(self, tmp_path):
        data = io.BytesIO()
        np.save(data, noise(4, 20, 20, 3))
        forged = data.getvalue().replace(b"(4, 20, 20, 3)", b"(9, 20, 20, 3)")
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("images.npy", forged)
        assert "the zip has 4928 bytes" in self.refused(tmp_path / "x.npz")


def test_arrays_of_the_other_suffix_are_told_so(tmp_path):
    """They ended in: failed: AttributeError: 'NpzFile' object has no attribute 'dtype'."""
    np.savez(tmp_path / "a.npz", images=noise(4, 20, 20, 3))
    np.save(tmp_path / "b.npy", noise(4, 20, 20, 3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(UserError, match=r"a\.npy' is a \.npz named \.npy: rename it to \.npz"):
        open_source(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"b\.npz' is a \.npy named \.npz: rename it to \.npy"):
        open_source(tmp_path / "b.npz")
