"""Plausible mistakes: what the message must say, and that what it suggests really works."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.runs_on_disk import make_photos
from helpers.sources import grey12, plant
from PIL import Image

from torchmae import cli

TINY = (
    "--model vit_micro --image-size 16 --patch-size 8 --decoder-dim 32 --decoder-depth 1 "
    "--workers 0 --device cpu --epochs 1"
)
TUNE = "--workers 0 --device cpu --epochs 1"


class Mistake(NamedTuple):
    """A command, words of its message (regular expressions), and the command that it suggests."""

    line: str
    words: list[str]
    fix: str | None = None


MISTAKES = [
    Mistake(
        "pretrain labelled --exclude '*_msk*'",
        ["'\\*_msk\\*' matches none of the 24 images", "in quotes"],
        f"pretrain labelled --exclude '*_mask*' {TINY}",
    ),
    Mistake(
        "pretrain labelled --exclude mask",
        ["'\\*mask\\*' matches 12"],
        f"pretrain labelled --exclude '*mask*' {TINY}",
    ),
    Mistake(
        "pretrain --exclude '*_mask*' labelled",
        ["DATA is missing", "put DATA before --exclude"],
        f"pretrain labelled --exclude '*_mask*' {TINY}",
    ),
    Mistake("pretrain bands.npy --exclude '*_mask*'", ["numbers, no names", "leave it out"]),
    Mistake(
        "pretrain photos \u2013epochs 3",
        ["EN DASH", "type --epochs"],
        f"pretrain photos --epochs 1 {TINY}",
    ),
    Mistake("pretrain photos \u2014epochs=3", ["EM DASH", "type --epochs=3"]),
    Mistake(
        "pretrain \u201cphotos\u201d",
        ["typographic quotes", "straight ones, 'photos'"],
        f"pretrain 'photos' {TINY}",
    ),
    Mistake("pretrain photos -epochs 3", ["Did you mean --epochs\\?"]),
    Mistake(
        "pretrain photos/1.jpg photos/3.jpg photos/5.jpg",
        ["in quotes: 'photos/\\*\\.jpg'"],
        f"pretrain 'photos/*.jpg' {TINY}",
    ),
    Mistake(
        "pretrain 'photos/*.jpeg'",
        ["no image matches 'photos/\\*\\.jpeg'"],
        f"pretrain 'photos/*.jpg' {TINY}",
    ),
    Mistake("pretrain photo", ["Did you mean photos\\?"], f"pretrain photos {TINY}"),
    Mistake("pretrain photos.zip", ["unzip it first"]),
    Mistake("pretrain table.xlsx", ["save the table as .csv"]),
    Mistake("pretrain photos/1.jpg", ["one image: name its folder"], f"pretrain photos {TINY}"),
    Mistake(
        "pretrain photos --lr 1e-3",
        ["Did you mean --base-lr\\?"],
        f"pretrain photos --base-lr 1e-3 {TINY}",
    ),
    Mistake(
        "pretrain photos --num_workers 0",
        ["Did you mean --workers\\?"],
        f"pretrain photos --workers 0 {TINY}",
    ),
    Mistake("pretrain photos --gpus 1", ["Did you mean --device cuda\\?"]),
    Mistake("pretrain photos --resume", ["resumed by the same command"]),
    Mistake(
        "pretrain photos --batch-size 1000",
        ["at most 24"],
        f"pretrain photos --batch-size 24 {TINY}",
    ),
    Mistake(
        "pretrain photos --out photos/run",
        ["--out ../runs/photos"],
        f"pretrain photos --out ../runs/photos {TINY}",
    ),
    Mistake("pretrain run", ["--from run"], f"pretrain photos --from run {TINY}"),
    Mistake("train photos", ["Did you mean pretrain\\?"], f"pretrain photos {TINY}"),
    Mistake(
        "finetune labelled run", ["labelled is not a run folder"], f"finetune run labelled {TUNE}"
    ),
    Mistake(
        "finetune run labelled --out run",
        ["made by mae pretrain.*choose another --out"],
        f"finetune run labelled --out tuned {TUNE}",
    ),
    Mistake(
        "embed run grey12",
        ["the images have uint16 pixels, uint8 is expected", "--from"],
        "pretrain grey12 --from run --out grey-run --epochs 1 --workers 0 --device cpu",
    ),
    Mistake(
        "embed run photos --out features",
        [".npz, .csv, .parquet"],
        "embed run photos --out features.npz --device cpu",
    ),
    Mistake(
        "reconstruct bands-run photos/1.jpg",
        ["have 3 channels, which cannot become 5"],
        "reconstruct bands-run bands.npy --device cpu",
    ),
    Mistake(
        "reconstruct run photos",
        ["photos is a folder", "photos/\\*.jpg"],
        "reconstruct run 'photos/*.jpg' --device cpu",
    ),
    Mistake("export run --to tensorrt --out x", ["--to onnx", "trtexec --onnx="]),
    Mistake(
        "export run --to pth --out x",
        ["--to safetensors"],
        "export run --to safetensors --out weights",
    ),
    Mistake(
        "knn run coco",
        ["train2017, val2017", "coco/train2017 --val coco/val2017"],
        "knn run coco/train2017 --val coco/val2017 --device cpu",
    ),
    Mistake(
        "knn run captions.csv",
        ["12 different values in 12 images", "--label-column", "kind"],
        "knn run captions.csv --label-column kind --device cpu",
    ),
    Mistake(
        "knn run columns.csv",
        ["--label-column names", "picture, finding, patient"],
        "knn run columns.csv --label-column finding --device cpu",
    ),
    Mistake(
        "knn run columns.csv --label-column findings",
        ["no column 'findings'", "picture, finding, patient"],
        "knn run columns.csv --label-column finding --device cpu",
    ),
    Mistake(
        "knn run labelled --label-column kind",
        ["--label-column is for tables"],
        "knn run labelled --device cpu",
    ),
    Mistake("knn run single", ["every class has only one image", "--val"]),
    Mistake(
        "finetune run columns.csv --label-column finding --group-column patient --val columns2.csv",
        ["12 of 12 groups", "leave --val out"],
        f"finetune run columns.csv --label-column finding --group-column patient {TUNE}",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the commands name."""
    place = tmp_path_factory.mktemp("mistakes") / "here"
    make_photos(place / "photos")
    for kind in ("benign", "malign"):
        plant(
            place / "labelled" / kind, *(f"{i}{end}.png" for i in range(6) for end in ("", "_mask"))
        )
        for part in ("train2017", "val2017"):
            plant(place / "coco" / part / kind, *(f"{i}.png" for i in range(6)))
    plant(place / "single", *(f"{i}/only.png" for i in range(6)))
    grey12(place / "grey12")
    for name in ("photos.zip", "table.xlsx"):
        (place / name).write_bytes(b"PK")
    files = [f"labelled/{kind}/{i}.png" for kind in ("benign", "malign") for i in range(6)]
    rows = [f"{f},A {i} at the window,{f.split('/')[1]}" for i, f in enumerate(files)]
    (place / "captions.csv").write_text("\n".join(["path,label,kind", *rows]))
    rows = [f"{f};{f.split('/')[1]};p{i}" for i, f in enumerate(files)]
    for name in ("columns.csv", "columns2.csv"):
        (place / name).write_text("\n".join(["picture;finding;patient", *rows]))
    bands = np.random.default_rng(0).integers(0, 256, (12, 24, 24, 5), dtype=np.uint8)
    np.save(place / "bands.npy", bands)
    np.save(place / "one-image.npy", bands[0])
    np.save(place / "one-image-first.npy", bands[0].transpose(2, 0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for data, run in (("photos", "run"), ("bands.npy", "bands-run")):
            assert cli.main(f"pretrain {data} --out {run} {TINY}".split()) == 0
    return place


@pytest.fixture
def mae(place, capfd, monkeypatch):
    """Runs a command line inside the folder; gives the exit code, stdout and stderr."""

    def run(line):
        monkeypatch.chdir(place)
        code = cli.main(shlex.split(line))
        for made in ("runs", "../runs", "run-finetune", "tuned", "weights"):
            shutil.rmtree(made, ignore_errors=True)
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.line)
def test_a_mistake_has_a_message_whose_advice_works(mae, mistake):
    code, out, err = mae(mistake.line)
    assert code == 2 and err.startswith("mae: ") and "Traceback" not in out + err, out + err
    assert len(err.splitlines()) <= 6
    for word in mistake.words:
        assert re.search(word, err), f"{word!r} is not in: {err}"
    if mistake.fix is not None:
        code, out, err = mae(mistake.fix)
        assert code == 0, f"{mistake.fix}: {out}{err}"


def test_a_device_that_is_not_there_is_not_suggested(mae):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, _, err = mae(f"pretrain photos {TINY.replace('--device cpu', '--device cuda')}")
    assert code == 2 and "device 'cuda' is not there" in err
    assert "use auto, cpu, cuda" not in err and "--device cpu" in err
    assert re.search("built without CUDA: install|finds no GPU: nvidia-smi", err)
    code, _, err = mae("pretrain photos --device gpu")
    assert code == 2 and "cuda is the GPU" in err


def test_far_names_are_not_suggested(mae):
    for line in ("export run --to tensorrt --out x", "pretrain photos --target semantic"):
        code, _, err = mae(line)
        assert code == 2 and "Did you mean" not in err


def test_an_image_size_with_unusual_patches_says_so_in_the_plan(mae):
    short = TINY.replace("--patch-size 8 ", "").replace("--image-size 16", "--image-size 30")
    code, out, err = mae(f"pretrain photos {short}")
    assert code == 0, err
    assert re.search(r"patch size +3 +unusual: 30 px .* patches of 4 px; --image-size 32 can", out)
    code, out, _ = mae(f"pretrain photos {short.replace('30', '32')}")
    assert code == 0 and "unusual" not in out and re.search(r"patch size +4 ", out)


@pytest.mark.parametrize("array", ["bands.npy", "one-image.npy", "one-image-first.npy"])
def test_reconstruct_takes_arrays_with_the_run_s_channels(mae, place, array):
    code, out, err = mae(f"reconstruct bands-run {array} --out bands.png --device cpu")
    count = 8 if array == "bands.npy" else 1
    assert code == 0 and ("8 images" if count == 8 else "1 image;") in out, out + err
    assert ("the first 8 of 12 images" in out) == (count == 8)
    with Image.open(place / "bands.png") as picture:
        assert picture.width > 100 * count
    if array != "one-image-first.npy":  # which could as well be 5 grey images
        code, _, err = mae(f"reconstruct run {array} --device cpu")
        assert code == 2 and "5 channels" in err


def test_what_a_run_was_given_is_stored(mae, place):
    assert mae(f"pretrain labelled --exclude '*_mask*' --out kept {TINY}")[0] == 0
    stored = json.loads(Path(place / "kept/config.json").read_text())["config"]
    assert stored["exclude"] == ["*_mask*"] and stored["include"] == []
