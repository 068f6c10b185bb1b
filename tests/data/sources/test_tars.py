"""Plain tar files, one or many, with WebDataset's labels."""

import os
import random
import tarfile

import pytest
from helpers.sources import labels, names, noise, pack, png

from torchmae.data.decode import BadImage
from torchmae.data.sources import open_source
from torchmae.errors import UserError


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
