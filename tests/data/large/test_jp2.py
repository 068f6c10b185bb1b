"""Windows of JPEG 2000 that GDAL writes without loss."""

import io
from pathlib import Path

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile")
rasterio = pytest.importorskip("rasterio")

from rasterio.transform import from_origin  # noqa: E402

from torchmae.data.config import Listing  # noqa: E402
from torchmae.data.formats.raster import BadImage  # noqa: E402
from torchmae.data.large.jp2 import is_jp2, jp2_levels, jp2_overview, jp2_window  # noqa: E402
from torchmae.data.large.stitch import LabelMaps  # noqa: E402
from torchmae.data.large.window import Box  # noqa: E402
from torchmae.data.loader import read_pixels  # noqa: E402
from torchmae.data.sources import open_source  # noqa: E402
from torchmae.errors import UserError  # noqa: E402

SIZE = (300, 450)


def waves(bands: int, dtype: str) -> np.ndarray:
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    values = [(np.sin(rows / (9 + k)) + np.cos(columns / (13 + k)) + 2) / 4 for k in range(bands)]
    return (np.stack(values) * np.iinfo(dtype).max).astype(dtype)


def write(path: Path, values: np.ndarray, side: int, **about: object) -> None:
    bands, height, width = values.shape
    options = dict(QUALITY=100, REVERSIBLE="YES", BLOCKXSIZE=side, BLOCKYSIZE=side)
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        width=width,
        height=height,
        count=bands,
        dtype=values.dtype.name,
        **options,
        **about,
    ) as file:
        file.write(values)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Four bands of 16 bits at a place on the earth."""
    folder, values = tmp_path_factory.mktemp("scene"), waves(4, "uint16")
    place = dict(crs="EPSG:32632", transform=from_origin(600000, 5100000, 10, 10))
    write(folder / "scene.jp2", values, 128, **place)
    return folder, values.transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["4 x uint16", "3 x uint8", "1 x uint16", "one piece"])
def test_a_window_is_that_part_of_the_whole(kind, scene, tmp_path):
    if kind == "4 x uint16":
        path, whole = scene[0] / "scene.jp2", scene[1]
    else:
        bands, dtype = (3, "uint8") if kind == "3 x uint8" else (1, "uint16")
        path, values = tmp_path / "large.jp2", waves(bands, dtype)
        write(path, values, 512 if kind == "one piece" else 128)
        whole = values.transpose(1, 2, 0)
    assert is_jp2(str(path))
    for box in (Box(0, 0, 50, 60), Box(120, 111, 100, 90), Box(250, 400, 50, 50)):
        window = np.atleast_3d(tifffile.imread(io.BytesIO(jp2_window(str(path), box, 100))))
        wanted = whole[box.top : box.top + box.height, box.left : box.left + box.width]
        assert window.dtype == wanted.dtype and np.array_equal(window, wanted)


def test_tiles_and_levels(scene):
    folder, whole = scene
    source = open_source(folder, listing=Listing(tile=128, empty=0))
    assert (len(source), source.channels, source.dtype) == (12, 4, "uint16")
    top, left, *_ = source.box(5)
    assert np.array_equal(read_pixels(source, 5), whole[top : top + 128, left : left + 128])
    path = str(folder / "scene.jp2")
    sizes = jp2_levels(path)
    assert sizes[:2] == [SIZE, (150, 225)]
    # A level is what it would be if it were decoded alone: the wavelets' own smoothing.
    half = open_source(folder, listing=Listing(tile=128, empty=0, level=1))
    assert len(half) == 4 and half.fingerprint() != source.fingerprint()
    with rasterio.open(path, overview_level=0) as file:
        known = file.read().transpose(1, 2, 0)
    assert np.array_equal(read_pixels(half, 3), known[22:, 97:])
    smooth = whole.reshape(150, 2, 225, 2, 4).mean((1, 3))
    assert np.abs(known - smooth).mean() < 0.02 * 65535
    one = open_source(folder, listing=Listing(tile=256, empty=0, level=1))  # not the file itself
    assert [one.name(0), read_pixels(one, 0).shape] == ["scene.jp2", (150, 225, 4)]
    seen = jp2_overview(path, 8, 100)
    assert seen.size == SIZE and abs(seen.values.shape[0] * seen.step - 300) <= seen.step
    with pytest.raises(UserError, match=r"--level 9: scene.jp2 has the levels 0: 450 x 300"):
        open_source(folder, listing=Listing(tile=128, level=9))


@pytest.mark.parametrize("level", [0, 1])
def test_maps_lie_where_the_scene_does(level, scene, tmp_path):
    tiles = open_source(scene[0], listing=Listing(tile=128, empty=0, level=level))
    maps = LabelMaps(tmp_path, tiles)
    for i in range(len(tiles)):
        maps.add(i, np.zeros(tiles.box(i)[2:], np.uint8))
    maps.finish(np.array([1], np.uint8), {1: (255, 0, 0)})
    with rasterio.open(tmp_path / "labels/scene.tif") as found:
        with rasterio.open(scene[0] / "scene.jp2") as file:
            assert (found.crs, found.bounds) == (file.crs, file.bounds)
        assert found.shape == jp2_levels(str(scene[0] / "scene.jp2"))[level]


def test_what_is_damaged_and_what_is_none(scene, tmp_path):
    (tmp_path / "no.jp2").write_bytes(b"\x89PNG not one")
    assert not is_jp2(str(tmp_path / "no.jp2"))
    data = (scene[0] / "scene.jp2").read_bytes()
    (tmp_path / "cut.jp2").write_bytes(data[: len(data) // 3])
    with pytest.raises(BadImage, match="damaged JPEG 2000"):
        jp2_window(str(tmp_path / "cut.jp2"), Box(200, 300, 100, 100), 100)
    with pytest.raises(BadImage, match="megapixels, more than the limit"):
        jp2_window(str(scene[0] / "scene.jp2"), Box(0, 0, 8, 8), 0.01)
