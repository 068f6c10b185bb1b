"""mae check finds what was planted, and counts it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.looks import smooth
from helpers.small import SMALL
from PIL import Image

import torchmae
from torchmae import cli
from torchmae.errors import UserError

HOSTILE = "x'\"><img src=x onerror=alert(1)>&amp;"


def save(path: Path, pixels: np.ndarray, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """20 training and 6 validation images; 2 exact copies and 1 smaller one in train; 1 exact and
    2 nearly equal ones across; 2 blank, 1 dark, 1 white, 2 damaged."""
    root = tmp_path / "set"
    for i in range(20):
        save(root / "train" / "ab"[i % 2] / f"{i}.png", smooth(i))
    for i in range(6):
        save(root / "val" / "ab"[i % 2] / f"{i}.png", smooth(100 + i))
    save(root / "train" / "a" / "copy.png", smooth(0))
    save(root / "train" / "b" / f"{HOSTILE}.bmp", smooth(0))
    save(root / "train" / "a" / "small.png", smooth(1, 60, 45))
    save(root / "val" / "a" / "leak.png", smooth(2))
    save(root / "val" / "a" / "leak.jpg", smooth(3), quality=60)
    save(root / "val" / "b" / "leak-small.png", smooth(4, 80, 60))
    for i in range(2):
        save(root / "train" / "a" / f"blank{i}.png", np.full((30, 30, 3), 90 * i, np.uint8))
    square = np.zeros((40, 40, 3), np.uint8)
    square[:20, :20] = smooth(50, 20, 20)
    save(root / "train" / "a" / "dark.png", square)
    save(root / "train" / "a" / "white.png", 255 - square[::-1])
    whole = (root / "train" / "a" / "0.png").read_bytes()
    (root / "train" / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "a" / "text.jpg").write_text("no image")
    return root


def test_what_was_planted_is_found(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    found = torchmae.check(planted, out=page)
    counts = {name: value for name, value in found.items() if isinstance(value, int)}
    wanted = dict(images=38, bad=2, exact_duplicates=3, near_duplicates=3, leaks=3, blank=2)
    wanted |= dict(lookalikes=0, dark=1, bright=1, kept=28)
    assert {name: counts[name] for name in wanted} == wanted
    out = capsys.readouterr().out
    assert "! LEAKAGE: 3 of 9 images of val are copies of images of train (1 with the" in out
    assert "train 29, val 9" in out
    text = page.read_text()
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert HOSTILE not in text and "&lt;img src=x onerror" in text
    assert "truncated PNG" in text and "not an image" in text
    assert len(text) < 1_000_000


def test_the_list_is_pretrained_on(planted: Path, tmp_path: Path) -> None:
    keep = tmp_path / "clean.txt"
    found = torchmae.check(planted, out=tmp_path / "p.html", write_list=keep)
    names = keep.read_text().splitlines()
    assert len(names) == found["kept"] == 28
    assert "set/val/a/leak.png" in names  # what is trained on gives way
    assert not {"set/train/a/2.png", "set/train/a/cut.png", "set/train/a/blank0.png"} & set(names)
    again = torchmae.check(keep, out=tmp_path / "q.html")
    clean = ("bad", "exact_duplicates", "near_duplicates", "leaks", "blank")
    assert {name: again[name] for name in clean} == dict.fromkeys(clean, 0)
    run = torchmae.pretrain(keep, out=tmp_path / "run", epochs=1, **SMALL)
    assert (run / "model.safetensors").is_file()
    torchmae.check(planted, out=tmp_path / "p.html", write_list=tmp_path / "clean.csv")
    rows = (tmp_path / "clean.csv").read_text().splitlines()
    assert rows[0] == "path,label" and "set/val/a/leak.png,a" in rows


def test_another_set_to_validate_on(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / "one" / f"{i}.png", smooth(i))
        save(tmp_path / "other" / f"{i}.png", smooth(3 + i))
    found = torchmae.check(tmp_path / "one", val=tmp_path / "other", out=tmp_path / "p.html")
    assert (found["leaks"], found["exact_duplicates"]) == (2, 2)
    assert "LEAKAGE: 2 of 5 images of val are copies of images of" in found["findings"][0]
    for i in range(4):
        (tmp_path / "other" / f"{i}.png").rename(tmp_path / "other" / f"{i}_mask.png")
        (tmp_path / "one" / f"{i}.png").unlink()
    found = torchmae.check(tmp_path / "one", val=tmp_path / "other", out=tmp_path / "p.html")
    assert "LEAKAGE: 1 of 5 images of val is a copy of an image of" in found["findings"][0]
    assert [one[:5] for one in found["findings"] if "_mask" in one and "names" in one] == ["val: "]
    with pytest.raises(UserError, match="--val .*other lies inside DATA"):
        torchmae.check(tmp_path, val=tmp_path / "other", out=tmp_path / "p.html")


def test_patterns_say_what_they_leave_out(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = torchmae.check(planted, out=tmp_path / "p.html", exclude="val/*")
    assert (found["images"], found["leaks"]) == (29, 0)
    assert "9 of 38 images left out by --exclude 'val/*'" in capsys.readouterr().out
    assert "9 of 38 images left out" in (tmp_path / "p.html").read_text()


def test_arrays_and_nothing_suspicious(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.stack([smooth(i) for i in range(6)]))
    found = torchmae.check(tmp_path / "x.npy", out=tmp_path / "p.html")
    assert found["findings"] == [] and found["kept"] == 6
    assert "nothing suspicious was found" in capsys.readouterr().out


def test_mistakes_are_a_line(
    planted: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no")
    np.save(tmp_path / "x.npy", smooth(0)[None])
    place = str(tmp_path / "p.html")
    for words, message in {
        (str(tmp_path / "empty"), "--out", place): "no images in",
        (str(tmp_path / "bad"), "--out", place): "none of the 1 images of",
        (str(run), "--out", place): "is a run folder, not images",
        (str(planted), "--out", "page.pdf"): "name a file that ends in .html",
        (str(planted), "--out", str(tmp_path / "no" / "p.html")): "there is no such folder",
        (str(planted), "--out", place, "--write-list", "a.json"): "the name of a .txt",
        (str(tmp_path / "x.npy"), "--out", place, "--write-list", "a.txt"): "images in files",
    }.items():
        assert cli.main(["check", *words]) == 2, words
        err = capfd.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert not Path(place).exists()


def test_names_that_a_list_could_not_hold(tmp_path: Path) -> None:
    names = ["# 1.png", " 2.png", "line\nbreak.png", "ümlaut;,.png"]
    for i, name in enumerate(names):
        save(tmp_path / name, smooth(i))
    torchmae.check(tmp_path, out=tmp_path / "p.html", write_list=tmp_path / "c.txt")
    again = torchmae.check(tmp_path / "c.txt", out=tmp_path / "p.html")
    assert (again["images"], again["bad"]) == (3, 0)
    shutil.rmtree(tmp_path)


def test_the_features_of_a_run_know_copies_that_the_hash_does_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A smaller copy, and one without 6 % of each side, which are 2 hashes; no other pair."""
    for i in range(30):
        save(tmp_path / "set" / f"{i}.png", smooth(i))
    save(tmp_path / "set" / "small.png", smooth(1, 60, 45))
    save(tmp_path / "set" / "cut.png", smooth(2)[5:-5, 7:-7])
    save(tmp_path / "set" / "blank.png", np.full((30, 30, 3), 9, np.uint8))
    page = tmp_path / "p.html"
    plain = torchmae.check(tmp_path / "set", out=page)
    assert plain["near_duplicates"] == 1
    found = torchmae.check(tmp_path / "set", run=run, out=page, device="cpu")
    assert found["near_duplicates"] == 2
    groups = [line for line in found["findings"] if "near-duplicates (they" in line]
    assert "2 groups" in groups[0]
    assert f"by the features of {run}" in found["findings"][-1]
    assert "of 64 planted copies reach" in capsys.readouterr().out
    with pytest.raises(torchmae.UserError, match="is not a run folder"):
        torchmae.check(tmp_path / "set", run=tmp_path, out=page)


def test_names_of_bands_and_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile = pytest.importorskip("tifffile", reason="an extra")
    names = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{band}</Item>'
        for i, band in enumerate(["B02", "B03", "B04", "B08", "B<script>"])
    ).replace("<script>", "&lt;script&gt;")
    tags = [(42112, "s", 0, f"<GDALMetadata>{names}</GDALMetadata>", True)]
    tags += [(42113, "s", 0, "-9999", True)]
    for i in range(4):
        pixels = np.random.default_rng(i).normal(0, 9, (40, 40, 5)).astype(np.float32)
        pixels[:8] = -9999 if i < 2 else 1
        options = dict(photometric="minisblack", planarconfig="contig", extratags=tags)
        tifffile.imwrite(tmp_path / f"{i}.tif", pixels, **options)
    found = torchmae.check(tmp_path, out=tmp_path / "p.html")
    assert any("no-data: 10.0% of the values, in 2 of 4 images" in one for one in found["findings"])
    out, page = capsys.readouterr().out, (tmp_path / "p.html").read_text()
    assert "5 channels of 32 bits (B02, B03, B04, B08, B<script>), no-data -9999" in out
    assert "(B02, B03, B04, B08, B&lt;script&gt;), no-data -9999" in page
