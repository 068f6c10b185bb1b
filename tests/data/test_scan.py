"""The look at a whole data set: numbers equal brute force, and every bad file is named."""

import logging
import os
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import BUILDERS, png
from PIL import Image

from torchmae import disk
from torchmae.data import scan as module
from torchmae.data import workers
from torchmae.data.config import DecodeOptions
from torchmae.data.decode import Kind, max_bytes
from torchmae.data.scan import Scan, max_bad_files
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.files import Files
from torchmae.data.sources.source import BadFile, Source
from torchmae.disk import cache_folder
from torchmae.errors import UserError
from torchmae.scaling import Scaling


def scan(source: Source, channels: int | None = None, **options) -> Scan:
    return module.scan(with_decode(source, DecodeOptions(channels=channels, **options)))


def refuse(self: Source, i: int) -> bytes:
    raise AssertionError("read")


def same(one: Scan, other: Scan) -> bool:
    """Equal in every field, and of the same types."""
    assert one.sizes.dtype == other.sizes.dtype == np.int32
    assert list(map(type, one)) == list(map(type, other)) and set(
        map(type, [*one.bad, *other.bad])
    ) <= {BadFile}
    return one[:-1] == other[:-1] and np.array_equal(one.sizes, other.sizes)


def plant(root: Path, sizes: list[tuple[int, int]], suffix: str = ".png") -> list[np.ndarray]:
    """One file for each (height, width), each with its own contrast; returns the pixels."""
    root.mkdir(exist_ok=True)
    images = []
    for i, size in enumerate(sizes):
        rng = np.random.default_rng(i)
        top = rng.integers(60, 256, 3)
        images.append((rng.random((*size, 3)) * top).astype(np.uint8))
        Image.fromarray(images[-1]).save(root / f"{i:03d}{suffix}")
    return images


def brute(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std in float64, two passes; every image counts the same, whatever its size."""
    mean = np.mean([(x / 255).mean((0, 1)) for x in images], axis=0)
    return mean, np.sqrt(np.mean([((x / 255 - mean) ** 2).mean((0, 1)) for x in images], axis=0))


SIZES = [(30, 41), (8, 8), (17, 100), (64, 20), (5, 5), (30, 30), (9, 77)]


def test_numbers_are_those_of_brute_force(tmp_path):
    images = plant(tmp_path / "set", SIZES)
    found = scan(open_source(tmp_path / "set"))
    mean, std = brute(images)
    assert np.abs(np.array(found.mean) - mean).max() <= 0.500001e-4
    assert np.abs(np.array(found.std) - std).max() <= 0.500001e-4
    assert (found.images, found.bad, found.complete) == (7, [], True)
    assert (found.height, found.width) == (17, 30) and found.sizes.tolist() == [
        list(size) for size in SIZES
    ]
    assert len(set(found.mean)) == 3  # channels are not mixed up
    assert all(type(x) is float and x == round(x, 4) for x in (*found.mean, *found.std))


def test_the_median_of_an_even_number_is_between_the_middle_two(tmp_path):
    plant(tmp_path / "set", [(10, 1), (20, 2), (31, 40), (1000, 3)])
    found = scan(open_source(tmp_path / "set"))
    assert (found.height, found.width) == (25, 2)  # 25.5 and 2.5, whole pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_those_of_the_options(tmp_path, channels):
    images = plant(tmp_path / "set", SIZES)
    if channels == 1:
        images = [np.asarray(Image.fromarray(x).convert("L"))[:, :, None] for x in images]
    found = scan(open_source(tmp_path / "set"), channels)
    mean, std = brute(images)
    assert len(found.mean) == len(found.std) == channels
    assert np.allclose(found.mean, mean, atol=0.51e-4, rtol=0) and np.allclose(
        found.std, std, atol=0.51e-4, rtol=0
    )


@pytest.mark.parametrize("full", [20_000, 10])
def test_arrays_are_scanned_too(tmp_path, monkeypatch, full):
    monkeypatch.setattr(module, "FULL", full)
    pixels = np.random.default_rng(0).integers(0, 200, (20, 6, 9, 4), dtype=np.uint8)
    np.save(tmp_path / "set.npy", pixels)
    found = scan(open_source(f"{tmp_path}/set.npy?layout=NHWC"), 4)
    mean, std = brute(list(pixels))
    assert (found.images, found.height, found.width, found.complete) == (20, 6, 9, full > 20)
    assert np.allclose(found.mean, mean, atol=0.51e-4, rtol=0) and np.allclose(
        found.std, std, atol=0.51e-4, rtol=0
    )


def spoil(root: Path) -> dict[str, str]:
    """Adds bad files of several kinds; returns why each is bad."""
    good = (root / "002.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(good[:-60])
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_bytes(b"<html>404</html>")
    Image.new("RGB", (200, 300)).save(root / "huge.png")
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    return {
        "cut.jpg": "truncated JPEG: no end marker",
        "empty.jpg": "empty",
        "text.jpg": "not an image",
        "huge.png": "megapixels, more than the limit of 0.01",
        "dangling.jpg": "",
    }


@pytest.mark.parametrize("full", [20_000, 3])
def test_bad_files_are_named_with_the_reason(tmp_path, monkeypatch, full):
    monkeypatch.setattr(module, "FULL", full)
    monkeypatch.setattr(module, "MEASURED", 2)
    root = tmp_path / "set"
    plant(root, SIZES, ".jpg")
    reasons = spoil(root)
    found = scan(open_source(root), max_megapixels=0.01)
    assert sorted(bad.name for bad in found.bad) == sorted(reasons)
    for name, reason in found.bad:
        assert reasons[name] in reason and reason and "\n" not in reason
    assert (found.height, found.width) == (17, 30)  # those of the good ones
    assert (
        len(found.sizes) == len(SIZES) + 4
        and [list(size) for size in SIZES] == found.sizes[: len(SIZES)].tolist()
    )
    assert not found.sizes[len(SIZES) :].any()


@pytest.mark.parametrize("full", [20_000, 3])
def test_a_file_that_is_gone_by_now_has_a_short_reason(tmp_path, monkeypatch, full):
    monkeypatch.setattr(module, "FULL", full)
    monkeypatch.setattr(module, "MEASURED", 1)
    plant(tmp_path / "set", SIZES)
    source = open_source(tmp_path / "set")
    (tmp_path / "set" / "005.png").unlink()
    assert scan(source).bad == [("005.png", "No such file or directory")]


def test_bad_files_do_not_count_for_mean_and_std(tmp_path):
    images = plant(tmp_path / "set", SIZES, ".png")
    (tmp_path / "set" / "aaa.png").write_bytes(b"no")
    mean, std = brute(images)
    found = scan(open_source(tmp_path / "set"))
    assert np.allclose(found.mean, mean, atol=0.51e-4, rtol=0) and np.allclose(
        found.std, std, atol=0.51e-4, rtol=0
    )


def test_of_a_large_set_some_are_decoded_and_all_are_inspected(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FULL", 10)
    monkeypatch.setattr(module, "MEASURED", 4)
    root = tmp_path / "set"
    images = plant(root, [(8 + i, 10) for i in range(20)], ".png")
    for i in (3, 15, 19):  # not among those that are decoded: 0, 5, 10, 15 but for 15
        path = root / f"{i:03d}.png"
        path.write_bytes(path.read_bytes()[:60])
    path = (
        root / "011.png"
    )  # header and end are whole, the middle is not: left for training to find
    data = bytearray(path.read_bytes())
    data[60:-30] = bytes(len(data) - 90)
    path.write_bytes(bytes(data))
    found = scan(open_source(root))
    assert not found.complete and found.images == 20
    assert [bad.name for bad in found.bad] == ["003.png", "015.png", "019.png"]
    mean, std = brute([images[i] for i in (0, 5, 10)])
    assert np.allclose(found.mean, mean, atol=0.51e-4, rtol=0) and np.allclose(
        found.std, std, atol=0.51e-4, rtol=0
    )
    assert found.height == int(np.median([8 + i for i in range(20) if i not in (3, 15, 19)]))
    monkeypatch.setattr(module, "FULL", 20)  # as many as are decoded whole
    whole = scan(open_source(root))
    assert whole.complete and [bad.name for bad in whole.bad] == [
        "003.png",
        "011.png",
        "015.png",
        "019.png",
    ]
    assert (whole.mean, whole.std) == (found.mean, found.std)  # from the same images


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_blank_data_set_is_not_divided_by_zero(tmp_path, value):
    for i in range(5):
        Image.new("RGB", (7, 9), (value, value, value)).save(tmp_path / f"{i}.png")
    found = scan(open_source(tmp_path))
    assert found.std == (0.01, 0.01, 0.01) and found.mean == (round(value / 255, 4),) * 3


def test_all_files_bad(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no")
    found = scan(open_source(tmp_path))
    assert [bad.name for bad in found.bad] == ["0.jpg", "1.jpg", "2.jpg"]
    assert (found.images, found.height, found.width) == (3, 0, 0)
    assert found.mean == (0.0, 0.0, 0.0) and found.std == (0.01, 0.01, 0.01)


def test_threads_do_not_change_the_result(tmp_path, monkeypatch):
    root = tmp_path / "set"
    plant(root, [(5 + i * 7 % 40, 5 + i * 11 % 50) for i in range(60)], ".jpg")
    spoil(root)
    source, results = open_source(root), []
    for threads in (1, 2, 16):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{threads}"))
        results.append(scan(source))
    assert same(results[0], results[1]) and same(results[0], results[2])
    assert [bad.name for bad in results[0].bad][1:] == [
        "cut.jpg",
        "empty.jpg",
        "text.jpg",
    ]  # in the source's order


def test_the_order_of_the_files_does_not_change_the_result(tmp_path):
    plant(tmp_path / "set", SIZES)
    names = [f"set/{i:03d}.png" for i in range(len(SIZES))]
    for name, lines in {"forth": names, "back": names[::-1]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    forth, back = (scan(open_source(tmp_path / f"{name}.txt")) for name in ("forth", "back"))
    assert same(
        forth._replace(mean=(), std=()), back._replace(mean=(), std=(), sizes=back.sizes[::-1])
    )
    assert np.allclose(
        [forth.mean, forth.std], [back.mean, back.std], atol=1.01e-4, rtol=0
    )  # sums round elsewhere


class TestCache:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch) -> Path:
        """An empty one for each test."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache/torchmae/scans"

    @pytest.fixture
    def reads(self, monkeypatch) -> list[int]:
        """The numbers of the images that are read, but for finding out that all are of 8 bits."""
        monkeypatch.setattr(Files, "kind_at", lambda self, i: Kind(3, "uint8"))
        numbers: list[int] = []
        real = Files.read
        monkeypatch.setattr(Files, "read", lambda self, i: numbers.append(i) or real(self, i))
        return numbers

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        plant(tmp_path / "set", SIZES, ".jpg")
        spoil(tmp_path / "set")
        (tmp_path / "set" / os.fsdecode(b"\xff.jpg")).write_bytes(b"no")
        return tmp_path / "set"

    @pytest.mark.parametrize("full", [20_000, 3])
    def test_what_did_not_change_is_not_read_again(self, root, reads, cache, monkeypatch, full):
        monkeypatch.setattr(module, "FULL", full)
        fresh = scan(open_source(root))
        assert (
            set(reads) == set(range(fresh.images))
            and fresh.images == len(SIZES) + 5
            and len(fresh.bad) == 5
        )
        reads.clear()
        assert same(scan(open_source(root)), fresh) and not reads
        assert len(list(cache.iterdir())) == 1

    @pytest.mark.parametrize("kind", ["list", "tar", "packed"])
    def test_other_sources_are_remembered_too(self, tmp_path, cache, monkeypatch, kind):
        (tmp_path / kind).mkdir()
        spec = BUILDERS[kind](tmp_path / kind / "at", 7)
        fresh = scan(open_source(spec))
        source = open_source(spec)
        assert source.dtype == "uint8"  # which some files are read for
        monkeypatch.setattr(type(source), "read", refuse)
        assert same(scan(source), fresh) and len(list(cache.iterdir())) == 1
        assert fresh.sizes.tolist() == [[7, 6]] * 7

    def test_a_file_of_another_time_and_the_same_size_is_read_again(self, root, reads):
        before = scan(open_source(root))
        other = (root / "001.jpg").read_bytes()
        (root / "000.jpg").write_bytes(
            other + bytes((root / "000.jpg").stat().st_size - len(other))
        )
        reads.clear()
        after = scan(open_source(root))
        assert len(set(reads)) == after.images and before.images == after.images
        assert after.sizes[0].tolist() == [8, 8] and before.sizes[0].tolist() == [30, 41]

    def test_a_file_more_or_less_is_noticed(self, root, reads):
        scan(open_source(root))
        Image.new("RGB", (3, 4)).save(root / "new.png")
        reads.clear()
        assert [4, 3] in scan(open_source(root)).sizes.tolist() and len(set(reads)) == len(
            SIZES
        ) + 6
        (root / "new.png").unlink()
        (root / "003.jpg").rename(root / "999.jpg")
        reads.clear()
        assert scan(open_source(root)).sizes.tolist().index([64, 20]) == len(SIZES) - 1 and reads

    def test_other_rules_are_another_scan(self, root, reads, monkeypatch):
        scan(open_source(root))
        for channels, megapixels, nodata in [(1, 100.0, None), (3, 0.01, None), (3, 100.0, 7.0)]:
            reads.clear()
            scan(open_source(root), channels, max_megapixels=megapixels, nodata=nodata)
            assert reads
        for name in ("FULL", "MEASURED", "__version__"):
            reads.clear()
            monkeypatch.setattr(module, name, 5)
            scan(open_source(root))
            assert reads

    def test_a_link_that_breaks_is_named_all_the_same(self, root, reads):
        before = scan(open_source(root))
        (root / "another.jpg").symlink_to("nowhere.jpg")
        reads.clear()
        after = scan(open_source(root))
        assert not reads and {bad.name for bad in after.bad} == {bad.name for bad in before.bad} | {
            "another.jpg"
        }

    @pytest.mark.parametrize("harm", [0, 8, 100, 101, 150, 200, -1, "cut", "empty", "folder"])
    def test_a_damaged_file_is_replaced(self, root, reads, cache, harm):
        fresh = scan(open_source(root))
        (file,) = cache.iterdir()
        whole = bytearray(file.read_bytes())
        if harm == "folder":
            file.unlink()
            file.mkdir()
        elif isinstance(harm, str):
            file.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
        else:
            file.write_bytes(
                whole[:harm] + bytes([whole[harm] ^ 4]) + (whole[harm + 1 :] if harm + 1 else b"")
            )
        reads.clear()
        assert same(scan(open_source(root)), fresh)
        if harm != "folder":
            assert file.read_bytes() == whole
            reads.clear()
            assert same(scan(open_source(root)), fresh) and not reads

    @pytest.mark.parametrize("place", ["a file", "no home"])
    def test_without_a_cache_everything_works(self, root, reads, tmp_path, monkeypatch, place):
        if place == "a file":
            (tmp_path / "cache").write_text("in the way")
        else:

            def nobody():
                raise RuntimeError("Could not determine home directory.")

            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.setattr(Path, "home", nobody)
        fresh = scan(open_source(root))
        reads.clear()
        assert same(scan(open_source(root)), fresh) and reads

    def test_a_full_disk_leaves_nothing(self, root, cache, monkeypatch):
        def full(path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(disk, "sync", full)
        scan(open_source(root))
        assert not list(cache.iterdir())

    def test_every_file_is_read_once(self, root, cache, reads):
        scan(open_source(root))
        assert len(reads) == len(set(reads)) == len(open_source(root))

    @pytest.mark.parametrize("kind", ["array", "digits", "torchvision"])
    def test_pixels_are_not_remembered(self, tmp_path, cache, kind):
        source = open_source(BUILDERS[kind](tmp_path / "set", 7))
        scan(source)
        assert not cache.exists()

    def test_the_folder_is_the_users(self, monkeypatch):
        for given, wanted in [("/x/y", "/x/y"), ("", "/me/.cache"), ("not/absolute", "/me/.cache")]:
            monkeypatch.setenv("XDG_CACHE_HOME", given)
            monkeypatch.setenv("HOME", "/me")
            assert cache_folder("scans") == Path(wanted) / "torchmae/scans"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder("other") == Path("/me/.cache/torchmae/other")


@pytest.mark.parametrize(
    "count, percent, budget",
    [
        (0, 1.0, 20),
        (100, 1.0, 20),
        (2000, 1.0, 20),
        (2100, 1.0, 21),
        (1_281_167, 1.0, 12811),
        (10**6, 0.0, 20),
        (50, 100.0, 50),
    ],
)
def test_the_budget_is_a_share_and_at_least_twenty(count, percent, budget):
    assert max_bad_files(count, percent) == budget


def test_a_scan_during_which_the_system_said_no_is_not_kept(tmp_path, monkeypatch):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (20, 30), "red").save(tmp_path / "b.png")
    source = open_source(tmp_path)
    (tmp_path / "b.png").rename(tmp_path / "c.txt")  # as with a server that is away for a while
    assert [name for name, _ in scan(source).bad] == ["b.png"]
    (tmp_path / "c.txt").rename(tmp_path / "b.png")
    assert scan(source).bad == []


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="Linux counts what is read")
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_file_larger_than_any_image_is_not_read(tmp_path, kind):
    """Once 3 GB were taken for it, twice."""
    (tmp_path / "set").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"set/{i}.png")
    with (tmp_path / "set/0.png").open("ab") as file:
        file.truncate(3 * 10**9)  # sparse: it takes no room
    if kind == "tar":
        with tarfile.open(tmp_path / "set/s.tar", "w") as tar:
            for i in (1, 2):
                tar.add(tmp_path / f"set/{i}.png", f"{i}.png")
            info = tarfile.TarInfo("0.png")
            info.size = 3 * 10**9
            tar.addfile(info, None)
        with (tmp_path / "set/s.tar").open("ab") as file:
            file.truncate(file.tell() + info.size + 10240)
    source = open_source(tmp_path / "set" / ("s.tar" if kind == "tar" else ""))
    before = bytes_read()
    found = scan(source)
    assert bytes_read() - before < 10**6
    ((name, reason),) = found.bad
    assert name.endswith("0.png") and reason == (
        "3,000 MB, more than the 864 MB that an image of 100 megapixels can need (--max-megapixels)"
    )
    assert max_bytes(DecodeOptions(max_megapixels=400)) > 3 * 10**9  # the way out that it names


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_read_that_never_ends_is_named_while_scanning(tmp_path, monkeypatch, caplog):
    """A pipe that nobody writes into yet, as if a file server were gone for a while."""
    monkeypatch.setattr(workers, "STALL_SECONDS", 0.1)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    source = open_source(str(tmp_path))
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    found = []
    thread = threading.Thread(target=lambda: found.append(scan(source)))
    with caplog.at_level(logging.WARNING, logger="torchmae"):
        thread.start()
        while "1.png" not in caplog.text:
            time.sleep(0.05)
        assert "waiting for data since" in caplog.text and "0.png" not in caplog.text
        (tmp_path / "1.png").write_bytes(png(1))
        thread.join(60)
    assert found[0].bad == [] and found[0].images == 3


def deep(folder: Path, kind: str = "float32") -> np.ndarray:
    """Images of 5 bands and several sizes with heavy tails, as .npy; all values of them [n, 5]."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    found = []
    for i in range(12):
        values = np.exp(draw.normal(5, 1, (20 + i, 30, 5))).astype(kind)
        if kind == "float32":
            values[: i + 1] = np.nan
        np.save(folder / f"{i}.npy", values)
        found.append(values.reshape(-1, 5))
    return np.concatenate(found).astype(np.float64)


class TestOfOtherTypes:
    def test_mean_and_std_are_numpy_s(self, tmp_path):
        values = deep(tmp_path / "floats")
        found = module.scan(open_source(tmp_path / "floats"))
        assert np.allclose(found.mean, np.nanmean(values, axis=0), rtol=1e-9)
        assert np.allclose(found.std, np.nanstd(values, axis=0), rtol=1e-7)
        assert found.missing == np.isnan(values).mean() and found.outside == 0
        whole = deep(tmp_path / "uint16", "uint16")
        found = module.scan(open_source(tmp_path / "uint16"))
        assert np.allclose([found.mean, found.std], [whole.mean(0), whole.std(0)], rtol=1e-7)
        assert (found.missing, found.scaling) == (0, Scaling())

    @pytest.mark.parametrize("kind, scale", [("log", np.log1p), ("sqrt", np.sqrt)])
    def test_after_a_scale(self, tmp_path, kind, scale):
        values = scale(deep(tmp_path / "set"))
        found = module.scan(open_source(tmp_path / "set"), scale=(kind,))
        assert np.allclose(found.mean, np.nanmean(values, axis=0), rtol=1e-6)
        assert np.allclose(found.std, np.nanstd(values, axis=0), rtol=1e-6)

    def test_windows_are_counted(self, tmp_path):
        values = deep(tmp_path / "set")
        there = values[~np.isnan(values).any(axis=1)]
        found = module.scan(open_source(tmp_path / "set"), scale=("window", "100", "400"))
        share = ((there < 100) | (there > 400)).sum() / values.size
        assert found.outside == pytest.approx(share)
        assert np.allclose(found.mean, there.clip(100, 400).mean(0), rtol=1e-6)
        own = module.scan(open_source(tmp_path / "set"), scale=("percentile",))
        ends = np.percentile(there, (0.5, 99.5), axis=0)
        assert np.allclose([own.scaling.low, own.scaling.high], ends, rtol=1e-5)
        assert 0.005 < own.outside < 0.011
        again = module.scan(open_source(tmp_path / "set"), scale=("percentile",))
        assert same(again, own)

    def test_what_does_not_fit_is_named(self, tmp_path):
        deep(tmp_path / "set")
        np.save(tmp_path / "set/4.npy", np.zeros((9, 9, 5), np.uint8))
        np.save(tmp_path / "set/5.npy", np.zeros((9, 9, 4), np.float32))
        np.save(tmp_path / "set/6.npy", np.full((9, 9, 5), np.nan, np.float32))
        reasons = {bad.name: bad.reason for bad in module.scan(open_source(tmp_path / "set")).bad}
        assert "uint8 pixels, where float32 is expected" in reasons["4.npy"]
        assert "4 channels, which cannot become 5" in reasons["5.npy"]
        assert "no values" in reasons["6.npy"] and len(reasons) == 3
        plant(tmp_path / "photos", [(8, 8)])
        with pytest.raises(UserError, match="--scale log is for more than 8 bits"):
            module.scan(open_source(tmp_path / "photos"), scale=("log",))
