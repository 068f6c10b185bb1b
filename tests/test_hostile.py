"""Names and files that somebody else made, to be shown or to be read: nothing obeys them."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchmae import cli
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
