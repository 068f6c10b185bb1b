"""Windows of TIFFs that tifffile writes, compared with tifffile's reading of the whole."""

import io
from typing import Any

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile")

from torchmae.data.formats.raster import BadImage  # noqa: E402
from torchmae.data.large.window import (  # noqa: E402
    Box,
    has_windows,
    opened,
    read_window,
    smallest_level,
    tiff_levels,
    tiff_overview,
)


def waves(channels: int, dtype: str) -> np.ndarray:
    rows, columns = np.mgrid[0:300, 0:500]
    values = [
        (np.sin(rows / (7 + c)) + np.cos(columns / (11 + c)) + 2) / 4 for c in range(channels)
    ]
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "ui" else 1.0
    return (np.stack(values, axis=-1) * top).astype(dtype)


GRAY: dict[str, Any] = dict(photometric="minisblack", metadata=None)
COLOR: dict[str, Any] = dict(photometric="rgb", metadata=None)
KINDS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "color in tiles": (waves(3, "uint8"), COLOR | dict(tile=(64, 80))),
    "JPEG tiles": (
        waves(3, "uint8"),
        dict(photometric="ycbcr", compression="jpeg", tile=(64, 64), metadata=None),
    ),
    "five bands": (
        waves(5, "uint16"),
        GRAY | dict(planarconfig="contig", tile=(64, 80), compression="zlib", predictor=True),
    ),
    "five planes": (
        waves(5, "uint16").transpose(2, 0, 1),
        GRAY | dict(planarconfig="separate", tile=(64, 80), compression="zlib"),
    ),
    "strips of floats": (waves(1, "float32")[..., 0], GRAY | dict(rowsperstrip=7)),
    "one strip": (waves(3, "uint8"), COLOR),
    "BigTIFF": (waves(1, "int16")[..., 0], GRAY | dict(bigtiff=True, tile=(128, 128))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_that_part_of_the_whole(kind, tmp_path):
    values, options = KINDS[kind]
    path = str(tmp_path / "large.tif")
    tifffile.imwrite(path, values, **options)
    whole = tifffile.imread(path)
    whole = whole.transpose(1, 2, 0) if kind == "five planes" else whole
    assert has_windows(path)
    for box in (Box(0, 0, 50, 60), Box(123, 211, 100, 90), Box(200, 400, 100, 100)):
        window = tifffile.imread(io.BytesIO(read_window(path, box, 100)))
        wanted = whole[box.top : box.top + box.height, box.left : box.left + box.width]
        assert window.dtype == wanted.dtype and np.array_equal(window, wanted)
    seen = tiff_overview(path, 8, 100)
    assert (seen.step, seen.size) == (8, (300, 500))
    assert np.array_equal(seen.values, np.atleast_3d(whole)[::8, ::8].astype(np.float32))


def test_only_the_tiles_of_a_window_are_read(tmp_path):
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, waves(3, "uint8"), tile=(64, 64), compression="zlib", **COLOR)
    box = Box(70, 70, 50, 50)  # inside the second tile of the second row
    before = read_window(str(path), box, 100)
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts))
    damaged = bytearray(path.read_bytes())
    for i, (offset, count) in enumerate(places):
        if i != 8 + 1:
            damaged[offset : offset + count] = bytes(count)
    path.write_bytes(damaged)
    assert read_window(str(path), box, 100) == before
    with pytest.raises(BadImage, match="damaged TIFF"):
        read_window(str(path), Box(0, 0, 50, 50), 100)


@pytest.mark.parametrize("inside", [True, False])  # as OME-TIFF has levels, and as GDAL
def test_the_smallest_level_that_is_fine_enough(inside, tmp_path):
    path, values = str(tmp_path / "slide.tif"), np.tile(waves(3, "uint8")[:256, :256], (2, 2, 1))
    options = COLOR | dict(tile=(64, 64))
    with tifffile.TiffWriter(path) as file:
        file.write(values, subifds=2 if inside else None, **options)
        file.write(values[::2, ::2], subfiletype=1, **options)
        file.write(values[::4, ::4], subfiletype=1, **options)
    with opened(path) as file:
        assert [smallest_level(file, most)[1] for most in (8, 3, 1)] == [4, 2, 1]
    seen = tiff_overview(path, 8, 100)
    assert seen.step == 8 and np.array_equal(seen.values, values[::8, ::8])
    assert tiff_levels(path) == [(512, 512), (256, 256), (128, 128)]
    for level, step in enumerate((1, 2, 4)):
        known, box = values[::step, ::step], Box(30, 50, 70, 60)
        window = tifffile.imread(io.BytesIO(read_window(path, box, 100, level)))
        assert np.array_equal(window, known[30:100, 50:110])
        seen = tiff_overview(path, 4, 100, level)
        assert seen.step == 4 and np.array_equal(seen.values, known[::4, ::4])


def test_levels_of_channels_in_pages(tmp_path):
    path, values = str(tmp_path / "slide.ome.tif"), waves(4, "uint16").transpose(2, 0, 1)
    options = dict(photometric="minisblack", tile=(64, 64))
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(values, subifds=1, metadata={"axes": "CYX"}, **options)
        file.write(values[:, ::2, ::2], subfiletype=1, metadata=None, **options)
    assert tiff_levels(path) == [(300, 500), (150, 250)]
    window = tifffile.imread(io.BytesIO(read_window(path, Box(9, 20, 40, 50), 100, 1)))
    assert np.array_equal(window, values[:, ::2, ::2].transpose(1, 2, 0)[9:49, 20:70])


def test_what_has_no_windows(tmp_path):
    (tmp_path / "no.tif").write_bytes(b"\xff\xd8\xff not a TIFF")
    assert not has_windows(str(tmp_path / "no.tif"))
    path = str(tmp_path / "bits.tif")
    tifffile.imwrite(path, waves(1, "uint8")[..., 0] > 99, photometric="minisblack")
    assert not has_windows(path)
    tifffile.imwrite(path, waves(3, "uint8"), rowsperstrip=300, **COLOR)
    with pytest.raises(BadImage, match=r"pieces of 0\.1 megapixels.*tiles"):
        read_window(path, Box(0, 0, 8, 8), 0.1)
