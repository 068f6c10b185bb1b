"""Names and files that somebody else made, to be shown or to be read: nothing obeys them."""

import csv
import hashlib
import io
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import pack_shards, png
from PIL import Image
from safetensors.numpy import load, save

from torchmae import cli
from torchmae.data.sources.packed import ARRAYS
from torchmae.errors import printable

CLASSES = (
    "\x1b[2J\x1b]0;owned\x07screen",
    "line\nmae: failed: forged",
    "=HYPERLINK(1)",
    "<script>alert(1)",
    "`code` | **bold** [link](x) # head",
    "\u202egnp.exe\u2066",
    "$\\frac{1",
    "@SUM(1)",
)
FILES = ("=cmd|x.png", "+1.png", "-1.png", "@a.png", "\ttab.png", "\rreturn.png", "new\nline.png")
SETTINGS = "--model vit_micro --image-size 16 --patch-size 8 --batch-size 8 --epochs 1 --workers 0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder with hostile names, a flat one, and a broken image of such a name."""
    place = tmp_path_factory.mktemp("hostile")
    draw = np.random.default_rng(0)
    images = [place / "set" / name / f"{i}.png" for name in CLASSES for i in range(3)]
    for path in [*images, *(place / "flat" / name for name in FILES)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 20, 3), np.uint8)).save(path)
    for name in (f"set/{CLASSES[0]}/\x1b[31mred\nmae: failed: forged.png", "flat/\x1b[1m\nx.png"):
        (place / name).write_bytes(b"no image")
    return place


def test_names_are_shown_and_not_obeyed(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    lines = [
        f"pretrain set --out pre --decoder-dim 32 --decoder-depth 1 {SETTINGS}",
        f"finetune none set --out tuned {SETTINGS}",
        "evaluate tuned set",
        "predict tuned flat --out p.csv",
        "predict tuned set --out q.csv",
        "embed tuned flat --out f.csv",
        "knn pre set -k 1",
        "probe pre set --fast",
        "export tuned --to safetensors --out exported",
        "pack set --out packed --size 16",
        "finetune none set --labels-per-class 99 --out few",
    ]
    for line in lines:
        words = line.replace("-k 1", "--k 1").split()
        code = cli.main(
            [*words, *(["--device", "cpu"] if words[0] not in ("export", "pack") else [])]
        )
        text = "".join(capfd.readouterr())
        assert code == (2 if "99" in line else 0), (line, text)
        shown = re.sub(r"[\r█▏▎▍▌▋▊▉]", "", text).splitlines()
        assert all(printable(one) == one for one in shown), line
        assert not any(one.startswith("mae: failed") for one in shown), line
        assert "\\x1b[31mred\\nmae" in text or words[0] != "evaluate", line
    card = (place / "exported/README.md").read_text()
    assert printable(card, keep="\n") == card and "<script>" not in card
    assert "&lt;script&gt;alert(1)" in card and "\\`code\\` \\| \\*\\*bold" in card
    heads = [line for line in card.splitlines() if line.startswith("#")]
    assert len(heads) == len(set(heads)) and not any("head" in line for line in heads)


def test_no_cell_is_a_formula(place, monkeypatch):
    monkeypatch.chdir(place)
    for name in ("p.csv", "q.csv", "f.csv"):
        with (place / name).open(newline="") as file:
            header, *rows = csv.reader(file)
        cells = [*header, *(cell for row in rows for cell in row)]
        texts = [cell for cell in cells if not re.fullmatch(r"-?[\d.]+(e-?\d+)?|nan", cell)]
        assert not [cell for cell in texts if cell.startswith(tuple("=+-@\t\r\n"))], name
        assert name == "q.csv" or "'=cmd|x.png" in cells
    assert any("-" in cell[:1] for row in rows for cell in row[1:])  # numbers are as they are


def described(change):
    """A run whose config.json was changed."""

    def make(run: Path, out: Path) -> list[object]:
        shutil.copytree(run, out)
        config = json.loads((out / "config.json").read_text())
        change(config)
        (out / "config.json").write_text(json.dumps(config))
        for manifest in out.glob("manifest*.json"):  # as if the author had written that too
            manifest.unlink()
        return ["embed", out, "photos", "--out", "f.npz"]

    return make


def encoder(**values):
    return described(lambda config: config["model"]["encoder"].update(values))


def written(name: str, data: bytes, *words: object):
    def make(run: Path, out: Path) -> list[object]:
        out.mkdir()
        (out / name).write_bytes(data)
        return [word if word != "FILE" else out / name for word in words]

    return make


def replaced(name: str, *words: object):
    """A run in which a folder stands for a file."""

    def make(run: Path, out: Path) -> list[object]:
        shutil.copytree(run, out)
        if (out / name).is_dir():
            shutil.rmtree(out / name)
            (out / name).write_text("no folder")
        else:
            (out / name).unlink(missing_ok=True)
            (out / name).mkdir()
        return [word if word != "RUN" else out for word in words]

    return make


def shard_99(run: Path, out: Path) -> list[object]:
    """A packed set whose index, with a right sum, names a shard that is not there."""
    pack_shards(out, {f"c/{i}.png": png(i) for i in range(6)})
    arrays = {name: array.copy() for name, array in load((out / ARRAYS).read_bytes()).items()}
    arrays["places"][2, 0] = 99
    (out / ARRAYS).write_bytes(save(arrays))
    header = json.loads((out / "index.json").read_text())
    header["index_sha256"] = hashlib.sha256((out / ARRAYS).read_bytes()).hexdigest()
    (out / "index.json").write_text(json.dumps(header))
    return ["pretrain", out, "--out", "never"]


def archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


DEEP = b"[" * 200_000
METADATA = json.dumps({"__metadata__": {"torchmae": '{"encoder": 5}'}}).encode()
PRETRAIN = ("pretrain", "FILE", "--out", "never")
RESUME = ("pretrain", "photos", "--out", "RUN", "--epochs", "9")
IMPORT = ("import", "FILE", "--out", "never")
# What somebody made, to what is said of it; each once ended in "failed: ...", or not at all.
DAMAGED = {
    "no heads": (encoder(num_heads=0), "num_heads 0 of a model"),
    "deep": (encoder(depth=10**7), "depth 10000000 of a model: at most 1000"),
    "wide": (encoder(embed_dim=10**9), "embed_dim 1000000000"),
    "registers": (encoder(registers=10**12), "registers 1000000000000"),
    "large": (encoder(image_size=[999992, 999992]), "patches: use at most"),
    "mlp": (encoder(mlp_ratio="a"), "mlp_ratio 'a'"),
    "settings": (described(lambda c: c.update(config=[1])), "does not describe a torchmae model"),
    "crop": (described(lambda c: c["config"].update(crop_pct="x")), "crop_pct 'x' is no number"),
    "plugin": (described(lambda c: c["config"].update(plugin=[[1]])), "plugin: names are needed"),
    "nested": (
        written("config.json", DEEP, "embed", "made", "photos"),
        "does not describe a torchmae model (ValueError: nested too deeply)",
    ),
    "metadata": (
        written("m.safetensors", len(METADATA).to_bytes(8, "little") + METADATA, *IMPORT),
        "does not fit together",
    ),
    "zip": (written("z.npy", archive(images=np.zeros((9, 32, 40, 3), np.uint8)), *PRETRAIN), "zip"),
    "shard 99": (shard_99, "it names shard 99 of 2"),
    "image size": (
        lambda run, out: ["pretrain", "photos", "--out", "never", "--image-size", "999992"],
        "--image-size",
    ),
    "lock": (replaced(".lock", *RESUME), ".lock cannot be opened"),
    "state": (replaced("state", *RESUME), "state cannot be written"),
    "results": (replaced("results.json", "knn", "RUN", "photos"), "is not a file of results"),
    "shards": (lambda run, out: ["pretrain", "s-{0..999999999}.tar"], "1,000,000,000 tar files"),
    "endless": (lambda run, out: ["reconstruct", run, "/dev/zero"], "not a regular file"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_said_in_a_sentence(run, photos, tmp_path, monkeypatch, capfd, kind):
    make, words = DAMAGED[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    line = [str(word) for word in make(run, tmp_path / "made")]
    began = time.monotonic()
    code = cli.main([*line, *(["--device", "cpu"] if line[0] != "import" else [])])
    text = capfd.readouterr().err
    assert (code, "failed:" in text) == (2, False), text
    assert words in text or kind in ("zip", "image size"), text
    assert time.monotonic() - began < 20  # two orders below what it took, also on a busy machine
    assert not (tmp_path / "never/model.safetensors").exists()
