"""Folders and lists: which files are found, in which order, and what is said of the others."""

import os
import random

import pytest
from helpers.sources import labels, names, pack, plant, png

from torchmae.data.sources import open_source
from torchmae.data.sources.source import time_of
from torchmae.errors import UserError


def below(path: str, folders: set[int]) -> tuple[list[str], list[str]]:
    """Files and links below a new folder; folders that are entered are noted."""
    files, links = [], []
    for folder, inside, names_here in os.walk(path):
        folders.add(os.stat(folder).st_ino)
        paths = {one: os.path.join(folder, one) for one in inside}
        inside[:] = [
            n for n, p in paths.items() if os.path.islink(p) or os.stat(p).st_ino not in folders
        ]
        here = [os.path.join(folder, one) for one in [*inside, *names_here]]
        links += [path for path in here if os.path.islink(path)]
        files += [path for path in here if os.path.isfile(path) and not os.path.islink(path)]
    return files, links


def brute_force(root: str) -> tuple[list[str], list[str]]:
    """The .png files below a folder, and what cannot be followed, round by round as in `walk`."""
    found, unusable = [], []
    folders: set[int] = set()
    seen: set[int] = set()
    links = [""]
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
                files, more = below(path, folders)
                here += [os.path.relpath(file, root) for file in files]
                further += [os.path.relpath(one, root) for one in more]
        for name in sorted(here):
            inode = os.stat(os.path.join(root, name)).st_ino
            if name.endswith(".png") and inode not in seen:
                seen.add(inode)
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
        """Random trees with links to files, folders, links and nothing, and hard links."""
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


class TestGlob:
    def test_names_are_below_the_folder_before_the_first_wildcard(self, tmp_path):
        plant(tmp_path, "s/a/1.png", "s/a/2.jpg", "s/b/3.png", "s/b/deep/4.png", "other/5.png")
        for pattern, want in [
            ("s/*/*.png", ["a/1.png", "b/3.png"]),
            ("s/**/*.png", ["a/1.png", "b/3.png", "b/deep/4.png"]),
            ("s/**", ["a/1.png", "a/2.jpg", "b/3.png", "b/deep/4.png"]),
            ("s/*", ["a/1.png", "a/2.jpg", "b/3.png", "b/deep/4.png"]),
            ("s/[b]/?.png", ["b/3.png"]),
            ("*/5.png", ["other/5.png"]),
        ]:
            source = open_source(f"{tmp_path}/{pattern}")
            assert names(source) == want, pattern
        assert labels(open_source(f"{tmp_path}/s/*/*.png")) == ["a", "b"]

    def test_it_is_the_folder_where_it_matches_everything(self, tmp_path):
        plant(tmp_path / "s", "a/1.png", "b/2.png")
        pattern, folder = open_source(f"{tmp_path}/s/**"), open_source(tmp_path / "s")
        assert pattern.fingerprint() == folder.fingerprint()

    def test_a_folder_with_a_wildcard_in_its_name_is_that_folder(self, tmp_path):
        plant(tmp_path / "holiday [2021] *", "1.png")
        assert names(open_source(tmp_path / "holiday [2021] *")) == ["1.png"]

    def test_pictures_of_runs_are_not_taken(self, tmp_path, monkeypatch):
        plant(tmp_path, "a/1.png", "runs/x/pictures/step-1.png", "runs/x/curves.png")
        (tmp_path / "runs/x/config.json").write_text('{"torchmae": "0.1.0"}')
        monkeypatch.chdir(tmp_path)
        assert names(open_source("**/*.png")) == ["a/1.png"]

    def test_mistakes(self, tmp_path):
        plant(tmp_path, "a/1.png", "a/notes.doc")
        with pytest.raises(UserError, match=r"no image matches .*\.jpg' \(and no other file\)"):
            open_source(f"{tmp_path}/a/*.jpg")
        with pytest.raises(UserError, match=r"no image matches .*\.doc' \(1 \.doc\)"):
            open_source(f"{tmp_path}/a/*.doc")
