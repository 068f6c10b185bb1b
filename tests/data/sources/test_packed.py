"""Packed sets: what goes in comes out, opening reads the index alone, damage is named."""

import json
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import labels, names, pack_shards, plant, png
from safetensors.numpy import load_file, save_file

from torchmae import disk
from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage
from torchmae.data.labels import open_pair
from torchmae.data.scan import measure, scan
from torchmae.data.sources import open_source, packed, with_decode
from torchmae.data.sources.packed import ARRAYS, INDEX, PROGRESS, Packed, Part, Shard
from torchmae.data.sources.source import Source, StringArray, Subset
from torchmae.errors import UserError

IMAGES = {f"{'ab'[i % 2]}/{i}.png": png(i) for i in range(8)}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return pack_shards(tmp_path / "shards", IMAGES)


def items(source: Source) -> list[tuple]:
    return [(source.name(i), source.label(i), source.read(i)) for i in range(len(source))]


def test_what_goes_in_comes_out(shards: Path) -> None:
    source = open_source(shards)
    assert isinstance(source, Packed) and len(source.paths) == 3
    assert items(source) == [(name, name[0], data) for name, data in IMAGES.items()]
    assert items(pickle.loads(pickle.dumps(source))) == items(source)


def test_the_shards_are_plain_tars_for_others(shards: Path) -> None:
    for i, (name, data) in enumerate(IMAGES.items()):
        with tarfile.open(shards / f"shard-00000{i // 3}.tar") as tar:
            opened = tar.extractfile(name)
            assert opened is not None and opened.read() == data
            assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar} == {(0, 0, "", 0o644)}
    source = open_source(f"{shards}/*.tar")
    assert not isinstance(source, Packed) and labels(source) == [name[0] for name in IMAGES]


def test_labels_that_are_no_folders_reach_other_readers_too(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "shard-000000.tar")
    for name, label in [
        ("a/1.png", "dog"),
        ("a/2.png", ""),
        ("3.png", "cat"),
        ("b/c/4.png", "b"),
        ("d/5.png", "d"),
    ]:
        shard.add(name, label, png(), (7, 6), bytes(16), 0)
    packed.write_index(tmp_path, [shard.finish()], {"settings": {}, "data": {}})
    for spec in (tmp_path, tmp_path / "shard-000000.tar"):
        assert labels(open_source(spec)) == ["dog", None, "cat", "b", "d"]


def test_names_of_any_kind(tmp_path: Path) -> None:
    given = ["é" * 90 + "/" + "x" * 150 + ".png", "\udcff.png", "new\nline.png"]
    source = open_source(
        pack_shards(tmp_path / "s", {name: png(i) for i, name in enumerate(given)})
    )
    assert names(source) == given and [source.read(i) for i in range(3)] == [
        png(i) for i in range(3)
    ]
    assert [
        name.partition("/")[2] for name in names(open_source(tmp_path / "s/shard-000000.tar"))
    ] == given


def test_opening_reads_the_index_alone(tmp_path: Path) -> None:
    """However many images there are: no walk, and no header of a tar."""
    roots = [
        pack_shards(tmp_path / str(n), {f"{i}.png": png(i % 9) for i in range(n)}, 10)
        for n in (5, 200)
    ]
    seen: list[tuple[str, str]] = []
    watching = [True]

    def hook(event: str, arguments: tuple) -> None:
        if watching[0] and event in ("open", "os.listdir", "os.scandir", "tarfile.open"):
            seen.append(
                (
                    event,
                    os.fsdecode(arguments[0])
                    if isinstance(arguments[0], (str, bytes, os.PathLike))
                    else "",
                )
            )

    sys.addaudithook(hook)  # it stays, so it must be cheap once the test is over
    try:
        for root in roots:
            seen.clear()
            open_source(root)
            inside = [
                (event, os.path.basename(path))
                for event, path in seen
                if path.startswith(str(root))
            ]
            assert sorted(set(inside)) == [("open", INDEX), ("open", ARRAYS)] and len(inside) <= 3
    finally:
        watching[0] = False


def test_the_fingerprint_is_the_same_anywhere(shards: Path, tmp_path: Path) -> None:
    for name, data in IMAGES.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(data)
    files = open_source(tmp_path / "files")
    moved = shards.rename(tmp_path / "moved")
    os.utime(moved / "shard-000000.tar", (1, 1))
    assert open_source(moved).fingerprint() == open_source(f"packed:{moved}").fingerprint()
    in_order = pack_shards(tmp_path / "sorted", dict(sorted(IMAGES.items())), 4)
    assert (
        open_source(in_order).fingerprint() == files.fingerprint()
    )  # so that a run can be resumed from the packed files


def change(file: Path, **more: object) -> None:
    header = json.loads(file.read_text())
    file.write_text(json.dumps({**header, **more}))


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "harm, file, reason",
    [
        (lambda at: (at / INDEX).write_text(""), INDEX, "is damaged"),
        (lambda at: (at / INDEX).write_text((at / INDEX).read_text()[:200]), INDEX, "is damaged"),
        (
            lambda at: change(at / INDEX, shards=[{"file": "shard-000000.tar"}]),
            INDEX,
            "it has no 'bytes'",
        ),
        (
            lambda at: change(at / INDEX, shards=[{"file": "../x", "bytes": 3}]),
            INDEX,
            "no shard can be ../x",
        ),
        (lambda at: change(at / INDEX, shards=3), INDEX, "is damaged"),
        (lambda at: change(at / INDEX, version=2), INDEX, "use a newer one"),
        (lambda at: change(at / INDEX, images=3), ARRAYS, "do not fit together"),
        (lambda at: (at / INDEX).unlink(), INDEX, "is not a packed set"),
        (lambda at: flip(at / ARRAYS, 300), ARRAYS, "SHA-256"),
        (lambda at: os.truncate(at / ARRAYS, 100), ARRAYS, "SHA-256"),
        (lambda at: (at / ARRAYS).unlink(), ARRAYS, "No such file"),
        (lambda at: (at / "shard-000001.tar").unlink(), "shard-000001.tar", "is missing"),
        (
            lambda at: os.truncate(at / "shard-000002.tar", 10),
            "shard-000002.tar",
            "has 10 bytes, but was packed with",
        ),
    ],
)
def test_damage_is_named(shards: Path, harm, file: str, reason: str) -> None:
    harm(shards)
    with pytest.raises(UserError, match=reason) as caught:
        open_source(shards)
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_image_is_a_bad_one(shards: Path) -> None:
    source = open_source(shards)
    assert isinstance(source, Packed)
    flip(shards / "shard-000001.tar", int(source.places[4, 1]) + 9)
    with pytest.raises(BadImage, match="not those that were packed"):
        source.read(4)
    assert source.read(3) and source.read(5)
    os.truncate(shards / "shard-000002.tar", 530)
    with pytest.raises(BadImage, match="shorter"):
        source.read(6)


def test_other_folders_are_not_taken_for_packed_sets(tmp_path: Path) -> None:
    plant(tmp_path, "a.png")
    for name, text in ((INDEX, '{"format": "x"}'), (ARRAYS, "x")):
        (tmp_path / name).write_text(text)
        assert names(open_source(tmp_path)) == ["a.png"]
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="is not a packed set"):
        open_source(f"packed:{tmp_path}")


def test_what_is_not_finished_is_not_opened(shards: Path) -> None:
    (shards / PROGRESS).mkdir()
    os.rename(shards / INDEX, shards / PROGRESS / INDEX)
    with pytest.raises(UserError, match="not finished: the same mae pack command resumes it"):
        open_source(shards)


def test_a_packed_set_brings_its_own_split(tmp_path: Path) -> None:
    images = {
        f"{part}/{kind}/{i}.png": png(i)
        for part in ("train", "val")
        for kind in "ab"
        for i in range(2)
    }
    train, val = open_pair(str(pack_shards(tmp_path / "s", images)), None)
    assert val is not None and labels(train) == labels(val) == ["a", "a", "b", "b"]


def refuse(self: Source, i: int) -> bytes:
    raise AssertionError("read")


def test_a_set_of_an_older_version_is_scanned(shards: Path) -> None:
    arrays = load_file(shards / ARRAYS)
    assert arrays.pop("sizes").tolist() == [[7, 6]] * 8
    save_file(arrays, shards / ARRAYS)
    change(shards / INDEX, index_sha256=disk.sha256(shards / ARRAYS))
    source = open_source(shards)
    assert isinstance(source, Packed) and source.scanned() is None
    assert items(source) == [(name, name[0], data) for name, data in IMAGES.items()]
    assert scan(source).sizes.tolist() == [[7, 6]] * 8


def test_a_set_knows_its_scan_by_its_own_rules_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Shard(tmp_path / "shard-000000.tar")
    for i, (name, data) in enumerate(IMAGES.items()):
        shard.add(name, name[0], data, (7, 6), bytes(16), i)
    settings = {"settings": {"max_megapixels": 50.0}, "data": {}}
    packed.write_index(
        tmp_path,
        [shard.finish()],
        settings,
        lambda source: measure(with_decode(source, DecodeOptions(50.0))),
    )
    source = open_source(tmp_path)
    assert isinstance(source, Packed)
    for rules in [(50.0, 1), (49.0, None), (50.0, None, "float32", 7.0)]:
        other = with_decode(source, DecodeOptions(*rules))
        assert isinstance(other, Packed) and other.scanned() is None
        assert scan(other).sizes.tolist() == [[7, 6]] * 8
    source = with_decode(source, DecodeOptions(60.0))
    fresh = scan(Subset(source, range(8)))
    assert source.dtype == "uint8"  # which some images are read for
    monkeypatch.setattr(Packed, "read", refuse)
    found = scan(source)
    assert found[:-1] == fresh[:-1] and np.array_equal(found.sizes, fresh.sizes)


def test_parts_end_at_the_first_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / PROGRESS).mkdir()

    def write(number: int) -> Part:
        shard = Shard(tmp_path / packed.shard_name(number))
        shard.add(
            f"{number}/\udcff.png",
            str(number),
            png(number),
            (7, number),
            bytes([number] * 16),
            number,
        )
        part = shard.finish(bad=[["x", "why"]])
        packed.write_part(tmp_path, number, part)
        return part

    for part, again in zip([write(i) for i in range(4)], packed.parts(tmp_path), strict=True):
        for one, other in zip(part, again):
            if isinstance(one, StringArray):
                assert isinstance(other, StringArray)
                assert list(one) == list(other)
            else:
                np.testing.assert_equal(
                    one, json.loads(json.dumps(other)) if isinstance(one, dict) else other
                )
    os.truncate(packed.part_file(tmp_path, 2), 50)
    assert len(list(packed.parts(tmp_path))) == 2
    (tmp_path / packed.shard_name(1)).unlink()
    assert len(list(packed.parts(tmp_path))) == 1
    packed.clear(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.rglob("*.*") if p.is_file()) == [
        "part-000000.safetensors",
        "shard-000000.tar",
    ]


def test_strings_joined() -> None:
    some = [StringArray(["a", "", "é"]), StringArray([]), StringArray(["\udcff", "z"])]
    assert (
        list(StringArray.joined(some)) == ["a", "", "é", "\udcff", "z"]
        and list(StringArray.joined([])) == []
    )
