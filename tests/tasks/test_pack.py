"""`mae pack`: pixels, bytes, labels, lists, every kill, a full disk; training on its shards."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import SMALL
from helpers.sources import grey12
from PIL import Image
from safetensors.torch import load_file

import torchmae
from torchmae.data import scan as scans
from torchmae.data.decode import decode
from torchmae.data.loader import Batches, read_pixels
from torchmae.data.sources import open_source, packed
from torchmae.data.sources.packed import Packed
from torchmae.data.sources.source import Source, Subset
from torchmae.data.transforms import Crop, RandomResizedCropFlip, resized_crop
from torchmae.errors import RunError, UserError
from torchmae.tasks.pack import run as pack
from torchmae.tasks.pack.config import Pack


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Small and large pictures of many kinds, two bad files, one twice."""
    root, generator = tmp_path / "mixed", np.random.default_rng(0)

    def save(name: str, height: int, width: int, grey: bool = False, **options: object) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        small = generator.integers(80, 170, (8, 9) if grey else (8, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(root / name, **options)

    exif = Image.Exif()
    exif[0x0112] = 6
    save("a/large.jpg", 90, 120)
    save("a/large.png", 100, 70)
    save("a/small.png", 20, 30)
    save("b/deep/grey.bmp", 64, 96, grey=True)
    save("b/small.jpg", 40, 64)
    save("b/turned.jpeg", 60, 90, exif=exif)
    save("top.webp", 50, 80, lossless=True)
    (root / "b/twice.jpg").write_bytes((root / "b/small.jpg").read_bytes())
    (root / "b/zz-cut.jpg").write_bytes((root / "a/large.jpg").read_bytes()[:500])
    (root / "zz-empty.png").write_bytes(b"")
    return root


def by_name(source: Source) -> dict[str, int]:
    return {source.name(i): i for i in range(len(source))}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_pixels_are_those_of_decoding_and_resizing(mixed: Path, tmp_path: Path) -> None:
    before = files(mixed)
    source = open_source(pack.run(Pack(str(mixed), str(tmp_path / "out"), size=40, quality=90)))
    assert files(mixed) == before
    became = {
        "a/large.jpg": "a/large.jpg",
        "a/large~2.jpg": "a/large.png",
        "a/small.png": "a/small.png",
        "b/deep/grey.jpg": "b/deep/grey.bmp",
        "b/small.jpg": "b/small.jpg",
        "b/turned.jpeg": "b/turned.jpeg",
        "b/twice.jpg": "b/twice.jpg",
        "top.jpg": "top.webp",
    }
    assert list(by_name(source)) == list(became)
    for i, (name, original) in enumerate(became.items()):
        data = source.read(i)
        assert isinstance(data, bytes)
        pixels, given = decode(data), decode((mixed / original).read_bytes())
        height, width = given.shape[:2]
        if min(height, width) <= 40:
            assert data == (mixed / original).read_bytes()
            continue
        to = [round(side * 40 / min(height, width)) for side in (height, width)]
        wanted = (
            resized_crop(given, Crop(0, 0, height, width, False), (to[0], to[1]))
            .permute(1, 2, 0)
            .numpy()
        )
        file = io.BytesIO()
        grey = "grey" in name
        Image.fromarray(np.ascontiguousarray(wanted[..., 0] if grey else wanted)).save(
            file, "JPEG", quality=90
        )
        assert Image.open(io.BytesIO(data)).mode == ("L" if grey else "RGB")
        np.testing.assert_array_equal(pixels, decode(file.getvalue()))
        assert np.abs(pixels.astype(int) - wanted).mean() < 3 and min(pixels.shape[:2]) == 40


def test_lossless_keeps_every_byte(mixed: Path, tmp_path: Path) -> None:
    out = pack.run(Pack(str(mixed), str(tmp_path / "out"), lossless=True, shard_mb=0.01))
    source = open_source(out)
    assert isinstance(source, Packed) and len(source) == 8 and len(source.paths) > 1
    assert all(source.read(i) == (mixed / name).read_bytes() for name, i in by_name(source).items())
    (tmp_path / "x").mkdir()
    for shard in source.paths:
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path / "x", filter="data")
    images = {
        name: data for name, data in files(tmp_path / "x").items() if not name.endswith(".cls")
    }
    assert images == {name: data for name, data in files(mixed).items() if "zz-" not in name}


def test_bad_files_and_duplicates_are_reported(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mixed / "gone.jpg").symlink_to(mixed / "nowhere.jpg")
    out = pack.run(Pack(str(mixed), str(tmp_path / "out")))
    said = capsys.readouterr().out
    assert (
        f"{out}: 8 images in 1 shard" in said
        and "3 files skipped" in said
        and "pretrain" in said.splitlines()[-1]
    )
    assert "1 files with the bytes of earlier ones (kept; --drop-duplicates skips them)" in said
    assert [line["file"] for line in lines(out / "bad-files.jsonl")] == [
        "gone.jpg",
        "b/zz-cut.jpg",
        "zz-empty.png",
    ]
    assert lines(out / "bad-files.jsonl")[-1]["reason"] == "empty file"
    assert lines(out / "duplicates.jsonl") == [{"file": "b/twice.jpg", "same_as": "b/small.jpg"}]
    less = pack.run(Pack(str(mixed), str(tmp_path / "less"), drop_duplicates=True))
    assert by_name(open_source(out)).keys() - by_name(open_source(less)).keys() == {"b/twice.jpg"}
    assert (less / "duplicates.jsonl").read_bytes() == (out / "duplicates.jsonl").read_bytes()
    header = json.loads((less / "index.json").read_text())
    assert header["images"] == 7 and header["bad_files"] == 3 and header["duplicates"] == 1


def refuse(self: Source, i: int) -> bytes:
    raise AssertionError("read")


@pytest.mark.parametrize("full, measured", [(20_000, 2_000), (5, 3), (20_000, 3), (5, 5)])
def test_a_scan_of_it_reads_no_image(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int, measured: int
) -> None:
    """What packing has measured equals what a scan of the images finds."""
    monkeypatch.setattr(scans, "FULL", full)
    monkeypatch.setattr(scans, "MEASURED", measured)
    for k, rest in enumerate([{}, {"lossless": True}, {"size": 40, "drop_duplicates": True}]):
        out = pack.run(Pack(str(mixed), str(tmp_path / f"out-{k}"), shard_mb=0.003, **rest))
        source = open_source(out)
        fresh = scans.scan(Subset(source, range(len(source))))
        with monkeypatch.context() as patch:
            patch.setattr(Packed, "read", refuse)
            found = scans.scan(source)
        assert found[:-1] == fresh[:-1] and np.array_equal(found.sizes, fresh.sizes)
        assert (
            found.sizes.dtype == fresh.sizes.dtype
            and found.sizes.all()
            and found.images == 8 - (k == 2)
        )
        assert len(set(map(tuple, found.sizes.tolist()))) > 4


@pytest.mark.parametrize("rest", [{"lossless": True}, {"size": 16}])
def test_12_bit_images_are_packed_as_they_are(tmp_path: Path, rest: dict) -> None:
    folder = grey12(tmp_path / "grey")
    source = open_source(pack.run(Pack(str(folder), str(tmp_path / "out"), **rest)))
    plain = open_source(folder)
    assert source.dtype == "uint16" and source.channels == 1
    for i in range(12):
        assert np.array_equal(read_pixels(source, i), read_pixels(plain, i))
    assert scans.scan(source)[3:][:3] == scans.scan(plain)[3:][:3]


def test_files_of_five_bands_are_packed_as_they_are(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "tiles").mkdir()
    images = np.random.default_rng(0).integers(0, 10_000, (4, 5, 24, 24)).astype(np.uint16)
    for i, image in enumerate(images):
        tifffile.imwrite(tmp_path / "tiles" / f"{i}.tif", image, planarconfig="separate")
    packed = torchmae.pack(tmp_path / "tiles", out=tmp_path / "packed", size=16)
    source = open_source(packed)
    assert (source.dtype, source.channels, len(source)) == ("uint16", 5, 4)
    for i, image in enumerate(images):
        assert np.array_equal(read_pixels(source, i), image.transpose(1, 2, 0))


def test_labels_are_kept(mixed: Path, photos: Path, tmp_path: Path) -> None:
    source = open_source(pack.run(Pack(str(mixed), str(tmp_path / "mixed-shards"), size=40)))
    assert [source.label(i) for i in range(8)] == ["a", "a", "a", "b", "b", "b", "b", None]
    plain = open_source(tmp_path / "mixed-shards/shard-000000.tar")
    assert [plain.label(i) for i in range(8)] == ["a", "a", "a", "b", "b", "b", "b", None]
    listed = [str(file.relative_to(photos.parent)) for file in sorted(photos.rglob("*.jpg"))]
    (photos.parent / "list.csv").write_text(
        "".join(f"{name},{'yx'[i % 2]}\n" for i, name in enumerate(listed))
    )
    out = pack.run(Pack(str(photos.parent / "list.csv"), str(tmp_path / "listed")))
    for spec in (out, out / "shard-000000.tar"):
        source = open_source(spec)
        assert [source.label(i) for i in range(24)] == ["y", "x"] * 12


def test_a_divided_folder_keeps_its_parts(photos: Path, tmp_path: Path) -> None:
    from torchmae.data.labels import labelled_sets

    for file in sorted(photos.rglob("*.jpg")):
        for part in ("train", "val"):
            path = tmp_path / "copies" / part / file.parent.name / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read_bytes())
    out = pack.run(Pack(str(tmp_path / "copies"), str(tmp_path / "out")))
    one, two = (labelled_sets(str(spec), None, 0.2, None, 0) for spec in (tmp_path / "copies", out))
    assert one.classes == two.classes == ("across", "blob", "down")
    assert torch.equal(one.train_labels, two.train_labels) and torch.equal(
        one.val_labels, two.val_labels
    )
    assert [two.val.name(i) for i in range(24)] == [f"val/{one.val.name(i)}" for i in range(24)]


def test_names_from_anywhere_become_relative_and_get_an_ending(mixed: Path, tmp_path: Path) -> None:
    (mixed / "c").write_bytes((mixed / "a/small.png").read_bytes())
    (tmp_path / "list.txt").write_text(
        f"mixed/c\n{mixed}/a/small.png\nmixed/../mixed/a/small.png\nmixed/top.webp\n"
    )
    source = open_source(pack.run(Pack(str(tmp_path / "list.txt"), str(tmp_path / "out"))))
    absolute = f"{mixed}/a/small.png".lstrip("/")
    assert list(by_name(source)) == [
        "mixed/c.png",
        absolute,
        "mixed/mixed/a/small.png",
        "mixed/top.webp",
    ]
    again = open_source(
        pack.run(
            Pack(str(tmp_path / "out/shard-000000.tar"), str(tmp_path / "again"), lossless=True)
        )
    )
    assert (
        list(by_name(again)) == list(by_name(source))
        and again.fingerprint() == source.fingerprint()
    )


def test_the_same_files_give_the_same_bytes(photos: Path, mixed: Path, tmp_path: Path) -> None:
    for data in (photos, mixed):
        outs = [tmp_path / f"{data.name}-{i}" for i in range(3)]
        for i, out in enumerate(outs):
            pack.run(Pack(str(data), str(out), size=32, shard_mb=0.01, workers=[1, 2, 5][i]))
        assert files(outs[0]) == files(outs[1]) == files(outs[2])
        assert set(files(outs[0])) - {"bad-files.jsonl", "duplicates.jsonl"} == {
            *("index.json", "index.safetensors"),
            *(f"shard-{i:06d}.tar" for i in range(len(list(outs[0].glob("*.tar"))))),
        }
        assert str(tmp_path).encode() not in b"".join(files(outs[0]).values())


DYING = """
import importlib, os, signal, sys
from torchmae import cli
place, name, at = {place!r}, {name!r}, {at}
module, _, inner = place.partition(":")
owner = importlib.import_module(module)
owner = getattr(owner, inner) if inner else owner
real, calls = getattr(owner, name), 0
def dying(*given, **more):
    global calls
    calls += 1
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given, **more)
setattr(owner, name, dying)
sys.exit(cli.main({arguments!r}))
"""


def command(mixed: Path, out: Path) -> list[str]:
    return ["pack", str(mixed), "--out", str(out), "--size", "40", "--shard-mb", "0.003"]


@pytest.fixture
def whole(mixed: Path, tmp_path: Path) -> dict[str, bytes]:
    """What packing gives that nothing interrupts."""
    out = pack.run(Pack(str(mixed), str(tmp_path / "whole"), size=40, shard_mb=0.003))
    assert len(list(out.glob("*.tar"))) >= 3
    return files(out)


PACKED = "torchmae.data.sources.packed"


@pytest.mark.parametrize(
    "call, finished",
    [
        ((PACKED, "write_header", 1), 0),  # before anything
        ((f"{PACKED}:Shard", "add", 5), 1),  # inside a shard
        ((PACKED, "write_part", 2), 1),  # a shard is finished, but not its part of the index
        ((PACKED, "write_index", 1), 3),
        ((PACKED, "write_header", 2), 3),  # the arrays of the index exist, index.json does not
        (("shutil", "rmtree", 1), 3),  # all is finished, and .progress still exists
    ],
)
def test_a_kill_changes_nothing(
    mixed: Path, tmp_path: Path, whole, call: tuple[str, str, int], finished: int
) -> None:
    out = tmp_path / "out"
    place, name, at = call
    code = DYING.format(place=place, name=name, at=at, arguments=command(mixed, out))
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    if (out / "index.json").exists():
        assert len(open_source(out)) == 8
    elif (out / ".progress/index.json").exists():
        with pytest.raises(UserError, match="not finished"):
            open_source(out)
    ready = [out / packed.shard_name(i) for i in range(len(list(packed.parts(out))))]
    assert len(ready) >= finished
    times = [file.stat().st_mtime_ns for file in ready]
    pack.run(Pack(str(mixed), str(out), size=40, shard_mb=0.003))
    assert files(out) == whole and times == [file.stat().st_mtime_ns for file in ready]
    assert not (out / ".progress").exists()


def test_going_on_with_other_settings_or_files_is_refused(
    mixed: Path, tmp_path: Path, whole
) -> None:
    out = tmp_path / "out"
    code = DYING.format(
        place="torchmae.data.sources.packed", name="write_part", at=3, arguments=command(mixed, out)
    )
    subprocess.run([sys.executable, "-c", code])
    same = dict(size=40, shard_mb=0.003)
    for made in (out, tmp_path / "whole"):
        with pytest.raises(
            UserError, match=r"size was 40, is 50; quality was 90, is 80\. Repeat its command"
        ):
            pack.run(Pack(str(mixed), str(made), **{**same, "size": 50, "quality": 80}))
        with pytest.raises(UserError, match="size was 40, is None; .*lossless was False, is True"):
            pack.run(Pack(str(mixed), str(made), lossless=True, shard_mb=0.003))
    with (mixed / "zz-cut.jpg").open("wb") as file:
        file.write(b"x")
    for made in (out, tmp_path / "whole"):
        with pytest.raises(UserError, match="the data had 10 files, has 11"):
            pack.run(Pack(str(mixed), str(made), **same))
    (mixed / "zz-cut.jpg").unlink()
    (mixed / "zz-empty.png").write_bytes(b"xx")
    with pytest.raises(UserError, match="not the same ones"):
        pack.run(Pack(str(mixed), str(out), **same))
    (mixed / "zz-empty.png").write_bytes(b"")
    pack.run(Pack(str(mixed), str(out), **same))
    assert files(out) == whole


def test_where_nothing_is_finished_anything_may_change(mixed: Path, tmp_path: Path, whole) -> None:
    out = tmp_path / "out"
    code = DYING.format(
        place="torchmae.data.sources.packed",
        name="write_part",
        at=1,
        arguments=[*command(mixed, out), "--max-megapixels", "9"],
    )
    subprocess.run([sys.executable, "-c", code])
    (out / "shard-000009.tar").write_bytes(b"of an earlier attempt")
    pack.run(Pack(str(mixed), str(out), size=40, shard_mb=0.003))
    assert files(out) == whole


def test_a_full_disk_leaves_the_finished_shards(mixed: Path, tmp_path: Path, whole) -> None:
    """A limit on the size of a file fails like a full disk, in the middle of a write."""
    out = tmp_path / "out"
    arguments = command(mixed, out)
    code = f"""
import resource, sys
from torchmae import cli
from torchmae.data.sources.packed import Shard
real, shards = Shard.finish, 0
def finish(self, **more):
    global shards
    shards += 1
    if shards == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    return real(self, **more)
Shard.finish = finish
sys.exit(cli.main({arguments!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == RunError("").exit_code == 1, done.stderr
    assert (
        "could not write in" in done.stderr
        and "File too large. Its finished shards stay" in done.stderr
    )
    assert sorted(p.name for p in out.iterdir()) == [
        ".progress",
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    assert not [name for name in files(out) if "partial" in name]
    pack.run(Pack(str(mixed), str(out), size=40, shard_mb=0.003))
    assert files(out) == whole


def test_mistakes(mixed: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(mixed / "a")
    for data, options, message in [
        (mixed, {"out": str(mixed / "shards")}, "lies inside the data .* name a folder outside"),
        (mixed, {"out": str(mixed)}, "lies inside the data"),
        (mixed, {"out": str(tmp_path / "link")}, "lies inside the data"),
        (mixed, {"out": str(tmp_path / "used")}, r"holds other things \(notes.txt, ...\)"),
        (mixed, {"out": str(tmp_path / "used/notes.txt")}, "is a file"),
        (mixed, {"out": str(tmp_path / "used/notes.txt/x")}, "is a file|cannot be made"),
        (mixed, {"size": 0}, "--size 0: must be more than 0"),
        (mixed, {"shard_mb": float("nan")}, "--shard-mb nan"),
        (mixed, {"quality": 101}, "--quality 101: must be at most 100"),
        (mixed, {"quality": 90, "lossless": True}, "--quality is for images that are made smaller"),
        (mixed, {"workers": 0}, "--workers 0"),
        ("digits", {}, "packs image files, but digits holds pixels"),
        (tmp_path / "nowhere", {}, "no such folder"),
        (photos, {"verify": True}, "and .* is none"),
    ]:
        with pytest.raises(UserError, match=message):
            pack.run(Pack(str(data), **{"out": str(tmp_path / "out"), **options}))  # type: ignore[dict-item]
    assert not (tmp_path / "out").exists() and (tmp_path / "used/notes.txt").read_text() == "mine"


def test_nothing_to_pack(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.jpg").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"none of the 1 files can be read; the first: x\.jpg: not an image"
    ):
        pack.run(Pack(str(tmp_path / "bad"), str(tmp_path / "out")))


def test_two_at_once_are_refused(mixed: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from torchmae.train.checkpoint import lock
with lock(Path({str(tmp_path)!r}) / "out/.progress"):
    print("locked", flush=True)
    sys.stdin.read()
"""
    (tmp_path / "out/.progress").mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdin and other.stdout.readline()
        with pytest.raises(UserError, match="another process is packing into"):
            pack.run(Pack(str(mixed), str(tmp_path / "out")))
        other.stdin.close()


def test_verify(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pack.run(Pack(str(mixed), str(tmp_path / "out"), lossless=True, shard_mb=0.003))
    assert pack.run(Pack(str(out), verify=True)) == out
    assert "all as they were packed" in capsys.readouterr().out
    source = open_source(out)
    assert isinstance(source, Packed)
    with open(source.paths[1], "r+b") as file:
        place = int(source.places[np.flatnonzero(source.places[:, 0] == 1)[0], 1])
        file.seek(place + 30)
        file.write(b"\1\2\3\4")
    name = source.name(int(np.flatnonzero(source.places[:, 0] == 1)[0]))
    with pytest.raises(
        UserError, match=rf"1 shards are not .*shard-000001\.tar \(damaged images: {name}\)"
    ):
        pack.run(Pack(str(out), verify=True))


def test_training_on_it(photos: Path, tmp_path: Path) -> None:
    """Lossless shards give the run of the files, bit for bit; either resumes the other's run."""
    out = pack.run(Pack(str(photos), str(tmp_path / "shards"), shard_mb=0.01))
    one, two = (
        torchmae.pretrain(str(data), out=str(tmp_path / "runs" / data.name), epochs=2, **SMALL)
        for data in (photos, out)
    )
    weights = [load_file(run / "model.safetensors") for run in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    torchmae.pretrain(str(out), out=str(one), epochs=2, **SMALL)


def test_two_runs_get_the_same_pixels(photos: Path, tmp_path: Path) -> None:
    out = pack.run(Pack(str(photos), str(tmp_path / "shards"), size=32))

    def pixels(folder: Path) -> torch.Tensor:
        batches = Batches(open_source(folder), RandomResizedCropFlip((32, 32), 3), 8)
        return torch.cat([batches[step].images for step in range(6)])

    assert torch.equal(pixels(out), pixels(out.rename(tmp_path / "moved")))


def test_a_damaged_set_is_refused_before_training(photos: Path, tmp_path: Path) -> None:
    out = pack.run(Pack(str(photos), str(tmp_path / "shards"), shard_mb=0.01))
    os.truncate(out / "shard-000001.tar", 5)
    with pytest.raises(UserError, match=r"shard-000001\.tar' has 5 bytes, but was packed with"):
        torchmae.pretrain(str(out), out=str(tmp_path / "run"), **SMALL)
    assert not (tmp_path / "run").exists()
