"""Cached pixels are those without a cache, whatever happens to the cache or to the files."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchmae.data.cache import layout, memory
from torchmae.data.cache.disk import make_folder
from torchmae.data.cache.memory import Cached
from torchmae.data.loader import Batches, read_pixels
from torchmae.data.scan import scan
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.disk import cache_folder
from torchmae.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve photos of several sizes, one of them grey; and a bad file. The cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, rng = tmp_path / "photos", np.random.default_rng(0)
    data.mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (30 + 7 * i, 41 + 3 * i, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("L") if i == 4 else image).save(data / f"{i:02}.{'png' if i % 2 else 'jpg'}")
    (data / "zz.jpg").write_bytes(b"no image")
    return data


def kept(folder: Path, where: str) -> Cached:
    source = open_source(folder)
    sizes = scan(source).sizes
    return Cached(
        source, sizes, make_folder(str(folder), source, sizes) if where == "disk" else None
    )


def batches(source, workers: int) -> list[torch.Tensor]:
    made = Batches(source, RandomResizedCropFlip((24, 24)), 8)
    return [batch.images for batch in made.loader(0, 6, workers)]


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_without_a_cache(folder, where, workers):
    source = kept(folder, where)
    for made, plain in zip(batches(source, workers), batches(open_source(folder), 0), strict=True):
        assert torch.equal(made, plain)
    good = source.sizes[:, 0] > 0
    assert (
        source.sums > 0
    ).tolist() == good.tolist()  # six batches show each image: what workers decoded is here
    for made, plain in zip(
        batches(source, 0), batches(open_source(folder), 0), strict=True
    ):  # now from the cache
        assert torch.equal(made, plain)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_an_image_is_decoded_once_and_cannot_be_written_to(folder, where, monkeypatch):
    source, decoded = kept(folder, where), []
    monkeypatch.setattr(
        memory, "read_pixels", lambda *which: decoded.append(1) or read_pixels(*which)
    )
    made = Batches(source, RandomResizedCropFlip((24, 24)), 8)
    first, again = (made.read(3, [])[1] for _ in range(2))
    assert np.array_equal(first, again) and len(decoded) == 1
    with pytest.raises(ValueError, match="read-only"):
        again[:] = 0


def test_a_file_goes_on_where_another_process_stopped(folder, monkeypatch):
    list(batches(kept(folder, "disk"), 2))
    monkeypatch.setattr(memory, "read_pixels", lambda *_: pytest.fail("this was kept"))
    again = kept(folder, "disk")
    for i in np.flatnonzero(again.sizes[:, 0]).tolist():
        assert again.read(i).shape == (*again.sizes[i].tolist(), 3)


def test_a_damaged_page_is_decoded_again(folder):
    source = kept(folder, "disk")
    plain = [source.read(i).copy() for i in range(12)]
    file = source.folder / layout.PIXELS
    data = bytearray(file.read_bytes())
    start = int(source.starts[5])
    data[start + 100 : start + 164] = bytes(64)  # lost with the power
    file.write_bytes(data)
    again = kept(folder, "disk")
    assert np.array_equal(again.read(5), plain[5])
    assert file.read_bytes()[start + 100 : start + 164] != bytes(64)  # fixed


@pytest.mark.parametrize("change", ["content", "added", "removed"])
def test_a_changed_folder_is_decoded_again(folder, change):
    source = kept(folder, "disk")
    for i in range(12):
        source.read(i)
    if change == "content":  # the same size in pixels and bytes, other pixels
        file = folder / "03.png"
        before = file.stat()
        Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "new.png")
        new = (folder / "new.png").read_bytes()
        (folder / "new.png").unlink()
        file.write_bytes(new + bytes(max(0, before.st_size - len(new))))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "added":
        Image.new("RGB", (20, 20), "red").save(folder / "00a.png")
    else:
        (folder / "03.png").unlink()
    now = kept(folder, "disk")
    assert now.folder != source.folder
    assert not source.folder.exists()  # it is of no use to anybody
    plain = Batches(open_source(folder), RandomResizedCropFlip((24, 24)), 8)
    made = Batches(now, RandomResizedCropFlip((24, 24)), 8)
    assert torch.equal(made[0].images, plain[0].images) and torch.equal(
        made[1].images, plain[1].images
    )


def test_an_image_of_another_size_than_was_scanned_is_decoded_each_time(folder):
    source = kept(folder, "memory")
    source.sizes[2] = (7, 7)
    source.starts = layout.starts_of(source.sizes, 3)
    assert np.array_equal(source.read(2), open_pixels(folder, 2)) and not source.sums[2]


def open_pixels(folder: Path, i: int) -> np.ndarray:
    return read_pixels(open_source(folder), i)


def test_a_disk_cache_pickles_and_one_in_memory_says_why_not(folder):
    source = kept(folder, "disk")
    first = source.read(0).copy()
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(0), first)
    with pytest.raises(UserError, match="use disk"):
        pickle.dumps(kept(folder, "memory"))


def test_a_disk_without_room_is_an_error_before_anything_is_decoded(folder):
    source = open_source(folder)
    sizes = np.full((len(source), 2), 2**21, dtype=np.int32)  # 171 terabytes
    with pytest.raises(
        UserError,
        match=r"--cache disk needs 171,523.8 GB .* GB are free\): make room, set XDG_CACHE_HOME",
    ):
        make_folder(str(folder), source, sizes)
    assert list(cache_folder("decoded").iterdir()) == []


def test_memory_that_does_not_suffice_is_an_error():
    with pytest.raises(
        UserError, match="--cache memory needs 2.0 GB for the decoded images, 1.0 GB are free"
    ):
        layout.check_room("memory", 2 * 10**9, 1e9)
    assert layout.free_memory() > 1e6


def test_what_has_no_stamp_is_not_kept_on_disk(folder, monkeypatch):
    source = open_source(folder)
    monkeypatch.setattr(type(source), "stamp", lambda self: None)
    with pytest.raises(UserError, match="cannot tell whether"):
        make_folder(str(folder), source, np.ones((13, 2), dtype=np.int32))


@pytest.mark.parametrize("file", [layout.PIXELS, layout.SUMS, layout.ABOUT])
@pytest.mark.parametrize("harm", ["halved", "gone"])
def test_a_cache_that_is_not_whole_is_made_again(folder, file, harm):
    source = kept(folder, "disk")
    plain = [source.read(i).copy() for i in range(12)]
    path = source.folder / file
    data = path.read_bytes()
    path.unlink()
    if harm == "halved" and file != layout.ABOUT:
        path.write_bytes(data[: len(data) // 2])
    again = kept(folder, "disk")
    assert all(np.array_equal(again.read(i), plain[i]) for i in range(12))


def test_the_sum_sees_lost_and_exchanged_words():
    columns, ramp = np.full(512, 0xFF00000000000000, np.uint64), np.arange(512, dtype=np.uint64)
    rooms = [
        words.view(np.uint8) for words in (columns, ramp, ramp[::-1].copy(), np.zeros_like(ramp))
    ]
    assert len({int(memory.sum_of(room)) for room in rooms} | {0}) == 5


def test_what_a_file_held_for_a_while_is_never_shown_again(folder):
    """Overwritten during a run, then restored with its old time: the next run sees old pixels."""
    file = folder / "03.png"
    before, facts = file.read_bytes(), file.stat()
    source = kept(folder, "disk")
    Image.new("RGB", Image.open(file).size, "red").save(file)
    assert (source.read(3) == [255, 0, 0]).all()
    file.write_bytes(before)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert np.array_equal(kept(folder, "disk").read(3), open_pixels(folder, 3))


def test_an_array_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    old, new = (np.full((4, 20, 20, 3), value, dtype=np.uint8) for value in (1, 2))
    np.save(tmp_path / "set.npy", old)
    source = open_source(tmp_path / "set.npy")
    np.save(tmp_path / "new.npy", new)
    (tmp_path / "new.npy").replace(tmp_path / "set.npy")
    sizes = np.full((4, 2), 20, dtype=np.int32)
    first = Cached(source, sizes, make_folder("set.npy", source, sizes))
    assert (first.read(0) == 1).all()
    source = open_source(tmp_path / "set.npy")
    assert (Cached(source, sizes, make_folder("set.npy", source, sizes)).read(0) == 2).all()


def test_a_cache_folder_that_cannot_be_made_is_one_line(folder, monkeypatch):
    source = open_source(folder)
    sizes = np.full((len(source), 2), 8, dtype=np.int32)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "zz.jpg"))
    with pytest.raises(UserError, match="--cache disk needs 0.0 GB in .*: make room"):
        make_folder(str(folder), source, sizes)


def test_a_path_of_any_bytes(folder):
    strange = folder.parent / os.fsdecode(b"b\xff")
    folder.rename(strange)
    assert kept(strange, "disk").read(0).shape == (30, 41, 3)
