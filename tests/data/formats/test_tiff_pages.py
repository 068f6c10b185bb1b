"""Stacks that tifffile writes become an image a page; pyramids, thumbnails and masks do not."""

import io

import numpy as np
import pytest

from torchmae.data.decode import BadImage
from torchmae.data.formats.tiff_pages import stack_pages
from torchmae.data.loader import read_pixels
from torchmae.data.scan import scan
from torchmae.data.sources import open_source

tifffile = pytest.importorskip("tifffile", reason="an extra")


def drawn(*shape: int, kind: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(kind)


def images_of(source) -> list[np.ndarray]:
    return [read_pixels(source, i) for i in range(len(source))]


CASES = {
    "plain": ({}, "ZYX"),
    "BigTIFF, of the other end": ({"bigtiff": True, "byteorder": ">"}, "ZYX"),
    "tiles of deflate": ({"tile": (16, 16), "compression": "zlib"}, "ZYX"),
    "ImageJ with channels": ({"imagej": True, "metadata": {"axes": "ZCYX"}}, "ZCYX"),
    "OME, channels first": ({"ome": True, "metadata": {"axes": "CZYX"}}, "CZYX"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stack(tmp_path, name):
    options, axes = CASES[name]
    values = drawn(*(dict(Z=4, C=3, Y=20, X=24)[axis] for axis in axes))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", **options)
    source = open_source(tmp_path)
    want = values[..., None] if axes == "ZYX" else np.moveaxis(values, axes.index("C"), 3)
    assert source.name(3) == "a.tif[3]" and {source.group(i) for i in range(4)} == {"a.tif"}
    assert len(source) == 4 and all(map(np.array_equal, images_of(source), want))
    assert not scan(source).stacks


def test_colors_and_no_data(tmp_path):
    colors = drawn(3, 20, 24, 3, kind="uint8")
    tifffile.imwrite(tmp_path / "a.tif", colors, photometric="rgb")
    assert all(map(np.array_equal, images_of(open_source(tmp_path)), colors))
    gray = drawn(3, 20, 24, kind="int16")
    tags = [(42113, "s", 0, str(gray[1, 2, 3]), True)]
    tifffile.imwrite(tmp_path / "a.tif", gray, photometric="minisblack", extratags=tags)
    missing = [np.isnan(one[..., 0]) for one in images_of(open_source(tmp_path))]
    assert np.array_equal(missing, gray == gray[1, 2, 3])


def test_what_is_no_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        page = {"photometric": "minisblack", "metadata": None}
        file.write(drawn(20, 24), **page)
        file.write(drawn(10, 12), subfiletype=1, **page)  # of a pyramid
        file.write(drawn(20, 24), subfiletype=1, **page)  # says that it is a reduced one
        file.write(drawn(20, 24, kind="uint8"), **page)  # a label
    source = open_source(tmp_path)
    assert len(source) == 1 and source.name(0) == "a.tif" and scan(source).stacks == 1
    assert np.array_equal(read_pixels(source, 0)[..., 0], drawn(20, 24))


def test_damaged_directories(tmp_path):
    out = io.BytesIO()
    tifffile.imwrite(out, drawn(4, 20, 24), photometric="minisblack")
    data = out.getvalue()
    for cut in range(0, len(data), 97):
        assert stack_pages(data[:cut])[0] == 0
    assert stack_pages(data) == [0, 1, 2, 3] and stack_pages(b"II*\0\x04\0\0\0") == [0]
    (tmp_path / "a.tif").write_bytes(data)
    source = open_source(tmp_path)
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage):
        read_pixels(source, 3)
