"""JPEG XL that libjxl writes (imagecodecs): equal to the bit, its size known before decoding."""

import numpy as np
import pytest

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, decode
from torchmae.data.formats.jpegxl import size_of
from torchmae.data.sources import open_source

codecs = pytest.importorskip("imagecodecs", reason="an extra")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(20, 24), (256, 256, 3), (300, 1, 3), (7, 600)])
def test_equal_and_measured(kind, shape):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    values = values / np.float32(256) if kind == "float32" else values
    data = codecs.jpegxl_encode(values, lossless=True)
    made = decode(data, DecodeOptions(channels=1 if len(shape) == 2 else 3))
    assert made.dtype == values.dtype and size_of(data) == shape[:2]
    assert np.array_equal(made.reshape(shape), values)


def test_bad_ones(tmp_path):
    data = codecs.jpegxl_encode(np.zeros((1001, 1000), np.uint8), lossless=True)
    with pytest.raises(BadImage, match="1.0 megapixels, more than the limit of 1"):
        decode(data, DecodeOptions(max_megapixels=1))
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    data = codecs.jpegxl_encode(noise, lossless=True)
    for cut in (2, 14, len(data) // 2):
        with pytest.raises(BadImage):
            decode(data[:cut])
    (tmp_path / "a.jxl").write_bytes(data)
    assert len(open_source(tmp_path)) == 1
