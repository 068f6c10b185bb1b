"""Large images as tiles: which there are, what they show, which are empty."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

tifffile = pytest.importorskip("tifffile")

import torchmae  # noqa: E402
from torchmae.data.config import DecodeOptions, Listing  # noqa: E402
from torchmae.data.loader import read_pixels  # noqa: E402
from torchmae.data.sources import open_source, with_decode  # noqa: E402
from torchmae.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A white slide with two pieces of tissue, and a small photo beside it."""
    folder = tmp_path_factory.mktemp("slides")
    draw = np.random.default_rng(0)
    pixels = (245 + draw.normal(0, 2, (400, 600, 3))).clip(0, 255).astype(np.uint8)
    pixels[:128, :128] = draw.integers(80, 200, (128, 128, 3))
    pixels[300:390, 500:590] = draw.integers(80, 200, (90, 90, 3))
    tifffile.imwrite(folder / "a.tif", pixels, tile=(64, 64), photometric="rgb", metadata=None)
    Image.fromarray(pixels[:100, :90]).save(folder / "b.png")
    return folder


def names(folder: Path, **listing: float) -> list[str]:
    source = open_source(folder, listing=Listing(**listing))
    return [source.name(i) for i in range(len(source))]


def test_empty_tiles_are_left_out(slide):
    source = open_source(slide, listing=Listing(tile=128))
    # The last tiles end at the image's edges: 400 px are 0, 128, 256, 272; 600 are 0, ..., 472.
    found = [source.name(i) for i in range(len(source))]
    assert found == [
        "a.tif[0,0]",
        *(f"a.tif[{top},{left}]" for top in (256, 272) for left in (384, 472)),
        "b.png",
    ]
    assert "of 21 tiles are empty" in source.left_out
    assert len(names(slide, tile=128, empty=0)) == 4 * 5 + 1


def test_a_tile_is_that_part_of_the_image(slide):
    whole = read_pixels(open_source(slide), 0)
    source = open_source(slide, listing=Listing(tile=128, overlap=32, empty=0))
    for i in (0, 5, len(source) - 2):
        top, left, height, width = source.box(i)
        part = whole[top : top + height, left : left + width]
        assert np.array_equal(read_pixels(source, i), part)
    tops = sorted({int(source.box(i).top) for i in range(len(source) - 1)})
    assert tops == [0, 96, 192, 272]
    gray = with_decode(source, DecodeOptions(channels=1))
    assert read_pixels(gray, 0).shape == (128, 128, 1)


def test_every_file_is_cut_alike(slide, tmp_path):
    """A PNG is decoded whole, a TIFF not; the tiles are equal."""
    Image.fromarray(read_pixels(open_source(slide), 0)).save(tmp_path / "a.png")
    png = open_source(tmp_path, listing=Listing(tile=128))
    tif = open_source(slide, listing=Listing(tile=128))
    assert [png.name(i)[5:] for i in range(len(png))] == [
        tif.name(i)[5:] for i in range(len(tif) - 1)
    ]
    for i in range(len(png)):
        assert np.array_equal(read_pixels(png, i), read_pixels(tif, i))


def test_tiles_are_recognized_as_such(slide):
    one, other = (open_source(slide, listing=Listing(tile=side)) for side in (128, 120))
    assert len({one.fingerprint(), other.fingerprint(), open_source(slide).fingerprint()}) == 3
    assert one.fingerprint() == open_source(slide, listing=Listing(tile=128)).fingerprint()
    assert one.group(0) == one.group(4) == "a.tif" and one.group(5) is None


def test_scenes_keep_bands_and_no_data(tmp_path):
    values = np.random.default_rng(0).normal(500, 100, (256, 256, 4)).astype(np.int16)
    values[:128, :128] = -9999
    values[:128, 128:] = 500
    tags = [(42113, "s", 0, "-9999", True)]
    options = dict(photometric="minisblack", planarconfig="contig", tile=(64, 64), extratags=tags)
    tifffile.imwrite(tmp_path / "scene.tif", values, metadata=None, **options)
    decode = DecodeOptions(bands=("4", "2"))
    source = open_source(tmp_path, decode, Listing(tile=128))
    assert [source.name(i) for i in range(len(source))] == [
        "scene.tif[128,0]",
        "scene.tif[128,128]",
    ]
    assert (source.channels, source.dtype) == (2, "float32")
    assert np.array_equal(read_pixels(source, 0), values[128:, :128, [3, 1]])
    all_of = open_source(tmp_path, decode, Listing(tile=96, empty=0))
    assert all_of.name(0) == "scene.tif[0,96]"  # that at 0, 0 has no values
    corner = read_pixels(all_of, 0)
    assert np.isnan(corner[:, :32]).all() and np.isfinite(corner[:, 32:]).all()


def test_a_slide_of_nothing_but_glass_says_so(tmp_path):
    Image.fromarray(np.full((300, 300, 3), 240, np.uint8)).save(tmp_path / "glass.png")
    with pytest.raises(UserError, match=r"all 9 tiles of 128 px are empty.*--empty 0"):
        open_source(tmp_path, listing=Listing(tile=128))


def test_tiles_are_packed(slide, tmp_path):
    torchmae.pack(slide, out=tmp_path / "packed", tile=128)
    packed, tiles = open_source(tmp_path / "packed"), open_source(slide, listing=Listing(tile=128))
    assert len(packed) == len(tiles)
    for i in range(len(tiles)):
        assert packed.name(i).startswith(tiles.name(i))  # then ".tif"
        assert np.array_equal(read_pixels(packed, i), read_pixels(tiles, i))
