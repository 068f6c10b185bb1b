"""Arrays in .npy and .npz files, and the digits."""

import os
import pickle

import numpy as np
import pytest
from helpers.sources import labels, noise

from torchmae.data.sources import open_source
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
            open_source(f"{tmp_path}/c.npz?kye=val_images")

    def test_a_mapped_file_is_not_read_or_pickled_whole(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(100, 64, 64, 3))
        assert len(pickle.dumps(open_source(tmp_path / "x.npy"))) < 2000

    @pytest.mark.parametrize(
        "array, reason",
        [
            (np.zeros((4, 20, 20, 3), np.float32), "holds float32"),
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
