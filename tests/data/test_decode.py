import io
import struct
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from torchmae.data import decode as module
from torchmae.data.config import KINDS, DecodeOptions
from torchmae.data.decode import (
    SAFE_FORMATS,
    BadImage,
    encoding,
    has_more_pages,
    image_extensions,
    inspect,
)
from torchmae.errors import UserError


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def one(mode: str, value, format: str = "PNG", **options) -> bytes:
    return encoded(Image.new(mode, (5, 3), value), format, **options)


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth colours with a little noise: every part of a JPEG decoder has something to do."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(height * width).integers(0, 30, (height, width, channels))
    pixels = np.stack([x * 200 // width, y * 200 // height, (x + y) * 100 // (height + width)], -1)[
        :, :, :channels
    ]
    return (pixels + noise).astype(np.uint8)


def decode(data, channels=3, max_megapixels=100.0) -> np.ndarray:
    return module.decode(data, DecodeOptions(max_megapixels, channels))


def refused(data, *args, **options) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, *args, **options)
    message = str(caught.value)
    assert message and "\n" not in message and "0x" not in message
    return message


def test_extensions_are_lower_case_and_safe():
    extensions = image_extensions()
    assert {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".tif",
        ".gif",
        ".bmp",
        ".ppm",
        ".mpo",
    } <= extensions
    assert (
        not {".eps", ".ps", ".pdf", ".wmf", ".h5", ".mpg", ".fits", ".grib", ".bufr"} & extensions
    )
    assert all(
        extension == extension.lower() and extension.startswith(".") for extension in extensions
    )


@pytest.mark.parametrize(
    "data, rgb",
    [
        (one("L", 77), (77, 77, 77)),
        (one("1", 1), (255, 255, 255)),
        (one("1", 0), (0, 0, 0)),
        (one("RGB", (10, 20, 30)), (10, 20, 30)),
        (one("RGBA", (200, 0, 100, 0)), (255, 255, 255)),
        (one("RGBA", (200, 0, 100, 255)), (200, 0, 100)),
        (one("RGBA", (200, 0, 100, 51)), (244, 204, 224)),  # 255 + (c - 255) / 5
        (one("LA", (100, 51)), (224, 224, 224)),
        (one("RGB", (10, 20, 30), transparency=(10, 20, 30)), (255, 255, 255)),
        (one("RGB", (10, 20, 30), transparency=(11, 20, 30)), (10, 20, 30)),
        (one("CMYK", (0, 255, 255, 0), "TIFF"), (255, 0, 0)),
        (one("YCbCr", (90, 128, 128), "TIFF"), (90, 90, 90)),
        (one("P", 1, "GIF"), None),
    ],
)
def test_modes_become_rgb(data, rgb):
    pixels = decode(data)
    assert pixels.shape == (3, 5, 3) and pixels.dtype == np.uint8
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    assert inspect(data) == (3, 5)
    if rgb:
        assert np.abs(pixels.astype(int) - rgb).max() == 0


def test_palette_and_its_transparency():
    image = Image.new("P", (5, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(image))[0, 0].tolist() == [10, 20, 30]
    assert decode(encoded(image, transparency=1))[0, 0].tolist() == [255, 255, 255]
    assert decode(encoded(image, transparency=bytes([255, 51])))[0, 0].tolist() == [206, 208, 210]


def test_modes_that_no_file_of_ours_holds():
    assert (
        module.from_pil(Image.new("RGBA", (1, 1), (200, 0, 100, 51)).convert("RGBa"))[
            0, 0
        ].tolist()[1]
        == 204
    )
    assert module.from_pil(Image.new("LA", (1, 1), (100, 51)).convert("La")).shape == (1, 1, 3)
    assert module.from_pil(Image.new("HSV", (1, 1), (0, 255, 255)))[0, 0].tolist() == [255, 0, 0]


def test_one_channel_is_luma():
    assert decode(one("RGB", (10, 20, 30)), channels=1)[0, 0].tolist() == [
        18
    ]  # .299 * 10 + .587 * 20 + .114 * 30
    assert decode(one("L", 77), channels=1).shape == (3, 5, 1)
    assert decode(one("RGBA", (0, 0, 0, 0)), channels=1)[0, 0].tolist() == [255]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (5, 3), colour) for colour in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode(data)[0, 0].tolist() == [255, 0, 0], format


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow cannot convert LAB")
def test_lab():
    grey = decode(one("LAB", (50, 128, 128), "TIFF"))[
        0, 0
    ]  # L* = 19.6 is linear 0.0286, which sRGB writes as 47
    assert np.abs(grey.astype(int) - 47).max() <= 1


def test_float_is_itself():
    pixels = decode(one("F", 0.5, "TIFF"))
    assert pixels.dtype == np.float32 and (pixels == 0.5).all() and pixels.shape == (3, 5, 3)
    assert "no values" in refused(one("F", float("nan"), "TIFF"))


class TestSixteenBit:
    def grey(self, *values, format="PNG") -> bytes:
        return encoded(Image.fromarray(np.array([values], dtype=np.uint16)), format)

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_values_are_kept(self, format):
        data = self.grey(0, 128, 257, 32768, 65535, format=format)
        for channels in (1, 3):
            pixels = decode(data, channels)
            assert pixels.dtype == np.uint16
            assert (pixels == np.array([0, 128, 257, 32768, 65535])[None, :, None]).all()

    def test_integers_of_32_bits(self):
        def tiff(*values: int) -> bytes:
            return encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")

        pixels = decode(tiff(-1, 65536), 1)
        assert pixels.dtype == np.float32 and pixels.ravel().tolist() == [-1, 65536]
        assert "float32 cannot hold exactly" in refused(tiff(2**24 + 1))


class TestOrientation:
    # Where the corner pixels 1 2 / 3 4 of the stored image end up, by hand from the EXIF standard.
    SEEN = ("12/34", "21/43", "43/21", "34/12", "13/24", "31/42", "42/31", "24/13")

    @pytest.mark.parametrize("turn", range(1, 9))
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_all_eight(self, turn, format):
        stored = np.kron(np.array([[1, 2], [3, 4]]), np.ones((16, 32))).astype(np.uint8) * 50
        exif = Image.Exif()
        exif[0x0112] = turn
        data = encoded(Image.fromarray(stored).convert("RGB"), format, exif=exif, quality=95)
        pixels = decode(data, 1)[:, :, 0]
        corners = np.rint(pixels[[4, 4, -4, -4], [4, -4, 4, -4]] / 50).astype(int)
        assert "{}{}/{}{}".format(*corners) == self.SEEN[turn - 1]
        assert inspect(data) == pixels.shape == ((64, 32) if turn > 4 else (32, 64))

    @pytest.mark.parametrize("turn", [0, 9, 255])
    def test_nonsense_counts_as_none(self, turn):
        exif = Image.Exif()
        exif[0x0112] = turn
        assert decode(one("RGB", 0, "JPEG", exif=exif)).shape == (3, 5, 3)

    def test_damaged_exif_is_no_bad_image(self):
        assert decode(one("RGB", 0, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1\2")).shape == (
            3,
            5,
            3,
        )


class TestFastJpeg:
    OPTIONS = (
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0", "quality": 30},
        {"progressive": True},
        {"optimize": True, "quality": 100},
        {"restart_marker_blocks": 2},
        {"keep_rgb": True},
    )

    @pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 65), (120, 161)])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_equals_pillow_bit_for_bit(self, size, options, channels):
        data = encoded(
            Image.fromarray(
                picture(*size, channels).squeeze(-1) if channels == 1 else picture(*size)  # type: ignore[call-arg]
            ),
            "JPEG",
            **options,
        )
        image = Image.open(io.BytesIO(data))
        fast = module._fast_jpeg(data, image)
        assert fast is not None
        np.testing.assert_array_equal(fast, np.array(image).reshape(fast.shape))
        np.testing.assert_array_equal(decode(data), np.array(image.convert("RGB")))
        np.testing.assert_array_equal(decode(data, 1)[:, :, 0], np.array(image.convert("L")))

    def test_cmyk_goes_to_pillow(self):
        data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
        assert module._fast_jpeg(data, Image.open(io.BytesIO(data))) is None
        assert np.abs(decode(data)[0, 0].astype(int) - [255, 0, 0]).max() <= 3

    def test_what_simplejpeg_refuses_and_pillow_forgives(self):
        data = one("RGB", (200, 0, 0), "JPEG")
        at = data.index(b"\xff\xdb")
        odd = data[:at] + b"\0\0\0" + data[at:]  # bytes between two segments
        try:
            want = np.array(Image.open(io.BytesIO(odd)).convert("RGB"))
        except OSError:
            pytest.skip("this Pillow does not forgive it")
        np.testing.assert_array_equal(decode(odd), want)


class TestTooLarge:
    def test_a_bomb_costs_nothing(self):
        data = encoded(Image.new("1", (20000, 20000)))
        assert len(data) < 100_000
        tracemalloc.start()
        begin = time.perf_counter()
        assert refused(data) == "400.0 megapixels, more than the limit of 100"
        spent, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert spent < 0.1 and peak < 2_000_000
        with pytest.raises(BadImage, match=r"400\.0 megapixels"):
            inspect(data)

    def test_our_limit_not_pillows(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        data = one("RGB", 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode(data).shape == (3, 5, 3)
            assert "0.0 megapixels, more than the limit of 1e-05" in refused(data, 3, 1e-5)
        assert Image.MAX_IMAGE_PIXELS == 10

    def test_an_image_in_an_icon(self):
        inner = encoded(Image.new("1", (3000, 3000)))
        entry = (
            bytes([16, 16, 0, 0, 1, 0, 32, 0])
            + len(inner).to_bytes(4, "little")
            + (22).to_bytes(4, "little")
        )
        assert "9.0 megapixels" in refused(b"\0\0\1\0\1\0" + entry + inner, 3, 1.0)

    def test_the_users_settings_come_back(self, monkeypatch):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        good, cut = (
            encoded(Image.fromarray(picture(64, 64))),
            encoded(Image.fromarray(picture(64, 64)), "BMP")[:-900],
        )
        before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
        results = []

        def work():
            for _ in range(20):
                results.append(decode(good).shape == (64, 64, 3) and bool(refused(cut)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert results == [True] * 80
        assert (
            before == Image.MAX_IMAGE_PIXELS
            and ImageFile.LOAD_TRUNCATED_IMAGES
            and filters == list(warnings.filters)
        )


class TestBroken:
    @pytest.mark.parametrize(
        "data, reason",
        [
            (b"", "empty file"),
            (b"hello world, I am text", "not an image"),
            (b"<html><body>404</body></html>", "not an image"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
            (b"\xff\xd8\xff\xe0", ""),
        ],
    )
    def test_not_an_image(self, data, reason):
        assert reason in refused(data)
        with pytest.raises(BadImage):
            inspect(data)

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
    @pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9, 0.97])
    def test_truncated(self, format, keep):
        data = encoded(Image.fromarray(picture(90, 120)), format)
        refused(data[: int(len(data) * keep)])

    @pytest.mark.parametrize("format", ["JPEG", "PNG"])
    @pytest.mark.parametrize("cut", [1, 2, 11, 13, 100])
    def test_the_end_shows_without_decoding(self, format, cut):
        data = encoded(Image.fromarray(picture(90, 120)), format)
        if format == "PNG" and cut <= 4:
            return  # only the end chunk's checksum, which nobody needs
        with pytest.raises(BadImage, match="truncated"):
            inspect(data[:-cut])
        assert "truncated" in refused(data[:-cut])

    def test_the_end_of_a_thumbnail_is_not_the_end(self):
        thumbnail = encoded(Image.fromarray(picture(8, 8)), "JPEG")
        data = encoded(Image.fromarray(picture(90, 120)), "JPEG", exif=b"Exif\0\0" + thumbnail)
        assert decode(data).shape == (90, 120, 3)
        with pytest.raises(BadImage, match="truncated JPEG"):
            inspect(data[:-300])

    def test_bytes_after_the_end_do_no_harm(self):
        for format in ("JPEG", "PNG"):
            data = encoded(Image.fromarray(picture(9, 12)), format)
            np.testing.assert_array_equal(decode(data + b"\0" * 5000), decode(data))

    def test_damaged_pixels_of_a_png(self):
        data = bytearray(encoded(Image.fromarray(picture(90, 120))))
        data[len(data) // 2] ^= 0xFF
        refused(bytes(data))


class TestArrays:
    def test_channels(self):
        pixels = picture(4, 6)
        same = decode(pixels)
        np.testing.assert_array_equal(same, pixels)
        assert not np.shares_memory(same, pixels)
        np.testing.assert_array_equal(
            decode(pixels, 1)[:, :, 0], np.array(Image.fromarray(pixels).convert("L"))
        )
        np.testing.assert_array_equal(decode(pixels[:, :, :1]), pixels[:, :, [0, 0, 0]])
        many = np.zeros((4, 6, 7), np.uint8)
        assert decode(many, 7).shape == (4, 6, 7)

    def test_channels_that_cannot_be(self):
        with pytest.raises(UserError, match="7 channels, which cannot become 3"):
            decode(np.zeros((4, 6, 7), np.uint8))
        assert "3 channels, which cannot become 4" in refused(one("RGB", 0), 4)

    def test_no_pixels(self):
        assert "no pixels" in refused(np.zeros((0, 6, 3), np.uint8))


FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "QOI",
    "JPEG2000",
    "AVIF",
    "DDS",
)
SAMPLES = {
    format: encoded(
        Image.fromarray(picture(24, 31)).convert("P" if format == "GIF" else "RGB"), format
    )
    for format in FORMATS
    if format in module._formats()
}


@pytest.mark.parametrize("format", SAMPLES)
def test_every_format_that_pillow_also_writes(format):
    assert format in SAFE_FORMATS
    pixels = decode(SAMPLES[format])
    assert pixels.shape[:2] == inspect(SAMPLES[format]) and pixels.shape[2] == 3


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.integers(0, 2000)),
    st.sampled_from([1, 3]),
)
def test_corruption_decodes_or_is_a_bad_image(format, changes, cut, channels):
    data = bytearray(SAMPLES[format])
    for at, value in changes:
        data[at % len(data)] = value
    whole = bytes(data[:cut])
    try:
        pixels = decode(whole, channels, max_megapixels=1.0)
    except BadImage as error:
        reason = str(error)
    else:
        assert pixels.dtype.name in KINDS and pixels.shape[2] == channels
        assert pixels.shape[:2] == inspect(whole, DecodeOptions(max_megapixels=1.0))
        reason = "decoded"
    assert reason and "\n" not in reason


def tiff(bands: int, bits: int = 8, kind: int = 1) -> bytes:
    """A TIFF of 4 x 4 pixels as other programs write it, with bands that Pillow cannot store."""
    rows = bytes(16 * bands * bits // 8)
    depths = struct.pack(f"<{bands}H", *[bits] * bands)
    kinds = struct.pack(f"<{bands}H", *[kind] * bands)
    body = rows + depths + kinds
    at = 8 + len(rows)
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, bands), (278, 3, 1, 4), (279, 4, 1, len(rows))]
    tags += [(258, 3, bands, at), (339, 3, bands, at + len(depths))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    table = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + table


def test_a_tiff_of_many_bands():
    """It was called "not an image"."""
    for bands, bits, kind in ((5, 8, 1), (12, 16, 1), (5, 32, 3)):
        data = tiff(bands, bits, kind)
        assert module.decode(data).shape == (4, 4, bands) and inspect(data) == (4, 4)
        assert encoding(data).words() == f"TIFF, {bands} channels of {bits} bits"
    assert "damaged TIFF" in refused(tiff(5)[:20])
    assert "5 channels, which cannot become 3" in refused(tiff(5))


def test_stacks_and_animations_are_told_apart():
    frames = [Image.new("RGB", (5, 3), colour) for colour in ("red", "blue", "green")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        several = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert has_more_pages(several) and not has_more_pages(encoded(frames[0], format)), format
    preview = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:2])
    assert not has_more_pages(preview) and not has_more_pages(encoded(frames[0], "JPEG"))
