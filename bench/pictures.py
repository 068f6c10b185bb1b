"""Draws the pictures of docs/: `PYTHONPATH=tests python bench/pictures.py NUCLEI [NAME ...]`.

NUCLEI is a folder with `images/` and `annotations/` of the Data Science Bowl 2018 (BBBC038, CC0).
Runs and what they are asked lie in build/pictures; a training that is there is not repeated (all
take about an hour on two cores). Screens of pages need Chromium. Those of segment, detect, compare
and the demo are of the runs of docs/results.md; speed.png is drawn by chart.py.
"""

import json
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers.browser import Browser, Tab
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

from torchmae import cli
from torchmae.report.experiments.ablation import draw_ablation
from torchmae.tasks.serve.config import Serve
from torchmae.tasks.serve.run import opened

ROOT = Path(__file__).parents[1]
DOCS, WORK = ROOT / "docs", ROOT / "build" / "pictures"
MOST_BYTES, WIDEST = 60_000, 1000  # of a picture in the repository; pixels

TRAININGS = {  # by the name of their run folder
    "digits": "pretrain 'digits?part=train' --preset demo --epochs 100",
    "demo": "pretrain --preset demo --epochs 50",
    "nuclei": "pretrain nuclei.txt --model vit_micro --image-size 256 --patch-size 16 "
    "--epochs 300 --batch-size 32",
    "classifier": "finetune runs/digits 'digits?part=train' --val 'digits?part=test' "
    "--labels-per-class 10",
    "tokenizer": "tokenizer digits --epochs 8 --patch-size 4 --no-flip",
}


def mae(command: str) -> None:
    """Runs a command of ours, in this process: libraries are loaded once."""
    print("mae", command, flush=True)
    assert cli.main(shlex.split(command)) == 0


def run(name: str) -> Path:
    """The folder of a training, which is made where it is missing."""
    folder = Path("runs", name)
    if not (folder / "model.safetensors").exists():
        mae(f"{TRAININGS[name]} --out runs/{name}")
    return folder


def nuclei(count: int) -> str:
    """Images that training did not see: the first of the annotations for validation."""
    facts = json.loads((WORK / "nuclei" / "annotations" / "instances_val.json").read_text())
    names = sorted(image["file_name"] for image in facts["images"])
    return " ".join(f"nuclei/images/{Path(name).name}" for name in names[:count])


def in_color() -> str:
    """The first image of validation whose channels differ."""
    for name in nuclei(1000).split():
        pixels = np.array(Image.open(WORK / name).convert("RGB"))
        if (pixels != pixels[..., :1]).any():
            return name
    raise AssertionError("all are gray")


def drawn(command: str, file: str) -> Image.Image:
    """The picture that a command writes."""
    mae(command)
    return Image.open(WORK / file).convert("RGB")


def screen(url: str, width: int, height: int, dark: bool = False) -> Image.Image:
    """A page in Chromium, as far down as the window goes."""
    with Browser() as browser:
        return taken(browser.tab(url, width, height), width, height, dark)


def taken(tab: Tab, width: int, height: int, dark: bool = False) -> Image.Image:
    tab.resize(width, height, dark)
    tab.screenshot(WORK / "screen.png", whole=False)
    return Image.open(WORK / "screen.png").convert("RGB")


def beside(*pictures: Image.Image) -> Image.Image:
    """Pictures of one height next to each other, white between them."""
    height = max(picture.height for picture in pictures)
    gap = 20
    width = sum(picture.width + gap for picture in pictures) - gap
    whole, left = Image.new("RGB", (width, height), "white"), 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return whole


def check() -> Image.Image:
    """A set with planted faults: copies across parts, a blank image, a file that is cut off."""
    rng = np.random.default_rng(0)
    files = sorted((WORK / "nuclei" / "images").glob("*.png"))
    shutil.rmtree(WORK / "cells", ignore_errors=True)
    for part, some in (("train", files[:60]), ("val", files[60:80])):
        (WORK / "cells" / part).mkdir(parents=True)
        for file in some:
            shutil.copy(file, WORK / "cells" / part)
    for i in rng.integers(0, 60, 3):
        shutil.copy(files[i], WORK / "cells" / "val" / f"again-{files[i].name}")
    Image.new("RGB", (256, 256)).save(WORK / "cells" / "train" / "blank.png")
    (WORK / "cells" / "train" / "cut-off.png").write_bytes(files[90].read_bytes()[:2000])
    mae("check cells --out check.html")
    return screen((WORK / "check.html").as_uri(), 1000, 1150)


def report() -> Image.Image:
    mae(f"report {run('nuclei')}")
    url = (run("nuclei").resolve() / "report.html").as_uri()
    return beside(screen(url, 900, 1000), screen(url, 360, 1000, dark=True))


def curves() -> Image.Image:
    return Image.open(run("nuclei") / "curves.png").convert("RGB")


def look() -> Image.Image:
    command = f"look {run('nuclei')} {nuclei(4)} --short-side 256 --point 128 128 --out look"
    return drawn(command, "look/look.png")


def search() -> Image.Image:
    return drawn(f"search {run('nuclei')} nuclei/images --query {nuclei(3)}", "search.png")


def digit_map() -> Image.Image:
    mae(f"map {run('digits')} digits --method tsne --out map.html")
    return screen((WORK / "map.html").as_uri(), 1000, 1100)


def serve() -> Image.Image:
    with opened(Serve(str(run("nuclei")), port=0)) as server, Browser() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab = browser.tab(server.url)
        tab.wait("document.getElementById('status').textContent.startsWith('Choose')")
        tab.choose_file("#file", WORK / in_color())
        tab.wait("document.getElementById('status').textContent.startsWith('Reconstructed')")
        tab.screenshot(WORK / "screen.png")
        server.shutdown()
    return Image.open(WORK / "screen.png").convert("RGB")


def reconstruct() -> Image.Image:
    return drawn(f"reconstruct {run('nuclei')} {nuclei(6)} --out made.png", "made.png")


def classifier() -> Image.Image:
    return Image.open(run("classifier") / "mistakes.png").convert("RGB")


def confusion() -> Image.Image:
    mae(f"evaluate {run('classifier')} 'digits?part=test'")
    return Image.open(run("classifier") / "confusion.png").convert("RGB")


def layers() -> Image.Image:
    mae(f"knn {run('digits')} digits --layer all")
    return Image.open(run("digits") / "layers.png").convert("RGB")


def probed() -> Image.Image:
    run("demo")
    return drawn("probe runs/demo digits --fast --layer all", "runs/demo/layers.png")


def embedded() -> Image.Image:
    """The cosine of each pair of 20 images a class, less the mean of all features."""
    run("demo")
    mae("embed runs/demo digits --out digits.npz")
    features = np.load("digits.npz")["features"]
    features -= features.mean(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    target = load_digits().target
    ids = np.concatenate([np.flatnonzero(target == k)[:20] for k in range(10)])
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(features[ids] @ features[ids].T, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(10, 200, 20), range(10))
    axes.set_yticks(range(10, 200, 20), range(10))
    axes.set_title("Cosine of the features of 200 digits, by class")
    figure.colorbar(shown)
    figure.savefig("embed.png", dpi=120)
    return Image.open("embed.png").convert("RGB")


def tokenizer() -> Image.Image:
    return Image.open(max((run("tokenizer") / "pictures").iterdir())).convert("RGB")


def ablate() -> Image.Image:
    record = json.loads((ROOT / "bench" / "results" / "ablation-cifar-loss.json").read_text())
    study = {"baselines": [], **record["studies"][0]}  # it has none beside its points
    draw_ablation(study, WORK / "ablation.png")
    return Image.open(WORK / "ablation.png").convert("RGB")


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "check": check,
    "pretrain": curves,
    "report": report,
    "look": look,
    "search": search,
    "map": digit_map,
    "serve": serve,
    "reconstruct": reconstruct,
    "finetune": confusion,
    "evaluate": classifier,
    "knn": layers,
    "probe": probed,
    "embed": embedded,
    "tokenizer": tokenizer,
    "ablate": ablate,
}


def keep(picture: Image.Image, file: Path) -> None:
    """Writes a picture as good as its size in bytes allows."""
    if picture.width > WIDEST:
        size = (WIDEST, round(picture.height * WIDEST / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    for quality in range(90, 20, -5):
        picture.save(file, quality=quality, method=6)
        if file.stat().st_size < MOST_BYTES:
            break
    print(f"{file.name}: {picture.size}, quality {quality}, {file.stat().st_size:,} bytes")


def main(source: str, *names: str) -> None:
    source = str(Path(source).resolve())
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    (WORK / "nuclei").unlink(missing_ok=True)
    (WORK / "nuclei").symlink_to(source)
    facts = json.loads((WORK / "nuclei" / "annotations" / "instances_train.json").read_text())
    files = sorted(f"nuclei/images/{Path(image['file_name']).name}" for image in facts["images"])
    (WORK / "nuclei.txt").write_text("\n".join(files))
    for name in names or PICTURES:
        keep(PICTURES[name](), DOCS / f"{name}.webp")


if __name__ == "__main__":
    main(*sys.argv[1:])
