"""Images that are in Python: read as they are, and trained on as files are."""

import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import torchmae
from torchmae.data.config import Listing
from torchmae.data.loader import Batches, read_pixels
from torchmae.data.scan import scan
from torchmae.data.sources import open_source
from torchmae.data.sources import source as sources
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.runfolder import UNKNOWN, identity, same_data
from torchmae.settings.python_data import PythonData

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 40, 36, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(12)]
SMALL = dict(
    **dict(model="vit_micro", image_size=32, patch_size=8, epochs=2, batch_size=4, device="cpu"),
    **dict(workers=0, compile=False, cache="none", precision="fp32", log_every=1),
)


class Items(Dataset):
    """(tensor [C, H, W], class) of some pixels; what `broken` says in place of some."""

    def __init__(self, pixels=PIXELS, broken=None):
        self.pixels = pixels
        self.broken = broken or {}
        self.reads = 0

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        self.reads += 1
        if i in self.broken:
            return self.broken[i]()
        return torch.from_numpy(self.pixels[i]).permute(2, 0, 1), LABELS[i]


def fail():
    raise ValueError("this scan\nis lost")


def files(folder):
    """The pixels as PNG files, named in the order of their numbers."""
    folder.mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return [folder / f"{i:02}.png" for i in range(len(PIXELS))]


def opened(data, data_id=None, **columns):
    return open_source(PythonData.of(data, data_id), listing=Listing(**columns))


def pandas_table(paths):
    pandas = pytest.importorskip("pandas")
    names = [*map(str, paths[:-1]), str(paths[-1])]
    return pandas.DataFrame({"age": [1.5] * 12, "path": names, "label": LABELS})


def polars_table(paths):
    polars = pytest.importorskip("polars")
    return polars.DataFrame({"path": [*map(str, paths)], "label": LABELS})


def hub_set(paths):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1", "2"])}
    )
    rows = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    return datasets.Dataset.from_dict({"image": rows, "label": LABELS}, features=features)


KINDS = {
    "array": lambda paths: (PIXELS, LABELS),
    "array with channels first": lambda paths: (PIXELS.transpose(0, 3, 1, 2), np.array(LABELS)),
    "tensor": lambda paths: (torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)),
    "list of arrays": lambda paths: (list(PIXELS), LABELS),
    "list of pairs": lambda paths: list(zip(PIXELS, LABELS)),
    "list of PIL images": lambda paths: (list(map(Image.fromarray, PIXELS)), LABELS),
    "list of opened files": lambda paths: (list(map(Image.open, paths)), LABELS),
    "list of paths": list,
    "list of encoded images": lambda paths: ([path.read_bytes() for path in paths], LABELS),
    "Dataset": lambda paths: Items(),
    "TensorDataset": lambda paths: TensorDataset(
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)
    ),
    "Subset": lambda paths: Subset(Items(), range(12)),
    "dictionaries": lambda paths: [dict(image=x, label=y) for x, y in zip(PIXELS, LABELS)],
    "pandas": pandas_table,
    "polars": polars_table,
    "Hugging Face": hub_set,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_object_gives_its_pixels_and_labels(kind, tmp_path):
    source = opened(KINDS[kind](files(tmp_path / "images")))
    assert len(source) == 12 and source.channels == 3 and source.dtype == "uint8"
    assert all(np.array_equal(read_pixels(source, i), PIXELS[i]) for i in range(12))
    wanted = [None] * 12 if kind == "list of paths" else [*map(str, LABELS)]
    assert [source.label(i) for i in range(12)] == wanted


def test_where_the_channels_are():
    small = PIXELS[:, :8, :8]  # all axes are short enough
    assert np.array_equal(read_pixels(opened(small), 2), small[2])
    tensors = [torch.from_numpy(x).permute(2, 0, 1) for x in small]
    assert np.array_equal(read_pixels(opened(tensors), 2), small[2])
    assert np.array_equal(read_pixels(opened(torch.stack(tensors)), 2), small[2])
    gray = opened(PIXELS[..., 0])
    assert gray.channels == 1 and np.array_equal(read_pixels(gray, 2)[..., 0], PIXELS[2, :, :, 0])
    assert opened([PIXELS[0, :, :, 0], PIXELS[1, :, :, 0], PIXELS[2]]).channels == 3
    deep = (PIXELS[..., 0].astype(np.uint16) * 257).astype(">u2")
    source = opened(list(deep))
    assert source.dtype == "uint16" and np.array_equal(read_pixels(source, 1)[..., 0], deep[1])
    with pytest.raises(UserError, match=r"expected images as \[N, H, W\]"):
        opened(PIXELS[0])


def test_bad_items_are_named_with_their_reasons():
    broken = {
        1: fail,
        3: lambda: (None, 0),
        5: lambda: (torch.zeros(3, 9, 9, dtype=torch.float64), 0),
        7: lambda: (np.zeros((0, 4), dtype=np.uint8), 0),
        8: lambda: ("no/such.png", 0),
        10: lambda: (b"no image", 0),
    }
    found = scan(opened(Items(broken=broken)))
    reasons = {bad.name: bad.reason for bad in found.bad}
    assert list(reasons) == [f"Items[{i}]" for i in broken]
    assert reasons["Items[1]"] == "ValueError: this scan"
    assert reasons["Items[3]"] == "a NoneType is no image"
    assert reasons["Items[5]"].startswith("float64 [3, 9, 9] is no image: uint8,")
    assert "No such file" in reasons["Items[8]"]


def test_what_is_no_set_of_images():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from PIXELS

    for data in (Stream(), iter(PIXELS), {"train": PIXELS}, 3):
        with pytest.raises(UserError, match="is no set of images; give a torch Dataset"):
            opened(data)
    with pytest.raises(UserError, match="no images"):
        opened([])
    with pytest.raises(UserError, match=r"float64.*x.astype\('float32'\)"):
        opened(PIXELS.astype(np.float64))
    with pytest.raises(UserError, match="no file holds them"):
        open_source("python:ndarray-12x40x36x3-uint8")
    with pytest.raises(UserError, match="path_column is for DataFrames"):
        opened(list(PIXELS), path_column="file")


def test_columns_of_tables_are_named(tmp_path):
    pandas = pytest.importorskip("pandas")
    paths = [str(path) for path in files(tmp_path / "images")]
    table = pandas.DataFrame({"scan": [*paths[:11], "gone.png"], "grade": [1, 2, None] * 4})
    source = opened(table, path_column="scan", label_column="grade")
    assert len(source) == 11 and [bad.name for bad in source.unusable] == ["gone.png"]
    assert [source.label(i) or "" for i in range(3)] == ["1", "2", ""]
    assert identity(source) == identity(opened(table, path_column="scan"))
    with pytest.raises(UserError, match="has no column 'file'"):
        opened(table, path_column="file")


def test_labels_beside_items_are_read_without_the_items(caplog):
    items = Items()
    items.targets, items.classes = LABELS, ["ant", "bee", "cat"]
    source, half = opened(items), opened(Subset(items, [1, 5, 6]))
    before = items.reads
    assert [source.label(i) for i in range(3)] == ["ant", "bee", "cat"]
    assert [half.label(i) for i in range(3)] == ["bee", "cat", "ant"] and items.reads == before
    assert opened([(x, np.zeros((40, 36))) for x in PIXELS]).label(0) is None  # a mask
    broken = opened(Items(broken={2: fail}))
    assert broken.label(2) is None and broken.label(3) == "0"
    assert "Items[2] has no label, since it cannot be read: ValueError" in caplog.text


def test_what_a_data_set_is_recognized_by():
    items, whole = Items(), PIXELS.copy()
    unknown = opened(items)
    assert unknown.fingerprint().startswith(UNKNOWN)
    assert opened(items).fingerprint() == unknown.fingerprint() != opened(Items()).fingerprint()
    assert len({opened(Items()).fingerprint() for _ in range(5)}) == 5  # also at the same address
    half = sources.Subset(unknown, range(6))
    assert half.fingerprint().startswith(UNKNOWN) and half.fingerprint() != unknown.fingerprint()
    named = opened(items, "mine")
    assert named.fingerprint() == opened(Items(), "mine").fingerprint()
    assert opened(whole).fingerprint() == opened(PIXELS).fingerprint()
    assert opened(whole[::-1]).fingerprint() != opened(PIXELS).fingerprint()

    was, now = identity(unknown), identity(named)
    assert now["data_id"] == "mine" and same_data(was, now)  # the name is taken for what it was
    assert not same_data(now, was) and not same_data(was, identity(opened(Items())))
    assert not same_data(now, identity(opened(items, "other")))
    content, called = identity(opened(PIXELS)), identity(opened(PIXELS, "x"))
    assert same_data(content, called) and same_data(called, content)
    assert not same_data(content, identity(opened(whole[::-1], "x")))  # a name hides no difference
    assert not same_data({"val": content, **now}, {"val": identity(opened(whole[::-1])), **now})


def test_an_item_that_changes_is_said(caplog):
    class Random(Items):
        def __getitem__(self, i):
            return np.roll(self.pixels[i], self.reads, 0) if super().__getitem__(i) else None

    opened(Items())
    assert not caplog.text
    opened(Random())
    assert "another image each time it is read" in caplog.text


def test_a_photograph_is_turned_as_its_file_is(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png", exif=turned)
    image = Image.open(tmp_path / "a.png")
    assert np.array_equal(read_pixels(opened([image]), 0), np.rot90(PIXELS[0], -1))
    image.load()
    assert np.array_equal(read_pixels(opened([image]), 0), np.rot90(PIXELS[0], -1))


@pytest.mark.parametrize("kind", ["Dataset", "array", "list of opened files"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_read_the_same_images(kind, tmp_path):
    source = opened(KINDS[kind](files(tmp_path / "images")))
    scan(source)  # threads have used the object before
    batches = Batches(source, CenterCropResize((16, 16)), 4)
    for step, batch in enumerate(batches.loader(0, 3, workers=2)):
        assert torch.equal(batch.images, batches[step].images)


def test_an_array_is_not_copied():
    source = opened(PIXELS)
    assert np.shares_memory(source.pixels, PIXELS)
    assert np.shares_memory(opened(torch.from_numpy(PIXELS)).pixels, PIXELS)


# Training on them.


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return files(tmp_path_factory.mktemp("data") / "images")[0].parent


@pytest.fixture(scope="module")
def run(photos):
    """Pre-trained on files."""
    return torchmae.pretrain(photos, out=photos.parent / "run", **SMALL)


def weights(run):
    return (run / "model.safetensors").read_bytes()


class Stopping(Items):
    """Stops this process, as Ctrl-C does, once a training has begun to log."""

    def __init__(self, out):
        super().__init__()
        self.log = out / "log.jsonl"
        self.stopped = False

    def __getitem__(self, i):
        if not self.stopped and self.log.exists() and self.log.stat().st_size:
            self.stopped = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(i)


def test_a_dataset_trains_like_files_and_resumes_by_its_name(run, tmp_path, caplog):
    """The same weights to the last bit as from files, also after an interruption in the middle."""
    caplog.set_level(logging.INFO)
    out = tmp_path / "run"
    with pytest.raises(torchmae.RunError, match=r"stopped at step [1-5] of 6 and saved"):
        torchmae.pretrain(Stopping(out), out=out, **SMALL)
    stored = json.loads((out / "config.json").read_text())
    assert stored["config"]["data"] == "python:Stopping-12"
    with pytest.raises(UserError, match="has no fingerprint.*data_id='a name of your own'"):
        torchmae.pretrain(Items(), out=out, **SMALL)
    assert weights(torchmae.pretrain(Items(), out=out, data_id="scans", **SMALL)) == weights(run)
    stored = json.loads((out / "config.json").read_text())
    assert stored["data"]["data_id"] == "scans" and "?data_id=scans" in stored["config"]["data"]
    with pytest.raises(UserError, match="data_id was 'scans', is 'others'"):
        torchmae.pretrain(Items(), out=out, data_id="others", **SMALL)
    with pytest.raises(UserError, match="data_id='scans'"):
        torchmae.pretrain(Items(), out=out, **SMALL)
    with pytest.raises(UserError, match="had 12 images, has 11"):
        torchmae.pretrain(Items(PIXELS[:11]), out=out, data_id="scans", **SMALL)
    assert "embed" in caplog.text and "DATA --out features.npz" in caplog.text


def test_later_verbs_take_them(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in (("files", photos), ("list", list(PIXELS)), ("set", Items())):
        torchmae.embed(run, data, out=f"{name}.npz")
    features = {name: np.load(f"{name}.npz")["features"] for name in ("files", "list", "set")}
    assert np.array_equal(features["files"], features["list"])
    assert np.array_equal(features["files"], features["set"])
    torchmae.search(run, Items(), query=[PIXELS[4]], k=1, out="nearest.csv")
    assert "Items[4]" in Path("nearest.csv").read_text()
    assert torchmae.knn(run, (PIXELS, LABELS), val=(PIXELS, LABELS))["test_images"] == 12
    checked = torchmae.check(Items(broken={2: fail}))
    assert checked["images"] == 12 and checked["bad"] == 1
    torchmae.reconstruct(run, list(PIXELS[:2]), out="two.png")
    with pytest.raises(UserError, match="holds pixels"):
        torchmae.pack(list(PIXELS), out="packed")
