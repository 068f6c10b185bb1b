"""Arrays that zarr and h5py write are read back equal to the bit, by chunks."""

import multiprocessing
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import labels, names

from torchmae.data.config import DecodeOptions
from torchmae.data.loader import read_pixels
from torchmae.data.scan import scan
from torchmae.data.sources import open_source
from torchmae.data.sources.containers import blocks
from torchmae.errors import UserError

zarr = pytest.importorskip("zarr", reason="an extra")
h5py = pytest.importorskip("h5py", reason="an extra")


def drawn(kind: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(kind)


def write(path: Path, arrays: dict[str, np.ndarray], chunks: int = 3) -> Path:
    """Arrays in a file, of the kind that its suffix says; .zarr2 is a folder of Zarr's format 2."""
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                whole = (min(chunks, len(values)), *values.shape[1:])
                file.create_dataset(name, data=values, chunks=whole, compression="gzip")
        return path
    group = zarr.open_group(path, mode="w", zarr_format=2 if path.suffix == ".zarr2" else 3)
    for name, values in arrays.items():
        whole = (min(chunks, len(values)), *values.shape[1:])
        group.create_array(name, data=values, chunks=whole)
    return path


@pytest.mark.parametrize(
    "kind, suffix",
    [("uint8", ".zarr"), (">i2", ".zarr2"), *((k, ".h5") for k in (">u2", "float16", "float32"))],
)
def test_every_kind_and_layout(tmp_path, suffix, kind):
    for shape in ((7, 20, 24), (7, 20, 24, 5), (7, 5, 20, 24)):
        values = drawn(kind, *shape)
        path = write(tmp_path / f"{len(shape)}{shape[1]}{suffix}", {"scans": values})
        want = values[..., None] if values.ndim == 3 else values
        want = want.transpose(0, 2, 3, 1) if want.shape[1] == 5 else want
        source = open_source(path)
        assert source.dtype == np.dtype(kind).newbyteorder("=").name
        assert (len(source), source.channels) == (7, want.shape[3])
        for i in (6, 0):
            assert np.array_equal(read_pixels(source, i), want[i])


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_which_array_and_its_labels(tmp_path, suffix):
    path = write(
        tmp_path / f"x{suffix}",
        {
            "train/images": drawn("uint16", 6, 20, 24),
            "train/labels": np.arange(6),
            "test/images": drawn("uint16", 4, 20, 24),
        },
    )
    with pytest.raises(UserError, match=r"which of the arrays .* Add \?key=NAME"):
        open_source(path)
    with pytest.raises(UserError, match="Did you mean train/images"):
        open_source(f"{path}?key=train/image")
    source = open_source(f"{path}?key=train/images")
    assert labels(source) == list("012345") and names(source)[5] == f"x{suffix}[5]"
    assert len(open_source(f"{path}?key=test/images")) == 4


def test_an_array_without_a_group_and_shards(tmp_path):
    values = drawn("uint8", 10, 20, 24)
    whole = {"chunks": (2, 20, 24), "shards": (4, 20, 24)}
    zarr.create_array(tmp_path / "plain", data=values, **whole)
    source = open_source(tmp_path / "plain")  # known by its zarr.json
    assert all(np.array_equal(read_pixels(source, i)[..., 0], values[i]) for i in range(10))
    text = np.array([b"cat", b"dog"] * 5)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["x"], file["y"] = values, text
    assert labels(open_source(tmp_path / "x.hdf5"))[:2] == ["cat", "dog"]


def sums(source, pipe) -> None:
    pipe.send([int(source.read(i % len(source)).sum()) for i in range(3, 60, 7)])


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_read_at_once(tmp_path, suffix):
    """Forked when the file is open and a block in memory, as workers of a loader are."""
    values = drawn("uint16", 50, 20, 24)
    source = open_source(write(tmp_path / f"x{suffix}", {"x": values}))
    want = [int(values[i % 50].sum()) for i in range(3, 60, 7)]
    source.read(0)
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(3)]
    children = [fork.Process(target=sums, args=(source, there)) for _, there in pipes]
    for child in children:
        child.start()
    assert [int(source.read(i % 50).sum()) for i in range(3, 60, 7)] == want
    for here, _ in pipes:
        assert here.poll(60) and here.recv() == want
    for child in children:
        child.join()


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_memory_is_that_of_some_chunks(tmp_path, suffix, monkeypatch):
    values = np.zeros((40, 500, 400), np.uint8)
    path = write(tmp_path / f"x{suffix}", {"x": values}, chunks=2)
    monkeypatch.setattr(blocks, "KEPT", 800_000)
    source = open_source(path)
    source.read(0)
    tracemalloc.start()
    for i in range(40):
        source.read(i)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3e6  # of 8 MB


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_damaged_chunk_is_some_bad_images(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"x": np.random.default_rng(0).random((9, 20, 24), "f4")})
    clean = open_source(path).stamp()
    if suffix == ".h5":
        with h5py.File(path) as file:
            at = file["x"].id.get_chunk_info(1).byte_offset
        data = bytearray(path.read_bytes())
        data[at + 100 : at + 200] = bytes(100)
        path.write_bytes(data)
    else:
        chunk = sorted((path / "x" / "c").rglob("[0-9]*/0/0"))[1]
        chunk.write_bytes(chunk.read_bytes()[:50])
    source = open_source(path)
    assert source.stamp() != clean
    found = scan(source)
    assert [bad.name for bad in found.bad] == [f"x{suffix}[{i}]" for i in (3, 4, 5)]
    assert "its chunk cannot be read" in found.bad[0].reason and "\n" not in found.bad[0].reason


def test_what_is_refused(tmp_path):
    whole = write(tmp_path / "x.h5", {"x": drawn("uint8", 9, 20, 24)})
    (tmp_path / "cut.h5").write_bytes(whole.read_bytes()[:-2000])
    (tmp_path / "no.h5").write_bytes(b"x" * 100)
    (tmp_path / "no.zarr").mkdir()
    (tmp_path / "no.zarr" / "zarr.json").write_text("{")
    write(tmp_path / "int.h5", {"x": drawn("int64", 9, 20, 24)})
    h5py.File(tmp_path / "none.h5", "w").close()
    for name, message in (
        ("cut.h5", "cannot read '.*' as HDF5: .*truncated"),
        ("no.h5", "cannot read '.*' as HDF5"),
        ("no.zarr", "cannot read '.*' as Zarr"),
        ("int.h5?key=x", "holds int64 .*; uint8, uint16, int16, float16, float32 are read"),
        ("none.h5", "holds no array"),
        ("gone.h5", "no such file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)
    large = write(tmp_path / "large.h5", {"x": np.zeros((1, 1000, 1000), np.uint8)})
    source = open_source(large, DecodeOptions(max_megapixels=0.5))
    with pytest.raises(ValueError, match="1.0 megapixels, more than the limit of 0.5"):
        source.read(0)
