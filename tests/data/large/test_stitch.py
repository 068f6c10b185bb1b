"""What tiles gave becomes one map of each image again."""

from pathlib import Path

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile")

from torchmae.data.config import Listing  # noqa: E402
from torchmae.data.large.stitch import LabelMaps, write_feature_maps  # noqa: E402
from torchmae.data.sources import open_source  # noqa: E402
from torchmae.data.sources.tiles import Tiles  # noqa: E402

PLACED = {33550: (10.0, 10.0, 0.0), 33922: (0.0, 0.0, 0.0, 600000.0, 5100000.0, 0.0)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with a place on the earth, one corner of which is water."""
    folder = tmp_path_factory.mktemp("scene")
    pixels = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    pixels[:200, :200] = 30
    tags = [(code, "d", len(values), values, True) for code, values in PLACED.items()]
    options = dict(tile=(64, 64), photometric="rgb", metadata=None, extratags=tags)
    tifffile.imwrite(folder / "scene.tif", pixels, **options)
    return folder


@pytest.mark.parametrize("overlap", [0, 7, 32])
def test_labels_are_stitched_without_a_seam(scene, overlap, tmp_path):
    tiles = open_source(scene, listing=Listing(tile=150, overlap=overlap))
    assert isinstance(tiles, Tiles)
    rows, columns = np.mgrid[0:700, 0:900]
    truth = ((rows // 7 + columns // 5) % 3).astype(np.uint8)
    maps = LabelMaps(tmp_path, tiles)
    for i in range(len(tiles)):
        top, left, height, width = tiles.box(i)
        labels = truth[top : top + height, left : left + width].copy()
        edge = overlap // 2
        if edge:  # what is near the edge of a tile is wrong
            labels[:edge] = 0 if top else labels[:edge]
            labels[:, :edge] = 0 if left else labels[:, :edge]
        maps.add(i, labels)
    colors = {0: (0, 0, 0), 255: (255, 0, 0), 7: (0, 0, 255)}
    assert maps.finish(np.array([0, 255, 7], np.uint8), colors) == (1, 254)
    with tifffile.TiffFile(tmp_path / "labels" / "scene.tif") as file:
        page = file.pages[0]
        found = page.asarray()
        assert {code: page.tags[code].value for code in PLACED} == PLACED
        assert page.tags[42113].value == "254"
        assert tuple(page.colormap[:, 255]) == (65535, 0, 0)
    out = found == 254
    # The one tile of nothing but water, without what its neighbors know better.
    assert out.any() and not out[150:].any() and not out[:, 150:].any()
    assert np.array_equal(found[~out], np.array([0, 255, 7])[truth[~out]])
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_features_lie_in_their_grid(scene, tmp_path):
    tiles = open_source(scene, listing=Listing(tile=150))
    ids = [i for i in range(len(tiles)) if i != 3]  # one was unreadable
    features = np.array([[tiles.box(i).top, tiles.box(i).left] for i in ids], np.float32)
    assert write_feature_maps(tmp_path, tiles, ids, features) == 1
    grid = np.load(tmp_path / "scene.npy")
    assert grid.shape == (5, 6, 2)
    assert np.isnan(grid).any(2).sum() == 2 and np.isnan(grid[0, 0]).all()
    assert grid[2, 3].tolist() == [300, 450] and grid[4, 5].tolist() == [550, 750]
