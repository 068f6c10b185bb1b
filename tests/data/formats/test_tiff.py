"""TIFFs that tifffile writes are read back equal to the bit."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, decode, has_more_pages

tifffile = pytest.importorskip("tifffile", reason="an extra")

WAYS = (
    {},
    {"compression": "zlib", "tile": (16, 16)},
    {"compression": "lzw"},
    {"bigtiff": True, "byteorder": ">"},
    {"planarconfig": "separate"},
)


def tiff(values: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **{"photometric": "minisblack", **options})
    return out.getvalue()


def values(kind: str, bands: int) -> np.ndarray:
    drawn = np.random.default_rng(bands).integers(0, 100, (20, 24, bands))
    return drawn.astype(kind)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way) or "plain")
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
def test_any_bands_and_types(kind, way):
    for bands in (1, 2, 4, 5):
        pixels = values(kind, bands)
        written = pixels.transpose(2, 0, 1) if "planarconfig" in way else pixels
        if bands == 1 and "planarconfig" in way:
            continue
        data = tiff(written[..., 0] if bands == 1 else written, **{"planarconfig": "contig", **way})
        made = decode(data, DecodeOptions(channels=bands))
        assert made.dtype.name == ("float32" if kind == "float64" else kind)
        assert np.array_equal(made, pixels)


def test_16_bit_color_keeps_its_bits():
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, 3)).astype(np.uint16)
    assert np.array_equal(decode(tiff(pixels, photometric="rgb")), pixels)
    codecs = pytest.importorskip("imagecodecs")
    assert np.array_equal(decode(codecs.png_encode(pixels)), pixels)
    jpeg2000 = codecs.jpeg2k_encode(pixels, level=0, reversible=True)
    assert np.array_equal(decode(jpeg2000), pixels)
    alpha = np.concatenate([pixels, np.full_like(pixels[..., :1], 65535)], axis=2)
    assert np.array_equal(decode(codecs.png_encode(alpha)), pixels)
    cut = bytearray(codecs.png_encode(pixels))
    cut[200:260] = bytes(60)
    with pytest.raises(BadImage, match="damaged PNG"):
        decode(bytes(cut))


def test_a_fourth_band_is_alpha_only_where_the_file_says_so():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4)).astype(np.uint8)
    infrared = tiff(pixels, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(decode(infrared), pixels)
    assert decode(tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])).shape[2] == 3


@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}], ids=str)
def test_channels_in_a_page_each(how):
    pixels = np.random.default_rng(0).integers(0, 1000, (3, 20, 24)).astype(np.uint16)
    data = tiff(pixels, metadata={"axes": "CYX"}, **how)
    assert np.array_equal(decode(data), pixels.transpose(1, 2, 0))
    assert not has_more_pages(tiff(pixels[:1]))


def geotiff(pixels: np.ndarray, nodata: str, names: list[str]) -> bytes:
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{name}</Item>'
        for i, name in enumerate(names)
    )
    tags = [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)]
    tags += [(42113, "s", 0, nodata, True)]
    return tiff(pixels, planarconfig="contig", extratags=tags, metadata=None)


def test_what_a_geotiff_says_of_no_data_and_bands():
    pixels = np.random.default_rng(0).integers(1, 3000, (20, 24, 4)).astype(np.uint16)
    pixels[:5] = 0
    data = geotiff(pixels, "0", ["B02", "B03", "B04", "B08"])
    made = decode(data, DecodeOptions(bands=("B04", "B03", "1")))
    assert made.dtype == np.float32 and np.isnan(made[:5]).all()
    assert np.array_equal(made[5:], pixels[5:][..., [2, 1, 0]])
    with pytest.raises(BadImage, match="no band B12 .*; it has B02, B03, B04, B08, or 1 to 4"):
        decode(data, DecodeOptions(bands=("B12",)))
    other = decode(data, DecodeOptions(nodata=float(pixels[7, 0, 0])))
    assert np.isnan(other[7, 0, 0]) and not np.isnan(other[:5]).any()


def test_what_rasterio_writes(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="for tests")
    pixels = np.random.default_rng(0).integers(-3000, 3000, (4, 40, 48)).astype(np.int16)
    about = {"height": 40, "width": 48, "count": 4, "dtype": "int16", "nodata": -9999}
    about |= {"transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), "crs": "EPSG:32633"}
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
    for name, options in (("a", {}), ("b", {**tiles, "interleave": "band", "predictor": 2})):
        with rasterio.open(tmp_path / name, "w", driver="GTiff", **about, **options) as file:
            file.write(pixels)
            file.descriptions = ["B02", "B03", "B04", "B08"]
        data = (tmp_path / name).read_bytes()
        assert np.array_equal(decode(data, DecodeOptions(bands=("B08",)))[..., 0], pixels[3])
        assert decode(data, DecodeOptions(bands=("B02",))).dtype == np.float32  # it declares none


def test_bad_ones():
    whole = tiff(values("float32", 5), planarconfig="contig", compression="zlib")
    for data, message in (
        (whole[:100], "damaged TIFF"),
        (whole[: len(whole) // 2], "damaged TIFF"),
        (tiff(np.full((8, 8), np.nan, np.float32)), "no values: every pixel is no-data"),
        (tiff(np.full((8, 8), 2**30, np.uint32)), "float32 cannot hold exactly"),
        (tiff(np.full((8, 8), 1e300)), "beyond the range of float32"),
        (tiff(np.zeros((8, 8), np.complex64)), "complex64 values are no pixels"),
    ):
        with pytest.raises(BadImage, match=message) as caught:
            decode(data)
        assert "\n" not in str(caught.value)


def test_a_bomb_is_not_unpacked():
    zeros = np.zeros((2000, 2000, 5), np.uint16)
    bomb = tiff(zeros, planarconfig="contig", compression="zlib")
    assert len(bomb) < 1e5
    with pytest.raises(BadImage, match="4.0 megapixels, more than the limit of 1"):
        decode(bomb, DecodeOptions(max_megapixels=1))


def test_a_palette_of_16_bits_is_no_picture():
    out = io.BytesIO()
    colors = np.zeros((3, 65536), np.uint16)
    tifffile.imwrite(out, values("uint16", 1)[..., 0], photometric="palette", colormap=colors)
    with pytest.raises(BadImage, match="a palette of more than 8 bits"):
        decode(out.getvalue())


def test_what_pillow_reads_needs_no_tifffile(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    for pixels in (values("uint8", 3), values("uint16", 1)[..., 0], values("float32", 1)[..., 0]):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "TIFF")
        assert np.array_equal(decode(out.getvalue()).squeeze(), pixels)
    assert struct.unpack("<H", out.getvalue()[2:4]) == (42,)
