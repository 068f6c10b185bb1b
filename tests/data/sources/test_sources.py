import multiprocessing
import os
import pickle
import random
import tarfile

import numpy as np
import pytest
from helpers.sources import BUILDERS, labels, names, noise, pack, plant, png, saved_dataset

from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import read_pixels
from torchmae.data.sources import SOURCES, open_source
from torchmae.data.sources.hubs import TorchVision
from torchmae.data.sources.source import Source, StringArray, Subset, time_of
from torchmae.errors import UserError


def answer(source: Source) -> tuple:
    last = len(source) - 1
    return (
        source.name(last),
        source.label(last),
        read_pixels(source, last).tobytes(),
        len(source),
    )


def in_child(source: Source, pipe) -> None:
    pipe.send(answer(source))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_contract(kind, tmp_path):
    spec = BUILDERS[kind](tmp_path / "one", 7)
    source = open_source(spec)
    assert isinstance(source, Source)
    assert len(source) == (1797 if kind == "digits" else 7) and not source.unusable
    assert len(set(names(source))) == len(source)
    assert all(label is None or isinstance(label, str) for label in labels(source))
    for i in (0, len(source) - 1):
        item = source.read(i)
        pixels = read_pixels(source, i)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == source.channels
        if not isinstance(item, bytes):
            assert item.shape == pixels.shape
    for beyond in (len(source), 10**9):
        with pytest.raises(IndexError):
            source.read(beyond)

    want = answer(source)  # files that are open by now must not be shared wrongly
    assert answer(pickle.loads(pickle.dumps(source))) == want
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=in_child, args=(source, there))
    process.start()
    assert here.poll(20) and here.recv() == want
    process.join()
    assert answer(source) == want

    fingerprint = source.fingerprint()
    assert int(fingerprint, 16) and open_source(spec).fingerprint() == fingerprint
    assert open_source(BUILDERS[kind](tmp_path / "two", 7)).fingerprint() == fingerprint
    if kind != "digits":
        assert open_source(BUILDERS[kind](tmp_path / "three", 8)).fingerprint() != fingerprint

    stamp = source.stamp()
    assert (stamp is None) == (kind in ("torchvision", "hf", "digits"))
    assert open_source(spec).stamp() == pickle.loads(pickle.dumps(source)).stamp() == stamp
    half = Subset(source, range(3))
    assert half.stamp() != stamp or stamp is None
    assert (
        half.stamp()
        == Subset(open_source(spec), range(3)).stamp()
        != Subset(source, range(1, 4)).stamp()
        or not stamp
    )


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "array"])
def test_a_stamp_notices_what_a_fingerprint_may_not(kind, tmp_path):
    """Another time of modification is enough, and another place."""
    spec = BUILDERS[kind](tmp_path / "one", 7)
    source = open_source(spec)
    stamps = [source.stamp(), open_source(BUILDERS[kind](tmp_path / "two", 7)).stamp()]
    path = tmp_path / "one" / source.name(3) if kind in ("folder", "list") else spec
    facts = os.stat(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    stamps.append(open_source(spec).stamp())
    assert len(set(stamps)) == 3 and open_source(spec).fingerprint() == source.fingerprint()


def test_a_stamp_of_an_array_says_which_of_them(tmp_path):
    np.savez(tmp_path / "x.npz", one=noise(4, 20, 20, 3), two=noise(4, 20, 20, 3))
    specs = [f"{tmp_path}/x.npz?key={rest}" for rest in ("one", "two", "two&layout=NHWC")]
    assert len({open_source(spec).stamp() for spec in specs}) == 3


def test_a_stamp_is_that_of_opening(tmp_path):
    for kind in ("tar", "array"):
        path = BUILDERS[kind](tmp_path / kind, 7)
        source = open_source(path)
        before = source.stamp()
        path.write_bytes(path.read_bytes())  # the same, at another time
        assert source.stamp() == before != open_source(path).stamp()


def test_strings():
    items = ["a", "", "ü/漢字.jpg", "\udcff.png", "z" * 300]
    strings = pickle.loads(pickle.dumps(StringArray(items)))
    assert (
        list(strings) == items
        and strings[-1] == items[-1]
        and strings[1:3] == items[1:3]
        and len(strings) == 5
    )
    with pytest.raises(IndexError):
        strings[5]
    assert list(StringArray([])) == []


def brute_force(root: str) -> tuple[list[str], list[str]]:
    """The .png files below a folder, and the names of what cannot be followed, round by round as `walk` says."""
    found, unusable, folders, files, links = [], [], set(), set(), [""]
    while links:
        here, further = [], []
        for link in sorted(links):
            path = os.path.join(root, link)
            if not os.path.exists(path):
                unusable += [link] * (os.path.splitext(link)[1] in (".png", ""))
            elif os.path.isfile(path):
                here.append(link)
            elif os.stat(path).st_ino in folders:
                unusable.append(link)
            else:
                for folder, inside, names_here in os.walk(path):
                    folders.add(os.stat(folder).st_ino)
                    paths = {one: os.path.join(folder, one) for one in inside}
                    inside[:] = [
                        n
                        for n, p in paths.items()
                        if os.path.islink(p) or os.stat(p).st_ino not in folders
                    ]
                    for one in [*inside, *names_here]:
                        name = os.path.relpath(os.path.join(folder, one), root)
                        if os.path.islink(os.path.join(folder, one)):
                            further.append(name)
                        elif one in names_here:
                            here.append(name)
        for name in sorted(here):
            inode = os.stat(os.path.join(root, name)).st_ino
            if name.endswith(".png") and inode not in files:
                files.add(inode)
                found.append(name)
        links = further
    return sorted(found), unusable


class TestFolder:
    def test_names_labels_and_extensions(self, tmp_path):
        plant(
            tmp_path,
            "b/deep/2.JPG",
            "b/1.Jpeg",
            "a/é 漢.webp",
            "top.png",
            "a/.hidden.TIFF",
            "a-b/x.png",
        )
        plant(tmp_path, "b/readme.txt", "b/x.eps", "b/noext", "b/a.png.part")
        source = open_source(tmp_path)
        assert names(source) == [
            "a-b/x.png",
            "a/.hidden.TIFF",
            "a/é 漢.webp",
            "b/1.Jpeg",
            "b/deep/2.JPG",
            "top.png",
        ]
        assert labels(source) == ["a-b", "a", "a", "b", "b", None]
        assert source.read(5) == (tmp_path / "top.png").read_bytes()

    def test_undecodable_names(self, tmp_path):
        with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as file:
            file.write(png())
        source = open_source(tmp_path)
        assert (
            names(source) == ["\udcff\udcfe.png"]
            and source.read(0) == png()
            and source.fingerprint()
        )

    def test_order_of_creation_does_not_show(self, tmp_path):
        files = [f"{i % 5}/{i * 7919 % 101}.png" for i in range(50)]
        one = open_source(plant(tmp_path / "one", *files))
        random.Random(0).shuffle(files)
        two = open_source(plant(tmp_path / "two", *files))
        assert names(one) == names(two) == sorted(files) and one.fingerprint() == two.fingerprint()

    def test_order_is_that_of_the_whole_paths(self, tmp_path):
        parts = [
            "a",
            "a-b",
            "a.b",
            "a b",
            "a0",
            "aa",
            "A",
            "é",
            "漢",
            "\U0001f600",
            "\udcff",
            "z.png",
        ]
        generator = random.Random(1)
        files = {
            "/".join([*generator.choices(parts, k=generator.randint(0, 4)), "x.png"])
            for _ in range(300)
        }
        files |= {f"{folder}{name}.png" for folder in ("", "a/", "a-b/") for name in parts}
        plant(tmp_path, *generator.sample(sorted(files), len(files)))
        assert names(open_source(tmp_path)) == sorted(files)

    @pytest.mark.parametrize("seed", range(20))
    def test_links_of_all_kinds_by_brute_force(self, tmp_path, seed):
        """Random trees with links to files, to folders, to other links, to what is not there, and of one file twice."""
        generator = random.Random(seed)
        folders = [
            tmp_path / place
            for place in ("root", "root/a", "root/a-b", "root/a/b", "out", "out/c", "out/c/d")
        ]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        there = []
        for i in range(40):
            path = (
                generator.choice(folders)
                / f"{generator.choice('abc')}{i}{generator.choice(['.png', '', '.txt'])}"
            )
            kind = generator.choice(["file", "file", "hard", "link", "link", "nothing"])
            some = [one for one in there if one.is_file()] if kind == "hard" else [*there, *folders]
            if kind == "nothing":
                path.symlink_to("nowhere")
            elif kind == "link" and some:
                path.symlink_to(generator.choice(some))
            elif kind == "hard" and some:
                os.link(os.path.realpath(generator.choice(some)), path)
            else:
                path.write_bytes(png(i) + b"\0" * i)
            there.append(path)
        plant(tmp_path / "root", "a/one.png")
        wanted, unusable = brute_force(str(tmp_path / "root"))
        source = open_source(tmp_path / "root")
        assert names(source) == wanted
        assert sorted(bad.name for bad in source.unusable) == sorted(unusable)
        facts = [os.stat(tmp_path / "root" / name) for name in wanted]
        assert source.sizes.tolist() == [one.st_size for one in facts]
        assert source.times.tolist() == [time_of(one) for one in facts]

    def test_symlinks_are_followed_and_counted_once(self, tmp_path):
        root = plant(tmp_path / "root", "z/real.png", "z/other.png")
        plant(tmp_path / "outside", "o.png", "deep/p.png")
        (root / "a_link").symlink_to(
            root / "z"
        )  # sorts before the real folder, and loses all the same
        (root / "a_file.png").symlink_to(root / "z/real.png")
        (root / "z/up").symlink_to(root)
        (root / "out").symlink_to(tmp_path / "outside")
        (root / "out2").symlink_to(tmp_path / "outside/deep")
        (root / "single.png").symlink_to(tmp_path / "outside/o.png")
        os.link(root / "z/real.png", root / "z/hard.png")
        source = open_source(root)
        assert names(source) == ["out/deep/p.png", "out/o.png", "z/hard.png", "z/other.png"]
        assert [bad.name for bad in source.unusable] == ["a_link", "out2", "z/up"]
        assert {bad.reason for bad in source.unusable} == {
            "symlink to a folder that is already counted"
        }

    def test_broken_symlinks(self, tmp_path):
        plant(tmp_path, "good.png")
        (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
        (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
        (tmp_path / "disk").symlink_to("/not/mounted")
        (tmp_path / "notes.md").symlink_to("/not/there")
        source = open_source(tmp_path)
        assert names(source) == ["good.png"]
        assert dict(source.unusable) == {
            "disk": "broken symlink: No such file or directory",
            "gone.jpg": "broken symlink: No such file or directory",
            "self.png": "broken symlink: Too many levels of symbolic links",
        }

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything"
    )
    def test_unreadable_folder(self, tmp_path):
        plant(tmp_path, "good.png", "locked/x.png")
        (tmp_path / "locked").chmod(0)
        source = open_source(tmp_path)
        (tmp_path / "locked").chmod(0o700)
        assert names(source) == ["good.png"]
        assert list(source.unusable) == [("locked", "unreadable folder: Permission denied")]

    def test_a_pipe_does_not_block(self, tmp_path):
        os.mkfifo(plant(tmp_path, "good.png") / "pipe.png")
        assert names(open_source(tmp_path)) == ["good.png"]

    def test_errors(self, tmp_path):
        with pytest.raises(
            UserError, match=r"no images in .*: 0 other files .*extensions looked for: .*\.jpg"
        ):
            open_source(tmp_path)
        plant(tmp_path, "a.txt", "b.txt", "c.json")
        with pytest.raises(UserError, match=r"3 other files \(2 \.txt, 1 \.json\)"):
            open_source(tmp_path)
        with pytest.raises(UserError, match="no such folder"):
            open_source(tmp_path / "nowhere")
        with pytest.raises(UserError, match="no such folder"):
            open_source(f"folder:{tmp_path}/nowhere")

    def test_fingerprint(self, tmp_path):
        one = open_source(plant(tmp_path, "a/1.png", "a/2.png")).fingerprint()
        (tmp_path / "a/2.png").write_bytes(png() + b"more")
        two = open_source(tmp_path).fingerprint()
        (tmp_path / "a/2.png").rename(tmp_path / "a/3.png")
        three = open_source(tmp_path).fingerprint()
        assert len({one, two, three}) == 3

    def test_a_folder_of_shards(self, tmp_path):
        pack(tmp_path / "train/s1.tar", {"x/2.png": png(2)})
        pack(tmp_path / "train/s0.tar", {"y/1.png": png(1)})
        source = open_source(tmp_path)
        assert names(source) == ["s0.tar/y/1.png", "s1.tar/x/2.png"]
        assert names(open_source(f"tar:{tmp_path}")) == names(source)


class TestList:
    def test_text(self, tmp_path):
        plant(tmp_path, "im/a b.png", "im/c.png", "im/d")
        absolute = tmp_path / "im/d"
        (tmp_path / "x.txt").write_text(
            f"# two\r\nim/c.png\r\n\r\n  im/a b.png \r\n{absolute}\r\nim/none.png\r\nim\r\n"
        )
        source = open_source(tmp_path / "x.txt")
        assert names(source) == ["im/c.png", "im/a b.png", str(absolute)]
        assert [bad.name for bad in source.unusable] == ["im/none.png", "im"]
        assert source.read(2) == absolute.read_bytes() and source.label(0) is None

    @pytest.mark.parametrize(
        "text, want",
        [
            ("id,filename,class\n7,a.png,cat\n8,b.png,\n", ["cat", None]),
            ("\ufeffPath,Label\na.png,cat\nb.png,dog\n", ["cat", "dog"]),
            ("a.png,cat\nb.png,dog\n", ["cat", "dog"]),
            ("a.png\nb.png\n", [None, None]),
            ("image\na.png\nb.png\n", [None, None]),
        ],
    )
    def test_csv(self, tmp_path, text, want):
        plant(tmp_path, "a.png", "b.png")
        (tmp_path / "x.csv").write_text(text, encoding="utf-8")
        source = open_source(tmp_path / "x.csv")
        assert names(source) == ["a.png", "b.png"] and labels(source) == want

    def test_errors(self, tmp_path):
        (tmp_path / "x.txt").write_text("gone.png\n")
        with pytest.raises(
            UserError, match=r"names no image that exists; the first of 1: 'gone.png'"
        ):
            open_source(tmp_path / "x.txt")
        (tmp_path / "x.csv").write_text("")
        with pytest.raises(UserError, match="names no image"):
            open_source(tmp_path / "x.csv")
        with pytest.raises(UserError, match="cannot read the list"):
            open_source(tmp_path / "none.txt")


class TestTar:
    def test_webdataset_labels(self, tmp_path):
        members = {
            "0001.jpg": png(1),
            "0001.cls": b"3\n",
            "0001.json": b"{}",
            "a/0002.cls": b"7",
            "a/0002.seg.PNG": png(2),
        }
        source = open_source(
            pack(tmp_path / "s.tar", {**members, "./t/c/3.png": png(3), "none.png": png(4)})
        )
        assert names(source) == [
            "s.tar/0001.jpg",
            "s.tar/a/0002.seg.PNG",
            "s.tar/t/c/3.png",
            "s.tar/none.png",
        ]
        assert labels(source) == ["3", "7", "c", None]
        assert [source.read(i) for i in range(4)] == [png(1), png(2), png(3), png(4)]

    def test_long_names_and_other_members(self, tmp_path):
        name = "é" * 80 + "/" + "x" * 150 + ".png"
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            with tarfile.open(tmp_path / "s.tar", "w", format=format) as tar:
                (tmp_path / "f.png").write_bytes(png(9))
                tar.add(tmp_path / "f.png", name)
                link = tarfile.TarInfo("link.png")
                link.type, link.linkname = tarfile.SYMTYPE, name
                tar.addfile(link)
            source = open_source(tmp_path / "s.tar")
            assert names(source) == [f"s.tar/{name}"] and source.read(0) == png(9)

    @pytest.mark.parametrize("spec", ["s-*.tar", "s-{00..02}.tar", "s-0[0-2].tar"])
    def test_many_shards(self, tmp_path, spec, monkeypatch):
        for i in range(3):
            pack(tmp_path / f"s-0{i}.tar", {f"{k}.png": png(10 * i + k) for k in range(4)})
        source = open_source(f"{tmp_path}/{spec}")
        monkeypatch.setattr(type(source), "most_open", 2)
        assert names(source) == [f"s-0{i}.tar/{k}.png" for i in range(3) for k in range(4)]
        for i in random.Random(0).sample(range(12), 12):
            assert source.read(i) == png(10 * (i // 4) + i % 4)

    def test_errors(self, tmp_path):
        pack(tmp_path / "z.tar", {"a.png": png()}, "w:gz")
        (tmp_path / "text.tar").write_text("this is no tar file" * 100)
        pack(tmp_path / "cut.tar", {"a.png": png(), "b.png": noise(40_000).tobytes()})
        with open(tmp_path / "cut.tar", "r+b") as file:
            file.truncate(20_000)
        pack(tmp_path / "none.tar", {"a.txt": b"x"})
        for name in ("z", "text", "cut"):
            with pytest.raises(UserError, match="not a whole, uncompressed tar file"):
                open_source(tmp_path / f"{name}.tar")
        with pytest.raises(UserError, match="no images in 1 tar file"):
            open_source(tmp_path / "none.tar")
        with pytest.raises(UserError, match="no tar file at"):
            open_source(f"{tmp_path}/q*.tar")
        pack(tmp_path / "s0.tar", {"a.png": png()})
        with pytest.raises(UserError, match=r"2 of the 3 tar files .* do not exist: .*s1\.tar"):
            open_source(f"{tmp_path}/s{{0..2}}.tar")

    def test_a_shard_that_shrinks(self, tmp_path):
        source = open_source(pack(tmp_path / "s.tar", {"a.png": png()}))
        os.truncate(tmp_path / "s.tar", 530)
        with pytest.raises(BadImage, match="shorter"):
            source.read(0)


class TestArray:
    @pytest.mark.parametrize(
        "shape, want",
        [
            ((5, 32, 40, 3), (32, 40, 3)),
            ((5, 3, 32, 40), (32, 40, 3)),
            ((5, 32, 40), (32, 40, 1)),
            ((5, 12, 64, 64), (64, 64, 12)),
            ((5, 64, 20, 1), (64, 20, 1)),
        ],
    )
    def test_layouts(self, tmp_path, shape, want):
        pixels = noise(*shape)
        np.save(tmp_path / "x.npy", pixels)
        source = open_source(tmp_path / "x.npy")
        assert (
            source.read(3).shape == want
            and source.channels == want[2]
            and source.name(3) == "x.npy[3]"
        )
        straight = pixels[3][..., None] if len(shape) == 3 else pixels[3]
        again = np.moveaxis(straight, 0, -1) if straight.shape != want else straight
        np.testing.assert_array_equal(source.read(3), again)

    def test_said_layout(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(5, 8, 8, 8))
        with pytest.raises(UserError, match=r"not clear; add \?layout=NHWC"):
            open_source(tmp_path / "x.npy")
        plain, moved = (
            open_source(f"{tmp_path}/x.npy?layout={layout}").read(1) for layout in ("NHWC", "NCHW")
        )
        np.testing.assert_array_equal(np.moveaxis(plain, 0, -1), moved)

    def test_the_right_array_of_many(self, tmp_path):
        some, more = noise(4, 20, 20, 3), noise(2, 20, 20, 3)
        np.savez_compressed(tmp_path / "a.npz", pictures=some, y=[1, 0, 1, 2], weights=np.zeros(4))
        source = open_source(tmp_path / "a.npz")
        np.testing.assert_array_equal(source.read(2), some[2])
        assert labels(source) == ["1", "0", "1", "2"]
        np.savez(tmp_path / "b.npz", x_train=some, y_train=[1, 0, 1, 2], x_test=more, y_test=[5, 6])
        assert labels(open_source(tmp_path / "b.npz")) == ["1", "0", "1", "2"]
        assert labels(open_source(f"{tmp_path}/b.npz?key=x_test")) == ["5", "6"]
        np.savez(
            tmp_path / "c.npz",
            train_images=some,
            train_labels=np.array([[1], [0], [1], [2]]),
            val_images=more,
        )
        assert labels(open_source(f"{tmp_path}/c.npz?key=train_images")) == ["1", "0", "1", "2"]
        assert labels(open_source(f"{tmp_path}/c.npz?key=val_images")) == [None, None]
        with pytest.raises(
            UserError,
            match=r"which of the arrays .* one of: train_images, train_labels, val_images",
        ):
            open_source(tmp_path / "c.npz")
        with pytest.raises(UserError, match="Did you mean val_images"):
            open_source(f"{tmp_path}/c.npz?key=val_image")
        with pytest.raises(UserError, match="Did you mean key"):
            open_source(f"{tmp_path}/c.npz?kye=val_images")

    def test_a_mapped_file_is_not_read_or_pickled_whole(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(100, 64, 64, 3))
        assert len(pickle.dumps(open_source(tmp_path / "x.npy"))) < 2000

    @pytest.mark.parametrize(
        "array, reason",
        [
            (np.zeros((4, 20, 20, 3), np.float32), "holds float32"),
            (np.zeros((20, 20, 3), np.uint8), "expected images as"),
            (np.zeros((4, 300), np.uint8), "expected images as"),
            (np.zeros((0, 20, 20, 3), np.uint8), "expected images as"),
            (np.array([{}, {}]), "cannot read the array"),
        ],
    )
    def test_errors(self, tmp_path, array, reason):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(UserError, match=reason):
            open_source(tmp_path / "x.npy")

    def test_damaged_files(self, tmp_path):
        np.save(tmp_path / "x.npy", noise(9, 20, 20, 3))
        os.truncate(tmp_path / "x.npy", 500)
        (tmp_path / "x.npz").write_bytes(b"PK\3\4 nonsense")
        for name in ("x.npy", "x.npz", "none.npy"):
            with pytest.raises(UserError, match="cannot read the array"):
                open_source(tmp_path / name)


class TestOthers:
    def test_digits(self):
        source = open_source("digits")
        assert source.name(17) == "digits[17]" and set(labels(source)) == set("0123456789")
        assert source.channels == 1 and source.read(0).shape == (32, 32, 1)
        assert 0 <= source.read(0).min() < 20 < 235 < source.read(0).max()

    def test_torchvision(self, tmp_path):
        source = open_source("torchvision:FakeData?size=3&image_size=3,20,24&num_classes=4")
        assert source.read(0).shape == (20, 24, 3) and set(labels(source)) <= set("0123")
        with pytest.raises(UserError, match="Did you mean CIFAR10"):
            open_source("torchvision:CIFAR01")
        with pytest.raises(UserError, match="download=true") as caught:
            open_source(f"torchvision:CIFAR10?root={tmp_path}&train=true")
        assert "\n" not in str(caught.value)
        plant(tmp_path / "set", "cat/1.png", "dog/2.png")
        assert labels(open_source(f"torchvision:ImageFolder?root={tmp_path}/set")) == ["cat", "dog"]

    def test_torchvision_classes_of_one_name_stay_different(self):
        class Birds:
            classes = (
                ("crane",),
                ("kite", "glede"),
                ("crane",),
                "owl",
            )  # tuples of synonyms, as ImageNet's
            targets = (0, 1, 2, 3, -1, 7)

            def __len__(self):
                return 6

            def __getitem__(self, i):
                return np.zeros((4, 4), np.uint8), self.targets[i]

        wanted = ["crane (0)", "kite, glede", "crane (2)", "owl", None, "7"]
        assert labels(TorchVision(Birds(), "Birds")) == wanted

    def test_hugging_face(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        source = open_source(f"hf:{saved_dataset(tmp_path / 'one', 3)}")
        assert (
            source.read(2) == png(2)
            and labels(source) == ["cat", "dog", "cat"]
            and source.name(1) == "one[1]"
        )
        both = datasets.DatasetDict(
            train=datasets.load_from_disk(str(tmp_path / "one")),
            test=datasets.load_from_disk(str(saved_dataset(tmp_path / "two", 2))),
        )
        both.save_to_disk(str(tmp_path / "both"))
        assert len(open_source(f"hf:{tmp_path}/both")) == 3
        assert len(open_source(f"hf:{tmp_path}/both?split=test&column=picture")) == 2
        with pytest.raises(UserError, match=r"one of: train, test\. Did you mean test"):
            open_source(f"hf:{tmp_path}/both?split=tests")
        plant(tmp_path / "files/train", "cat/1.png", "dog/2.png")
        loose = open_source(
            f"hf:{tmp_path}/files?split=train"
        )  # a folder of images, which `datasets` loads by itself
        assert (
            labels(loose) == ["cat", "dog"]
            and decode(loose.read(1)).shape == (7, 6, 3)
            and loose.fingerprint()
        )
        with pytest.raises(UserError, match="unknown image column"):
            open_source(f"hf:{tmp_path}/both?column=id")

    def test_what_is_no_source(self, tmp_path):
        (tmp_path / "x.docx").write_bytes(b"x")
        with pytest.raises(UserError, match="is no source"):
            open_source(tmp_path / "x.docx")
        with pytest.raises(UserError, match="Did you mean torchvision"):
            open_source("torchvison:CIFAR10")
        with pytest.raises(UserError, match="no such folder or file"):
            open_source("digit")
