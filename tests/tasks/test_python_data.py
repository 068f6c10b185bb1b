"""Every verb with images that are in Python: what it says is what it says of files."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import objects
from helpers.label_maps import draw as draw_shapes
from PIL import Image
from torch.utils.data import Dataset

import torchmae
from torchmae.errors import UserError
from torchmae.settings.options import from_python, options_of, takes_images
from torchmae.settings.python_data import PythonData
from torchmae.tasks.pretrain.ahead.config import Plan
from torchmae.tasks.pretrain.ahead.run import typed
from torchmae.tasks.serve.answers import Answers
from torchmae.tasks.serve.config import Serve
from torchmae.verbs import VERBS, load

COUNT = 16
SMALL = dict(epochs=1, batch_size=8, device="cpu", workers=0, compile=False, precision="fp32")
SIZES = dict(model="vit_micro", image_size=32, patch_size=8)


def draw():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    pixels[1::2, :, :, 0] //= 4
    return pixels, [i % 2 for i in range(COUNT)]


PIXELS, LABELS = draw()


class Items(Dataset):
    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        return torch.from_numpy(PIXELS[i]).permute(2, 0, 1), LABELS[i]


def table(paths):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"path": paths, "label": LABELS})


KINDS = {
    "array": lambda paths: (PIXELS, LABELS),
    "list": lambda paths: list(zip(PIXELS, LABELS)),
    "Dataset": lambda paths: Items(),
    "DataFrame": table,
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The images in files, of a folder for each class."""
    folder = tmp_path_factory.mktemp("data")
    names = [folder / str(label) / f"{i:02}.png" for i, label in enumerate(LABELS)]
    for path, pixels in zip(names, PIXELS):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return [str(path) for path in names]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mae"
    return torchmae.pretrain(PIXELS, out=out, labelled=Items(), **SMALL, **SIZES)


@pytest.fixture(scope="module")
def classifier(run):
    return torchmae.finetune(run, Items(), val=Items(), out=run / "classifier", **SMALL)


def test_every_verb_of_images_takes_them():
    """But for `bench`, which measures how files are read."""
    of_data = {
        verb for verb, entry in VERBS.items() if {"data", "images"} & set(options_of(config(entry)))
    }
    assert {verb for verb in of_data if not takes_images(config(VERBS[verb]))} == {"bench"}


def config(entry):
    return load(entry.config)


@pytest.mark.parametrize("kind", KINDS)
def test_verbs_that_measure_and_predict(kind, run, classifier, paths, tmp_path, monkeypatch):
    """In the words and numbers of the same images in a list file."""
    monkeypatch.chdir(tmp_path)
    listed = tmp_path / "files.csv"
    listed.write_text("path,label\n" + "".join(f"{p},{n}\n" for p, n in zip(paths, LABELS)))
    data = KINDS[kind](paths)

    def both(verb, *names):
        one, other = verb(data), verb(listed)
        assert one is not None and [one[name] for name in names] == [other[name] for name in names]

    both(lambda d: torchmae.evaluate(classifier, d, device="cpu"), "top1", "low", "count")
    both(lambda d: torchmae.knn(run, d, val=d, device="cpu"), "knn", "test_images")
    both(lambda d: torchmae.check(d), "images", "bad", "exact_duplicates", "near_duplicates")
    said = [
        [row.split(",")[1:] for row in Path(made).read_text().splitlines()]
        for made in (torchmae.predict(classifier, d, out="said.csv") for d in (data, listed))
    ]
    assert said[0] == said[1] and len(said[0]) == COUNT + 1
    torchmae.search(run, data, duplicates=True, out="copies.csv", device="cpu")
    torchmae.map_(run, data, out="map.html", device="cpu")
    torchmae.reconstruct(run, data, sheet=True, out="sheet.png", device="cpu")
    torchmae.look(run, data, out="look", device="cpu")
    assert Path("look/look.png").is_file() and Path("sheet.png").is_file()
    found = torchmae.doctor(classifier, data=data)
    assert found and not [line for line in found if line["state"] == "WRONG"]


def test_features_of_a_file_are_those_of_a_data_set_by_its_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torchmae.embed(run, Items(), data_id="mine", out="named.npz", device="cpu")
    given = dict(query=[PIXELS[2]], k=1, device="cpu")
    torchmae.search(run, Items(), data_id="mine", features="named.npz", **given)
    assert "Items[2]" in Path("search.csv").read_text()
    for name in (None, "others"):
        more = {} if name is None else {"data_id": name}
        with pytest.raises(UserError, match="of a Dataset in Python its data_id differs"):
            torchmae.search(run, Items(), features="named.npz", **more, **given)
    torchmae.embed(run, PIXELS, out="array.npz", device="cpu")
    with pytest.raises(UserError, match="names or sizes differ"):
        torchmae.search(run, PIXELS[::-1], features="array.npz", **given)


def test_a_page_has_the_neighbors_of_a_data_set(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torchmae.embed(run, list(PIXELS), out="features.npz", device="cpu")
    page = Serve(run=str(run), data=PythonData.of(list(PIXELS)), features="features.npz")
    assert Answers(page).neighbors is not None
    with pytest.raises(UserError, match="no file holds them"):
        Answers(Serve(run=str(run), features="features.npz"))


def test_a_plan_has_a_command_line_with_a_place_for_the_data():
    plan = from_python(Plan, "torchmae.plan", (PIXELS,), {"mask_ratio": 0.5})
    line = typed(plan, "vit_micro", 20.0)
    assert line.endswith("pretrain DATA --model vit_micro --epochs 20 --mask-ratio 0.5")


def test_a_classifier_is_resumed_by_the_name_of_its_data(run, tmp_path):
    given = dict(val=Items(), out=tmp_path / "run", **SMALL)
    torchmae.finetune(run, Items(), data_id="mine", **given)
    assert torchmae.finetune(run, Items(), data_id="mine", **given)
    with pytest.raises(UserError, match="data_id was 'mine', is 'others'"):
        torchmae.finetune(run, Items(), data_id="others", **given)
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["data"]["val"]["data_id"] == "mine"


def test_a_grid_of_trainings(run, tmp_path):
    options = dict(seeds=[0, 1], measure=["knn"], trials=0, **SMALL)
    compared = torchmae.compare(run, (PIXELS, LABELS), out=tmp_path / "compared", **options)
    assert "python:ndarray-16x32x32x3-uint8" in json.dumps(compared.results)


def test_a_value_of_another_type_is_said_in_a_line(run):
    with pytest.raises(UserError) as error:
        torchmae.embed(run, PIXELS, out=PIXELS)
    assert len(str(error.value)) < 100 and "\n" not in str(error.value)


# Segmenters and detectors.


def drawn(count=12):
    return [draw_shapes(np.random.default_rng(i)) for i in range(count)]


class Labelled(Dataset):
    """(image, label map); Ctrl-C once a training has begun to log."""

    def __init__(self, log=None):
        self.pairs = drawn()
        self.log = log

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        if self.log is not None and self.log.exists() and self.log.stat().st_size:
            self.log = None
            os.kill(os.getpid(), signal.SIGINT)
        return self.pairs[i]


DENSE = dict(**SMALL, **SIZES, cache="none", log_every=1) | dict(epochs=2, batch_size=4)


def weights(run):
    return (Path(run) / "model.safetensors").read_bytes()


def test_a_segmenter_learns_as_from_files_and_resumes_by_the_name_of_its_data(tmp_path):
    for name, part in (("images", 0), ("masks", 1)):
        (tmp_path / "files" / name).mkdir(parents=True)
        for i, pair in enumerate(drawn()):
            Image.fromarray(pair[part]).save(tmp_path / "files" / name / f"{i:02}.png")
    options = dict(head="linear", **DENSE)
    whole = torchmae.segment("none", tmp_path / "files", out=tmp_path / "whole", **options)
    out = tmp_path / "run"
    with pytest.raises(torchmae.RunError, match="stopped at step [1-4] of 5 and saved"):
        torchmae.segment("none", Labelled(out / "log.jsonl"), out=out, **options)
    with pytest.raises(UserError, match="has no fingerprint.*data_id='a name of your own'"):
        torchmae.segment("none", Labelled(), out=out, **options)
    again = torchmae.segment("none", Labelled(), out=out, data_id="shapes", **options)
    assert weights(again) == weights(whole)
    with pytest.raises(UserError, match="data_id was 'shapes', is 'others'"):
        torchmae.segment("none", Labelled(), out=out, data_id="others", **options)
    files, held = (
        torchmae.evaluate(again, data, device="cpu") for data in (tmp_path / "files", drawn())
    )
    assert files["miou"] == held["miou"] and "python:list-12" in json.dumps(held)
    torchmae.predict(again, [image for image, _ in drawn(2)], out=tmp_path / "said", device="cpu")
    assert len(list((tmp_path / "said/labels").iterdir())) == 2


def test_a_detector_learns_as_from_files(tmp_path):
    pytest.importorskip("faster_coco_eval")
    folder = objects.coco_set(tmp_path / "coco", {"train": 8}, least=1)
    held = []
    for seed in range(1, 9):
        image, found = objects.draw(seed, least=1)
        target = {"boxes": [box for _, box, _ in found], "labels": [one for one, _, _ in found]}
        held.append((image, target | {"masks": np.array([mask for _, _, mask in found])}))
    options = dict(head_width=16, roi_samples=8, **DENSE) | dict(epochs=1)
    runs = [
        torchmae.detect("none", data, out=tmp_path / name, **options)
        for name, data in (("files", folder), ("held", held))
    ]
    assert weights(runs[0]) == weights(runs[1])
    found = torchmae.evaluate(runs[1], held, device="cpu")
    assert found["boxes"]["ap"] == torchmae.evaluate(runs[0], folder, device="cpu")["boxes"]["ap"]
