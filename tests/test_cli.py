"""The command line: exit codes, and messages that say what is wrong, allowed and to do."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs_on_disk import make_photos
from PIL import Image

import torchmae
from torchmae import cli
from torchmae.verbs import VERBS

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = (
    "--model vit_micro --image-size 16 --patch-size 8 --decoder-dim 32 --decoder-depth 1 "
    "--workers 0 --device cpu"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good images, and with all that a user may point at by mistake."""
    place = tmp_path_factory.mktemp("cli")
    make_photos(place / "photos")
    for name in ("empty", "texts", "bad", "mixed", "others"):
        (place / name).mkdir()
    (place / "texts/readme.txt").write_text("hello")
    (place / "others/thesis.doc").write_text("mine")
    for i in range(25):
        (place / f"bad/{i:02d}.jpg").write_text("no image")
        (place / f"mixed/bad{i:02d}.jpg").write_text("no image")
        Image.new("RGB", (20, 20), (i, i, i)).save(place / f"mixed/good{i:02d}.png")
    (place / "file").write_text("a file")
    (place / "broken-run").mkdir()
    (place / "broken-run/config.json").write_text("{")
    return place


@pytest.fixture
def mae(place, capfd, monkeypatch):
    """Runs a command line inside the folder; gives the exit code, stdout and stderr."""

    def run(line):
        monkeypatch.chdir(place)
        shutil.rmtree(
            "runs", ignore_errors=True
        )  # the default --out, which a mistake must not fill
        code = cli.main(line.split())
        return code, *capfd.readouterr()

    return run


MISTAKES = {
    # what is typed: words of the message (regular expressions)
    "frobnicate": [
        "unknown verb 'frobnicate'",
        "check, plan, pretrain, finetune, refine, segment, detect, probe, knn, partial, compare, ",
    ],
    "pretran photos": ["Did you mean pretrain\\?"],
    "pretrain": ["DATA"],
    "pretrain photos --mask-rato 0.5": ["--mask-rato", "--mask-ratio"],
    "pretrain photos --epoch 3": ["--epoch\\b", "--epochs"],
    "pretrain photos --preset dem": ["unknown preset 'dem'", "Did you mean demo"],
    "pretrain photos --epochs a": ["--epochs", "'a'"],
    "pretrain photos --epochs": ["--epochs"],
    "pretrain photos --epochs 0": ["--epochs 0", "more than 0"],
    "pretrain photos --epochs nan": ["--epochs nan"],
    "pretrain photos --epochs inf": ["--epochs inf"],
    "pretrain photos --base-lr nan": ["--base-lr nan"],
    "pretrain photos --base-lr -1": ["--base-lr -1", "not be negative"],
    "pretrain photos --batch-size 0": ["--batch-size 0", "more than 0"],
    "pretrain photos --batch-size 25": ["--batch-size 25", "24 images", "at most 24"],
    "pretrain photos --mask-ratio 1.5": ["--mask-ratio 1.5", "below 1"],
    "pretrain photos --mask-ratio 0": ["--mask-ratio 0"],
    "pretrain photos --mask-ratio nan": ["--mask-ratio nan"],
    "pretrain photos --image-size 0x3": ["--image-size 0x3", "192x256"],
    "pretrain photos --image-size big": ["--image-size big", "224"],
    "pretrain photos --image-size 30 --patch-size 16": ["30", "16", "divisible"],
    "pretrain photos --model vit_bse": [
        "unknown model 'vit_bse'",
        "vit_micro",
        "Did you mean vit_base\\?",
    ],
    "pretrain photos --masking blok": ["unknown masking 'blok'", "random", "Did you mean block\\?"],
    "pretrain photos --target pixel": ["unknown target 'pixel'", "Did you mean pixels\\?"],
    "pretrain photos --loss-on al": ["unknown loss 'al'", "hidden, all"],
    "pretrain photos --normalize imgnet": ["--normalize imgnet", "data or imagenet"],
    "pretrain photos --precision half": ["--precision half", "fp32, bf16 or fp16"],
    "pretrain photos --crop-scale 1 0.2": ["--crop-scale", "smallest <= largest"],
    "pretrain photos --device gpu": ["device 'gpu'", "auto, cpu, cuda"],
    "pretrain photos --log-every 0": ["--log-every 0"],
    "pretrain nowhere": ["no such folder or file: 'nowhere'"],
    "pretrain hff:beans": ["unknown kind of source 'hff'", "hf"],
    "pretrain empty": ["no images", "empty"],
    "pretrain texts": ["no images", "texts"],
    "pretrain file": ["file"],
    "pretrain photos --out file": ["--out file is a file"],
    "pretrain photos --out file/run": ["--out file/run"],
    "pretrain photos --out others": ["others holds other things", "thesis.doc"],
    "pretrain bad --out bad-run": [
        "none of 25 images can be read",
        "bad00.jpg|00.jpg",
        "bad-files.jsonl",
    ],
    "pretrain mixed --out mixed-run": [
        "25 of 50 images cannot be read",
        "--max-bad-percent",
        "bad-files.jsonl",
    ],
    "reconstruct photos photos/1.jpg": ["photos is not a run folder", "mae pretrain"],
    "reconstruct nowhere photos/1.jpg": ["nowhere is not a run folder"],
    "reconstruct broken-run photos/1.jpg": ["config.json"],
    "knn photos photos": ["photos is not a run folder"],
    "knn nowhere photos --k 0": ["--k 0"],
    "embed photos photos": ["photos is not a run folder"],
    "embed broken-run photos --out f.npz": ["config.json"],
    "embed photos photos --out features.doc": ["doc", ".npz"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_exit_code_2_and_a_short_message(mae, place, line):
    folders = {name: sorted(os.listdir(place / name)) for name in ("photos", "others", "bad")}
    code, out, err = mae(line)
    assert code == 2, err
    assert err.startswith("mae: ") and "Traceback" not in out + err
    assert len(err.splitlines()) <= 6
    for word in MISTAKES[line]:
        assert re.search(word, err), f"{word!r} is not in: {err}"
    assert {name: sorted(os.listdir(place / name)) for name in folders} == folders, (
        "the user's folders were touched"
    )
    assert not list(place.glob("runs/*/config.json")), "a mistake left the beginning of a run"


def test_too_many_bad_files_stop_the_run_before_training_and_are_listed(mae, place):
    code, out, _ = mae(f"pretrain mixed --out listed {TINY}")
    assert code == 2 and "run folder" not in out, "training must not have begun"
    lines = [
        json.loads(line) for line in (place / "listed/bad-files.jsonl").read_text().splitlines()
    ]
    assert sorted(Path(line["file"]).name for line in lines) == [
        f"bad{i:02d}.jpg" for i in range(25)
    ]
    assert all(line["reason"] for line in lines)
    assert {p.name for p in (place / "listed").iterdir()} <= {"bad-files.jsonl", ".lock"}
    code, out, err = mae(f"pretrain mixed --out listed --epochs 1 --max-bad-percent 60 {TINY}")
    assert code == 0, err  # the folder may be used again
    assert "25 unreadable" in out and "25 files that could not be read" in out


ABSURD = {  # values that once were taken: gradients times 0, no log line ever, terabytes
    "--clip-grad 0": "at least 1e-06, such as 1; without clipping leave it out",
    "--clip-grad 1e-30": "at least 1e-06",
    "--clip-grad nan": "must be a finite number",
    "--save-minutes -1": "must not be negative",
    "--save-minutes 1e9": "must be at most 525600",
    "--minutes 1e9": "must be at most 525600",
    "--workers 100000": "must be at most 1024",
    "--log-every 1000000000": "must be at most 100000",
    "--registers 1000000": "must be at most 1024",
    "--patch-size 1000000": "must be at most 65536",
    "--decoder-dim 1000000": "must be at most 65536",
    "--decoder-depth 10000000": "must be at most 1000",
    "--decoder-heads 10000000": "must be at most 65536",
    "--batch-size 10000000": "must be at most 1048576",
    "--micro-batch-size 10000000": "must be at most 1048576",
    "--weight-decay 1e9": "must be at most 10",
    "--warmup-epochs 1e9": "must be at most 100000",
    "--max-megapixels 1e9": "must be at most 10000",
    "--max-bad-percent 101": "must be at most 100",
    "--channels 1000000": "must be at most 4096",
}


@pytest.mark.parametrize("flags", ABSURD)
def test_absurd_values_are_refused_before_anything_is_read(mae, flags):
    code, out, err = mae(f"pretrain photos --out absurd {flags}")
    assert code == 2, out + err
    assert f"mae: {flags.split()[0]} " in err and ABSURD[flags] in err
    assert not out


@pytest.fixture(scope="module")
def run(place):
    options = dict(
        model="vit_micro", image_size=16, patch_size=8, decoder_dim=32, decoder_depth=1, workers=0
    )
    return torchmae.pretrain(
        str(place / "photos"), out=str(place / "run"), epochs=1, device="cpu", **options
    )


LATER = {
    "reconstruct run": ["IMAGE... is missing"],
    "reconstruct run nowhere.png": ["cannot read nowhere.png"],
    "reconstruct run file": ["cannot read file"],
    "reconstruct run photos/1.jpg --out picture.gif": [".png or .jpg"],
    "reconstruct run photos/1.jpg --mask-ratio 1.5": ["1.5"],
    "reconstruct run photos/1.jpg --mask-ratio 0.99": ["at least one must be visible"],
    "reconstruct run photos/1.jpg --masking blok": ["Did you mean block"],
    "reconstruct run photos/1.jpg --mask nowhere.png": ["nowhere.png"],
    "look run": ["IMAGE... is missing"],
    "look run file": ["cannot read file"],
    "look run photos/1.jpg --patch 2 0": ["2 rows and", "so 0 to 1"],
    "search run photos --query file": ["cannot read file"],
    "search run empty --duplicates": ["no images"],
    "search run photos": ["--query IMAGE... or --duplicates"],
    "map run empty": ["no images"],
    "map run photos --method tsn": ["unknown method 'tsn'"],
    "knn run empty": ["no images"],
    "knn run photos --k 0": ["--k 0"],
    "knn run photos --val-fraction 2": ["--val-fraction 2"],
    "knn run bad": ["has no labels"],
    "embed run empty": ["no images"],
    "embed run bad --out f.npz": ["none of the 25 images can be read"],
    "embed run photos --layer 9": ["--layer 9", "1 to"],
    "embed run photos --pool max": ["unknown pool 'max'", "mean"],
    "embed run photos --batch-size 0": ["--batch-size 0"],
    "embed run photos --batch-size 100000000": ["must be at most 1048576"],
}


@pytest.mark.parametrize("line", LATER)
def test_a_mistake_with_a_good_run(mae, run, line):
    code, out, err = mae(line)
    assert code == 2, out + err
    assert err.startswith("mae: ") and "Traceback" not in out + err and len(err.splitlines()) <= 6
    for word in LATER[line]:
        assert re.search(word, err), f"{word!r} is not in: {err}"


def python_m(*arguments):
    command = [sys.executable, "-m", "torchmae", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENV)


def test_python_m_torchmae_and_the_version():
    done = python_m("--version")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"torchmae {torchmae.__version__}\n",
        "",
    )


def test_the_installed_command():
    mae = Path(sys.executable).with_name("mae")
    if not mae.exists():
        pytest.skip("torchmae is not installed beside this Python")
    done = subprocess.run([mae, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"torchmae {torchmae.__version__}\n")
    wrong = subprocess.run([mae, "pretran"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stdout == ""


def test_debug_shows_the_traceback_and_only_debug():
    done = python_m("pretrain", "nowhere", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr and "UserError" in done.stderr
    done = python_m("pretrain", "nowhere")
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_help(capfd):
    assert cli.main(["--help"]) == 0
    assert "usage: mae VERB" in capfd.readouterr().out
    assert cli.main([]) == 2
    assert "usage: mae VERB" in "".join(capfd.readouterr())


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_explains_each_flag(capfd, verb):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code in (0, None)
    out = capfd.readouterr().out
    assert f"usage: mae {verb}" in out
    assert "None" not in out, "defaults are in words"
