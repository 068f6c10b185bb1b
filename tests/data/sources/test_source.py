"""What sources are built of."""

import pickle
from functools import partial

import numpy as np
import pytest
from helpers.sources import grey12, names, noise, plant, png

from torchmae.data.cache.memory import Cached
from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage
from torchmae.data.loader import read_pixels
from torchmae.data.scan import scan
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.arrays import Arrays
from torchmae.data.sources.source import Source, StringArray, Subset
from torchmae.errors import UserError


def test_strings():
    items = ["a", "", "ü/漢字.jpg", "\udcff.png", "z" * 300]
    strings = pickle.loads(pickle.dumps(StringArray(items)))
    assert (
        list(strings) == items
        and strings[-1] == items[-1]
        and strings[1:3] == items[1:3]
        and len(strings) == 5
    )
    with pytest.raises(IndexError):
        strings[5]
    assert list(StringArray([])) == []


def pixels_of(source: Source) -> list[np.ndarray]:
    return [read_pixels(source, i) for i in range(len(source))]


def test_a_copy_decodes_otherwise_and_the_source_as_before(tmp_path):
    source = open_source(grey12(tmp_path / "grey", 4))
    before = source.decode
    other = with_decode(source, DecodeOptions(channels=3))
    assert (source.decode, source.channels, source.dtype) == (before, 1, "uint16")
    assert (other.decode, other.channels) == (DecodeOptions(channels=3), 3)
    assert names(other) == names(source) and other.fingerprint() == source.fingerprint()
    assert all(pixels.shape[2] == 3 and pixels.max() == 4095 for pixels in pixels_of(other))
    with pytest.raises(UserError, match="the images have uint16 pixels, uint8 is expected"):
        with_decode(source, DecodeOptions(dtype="uint8"))
    assert with_decode(other, other.decode) is other


def test_wrappers_hand_on_how_to_decode(tmp_path):
    source = open_source(grey12(tmp_path / "grey", 4), DecodeOptions(channels=3))
    part = Subset(Subset(source, [3, 2, 0]), [1, 2])
    assert part.decode is source.decode and part.channels == 3
    grey = with_decode(part, DecodeOptions(channels=1))
    assert names(grey) == names(part) == [source.name(2), source.name(0)] and grey.channels == 1
    assert part.channels == source.channels == 3
    for one, other in zip(pixels_of(grey), pixels_of(part)):
        assert np.array_equal(one, other[..., :1])


def test_a_copy_of_a_cache_is_without_it(tmp_path):
    source = open_source(grey12(tmp_path / "grey", 4))
    cached = Cached(source, scan(source).sizes)
    want = [np.where(pixels == 4095, np.nan, pixels) for pixels in pixels_of(source)]
    assert cached.decode == source.decode and with_decode(cached, source.decode) is cached
    other = with_decode(cached, DecodeOptions(nodata=4095))
    for _ in range(2):  # what is decoded once is kept, but not under other options
        assert all(map(partial(np.array_equal, equal_nan=True), pixels_of(other), want))
        assert all(np.array_equal(a, b) for a, b in zip(pixels_of(cached), pixels_of(source)))


def test_an_array_is_not_loaded_again(tmp_path):
    np.savez(tmp_path / "x.npz", noise(4, 20, 20, 3))
    source = open_source(tmp_path / "x.npz")
    assert isinstance(source, Arrays)
    (tmp_path / "x.npz").unlink()
    grey = with_decode(source, DecodeOptions(channels=1))
    assert isinstance(grey, Arrays) and grey.pixels is source.pixels
    assert read_pixels(grey, 0).shape == (20, 20, 1)


def test_impossible_options_are_refused_at_opening_and_channels_when_decoding(tmp_path):
    plant(tmp_path / "files", "a.png")
    np.save(tmp_path / "x.npy", noise(4, 20, 24, 7))
    with pytest.raises(UserError, match="--channels 0: must be more than 0"):
        open_source(tmp_path / "files", DecodeOptions(channels=0))
    with pytest.raises(BadImage, match="the images have 3 channels, which cannot become 2"):
        read_pixels(open_source(tmp_path / "files", DecodeOptions(channels=2)), 0)
    with pytest.raises(UserError, match="the images have 7 channels, which cannot become 3"):
        read_pixels(open_source(tmp_path / "x.npy", DecodeOptions(channels=3)), 0)


def test_a_source_of_ones_own_needs_five_methods():
    class Mine(Source):
        def __len__(self) -> int:
            return 2

        def name(self, i: int) -> str:
            return f"mine[{i}]"

        def label(self, i: int) -> str | None:
            return None

        def read(self, i: int) -> bytes:
            return png(i)

        def fingerprint(self) -> str:
            return "00"

        def stamp(self) -> str | None:
            return None

    source = Mine()
    assert isinstance(source, Source) and source.channels == 3 and source.unusable == ()
    assert read_pixels(with_decode(source, DecodeOptions(channels=1)), 0).shape == (7, 6, 1)
