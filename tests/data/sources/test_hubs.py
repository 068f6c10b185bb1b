"""Data sets of torchvision and Hugging Face."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.sources import grey12, labels, plant, png, saved_dataset
from PIL import EpsImagePlugin, Image

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import Batches, read_pixels
from torchmae.data.scan import scan
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.hubs import HuggingFace, TorchVision
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import UserError


def test_torchvision(tmp_path):
    source = open_source("torchvision:FakeData?size=3&image_size=3,20,24&num_classes=4")
    assert source.read(0).shape == (20, 24, 3) and set(labels(source)) <= set("0123")
    with pytest.raises(UserError, match="Did you mean CIFAR10"):
        open_source("torchvision:CIFAR01")
    with pytest.raises(UserError, match="download=true") as caught:
        open_source(f"torchvision:CIFAR10?root={tmp_path}&train=true")
    assert "\n" not in str(caught.value)
    plant(tmp_path / "set", "cat/1.png", "dog/2.png")
    assert labels(open_source(f"torchvision:ImageFolder?root={tmp_path}/set")) == ["cat", "dog"]


def test_options_of_torchvision_that_look_like_numbers_but_are_texts(tmp_path):
    """INaturalist refuses the version 2019 that is no text."""
    pytest.importorskip("torchvision")
    for species in range(3):
        folder = tmp_path / "2019" / "Birds" / str(species)
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(species))
    spec = f"torchvision:INaturalist?root={tmp_path}&version=2019"
    assert set(labels(open_source(spec))) == {"0", "1", "2"}
    assert labels(open_source(f"{spec}&target_type=super")) == ["0"] * 3
    assert read_pixels(open_source(spec), 0).shape == (7, 6, 3)
    with pytest.raises(UserError, match="version"):
        open_source(f"{spec}1")


def test_torchvision_classes_of_one_name_stay_different():
    class Birds:
        classes = (
            ("crane",),
            ("kite", "glede"),
            ("crane",),
            "owl",
        )  # tuples of synonyms, as ImageNet's
        targets = (0, 1, 2, 3, -1, 7)

        def __len__(self):
            return 6

        def __getitem__(self, i):
            return np.zeros((4, 4), np.uint8), self.targets[i]

    wanted = ["crane (0)", "kite, glede", "crane (2)", "owl", None, "7"]
    assert labels(TorchVision(Birds(), "Birds")) == wanted


def test_hugging_face(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = open_source(f"hf:{saved_dataset(tmp_path / 'one', 3)}")
    assert (
        source.read(2) == png(2)
        and labels(source) == ["cat", "dog", "cat"]
        and source.name(1) == "one[1]"
    )
    both = datasets.DatasetDict(
        train=datasets.load_from_disk(str(tmp_path / "one")),
        test=datasets.load_from_disk(str(saved_dataset(tmp_path / "two", 2))),
    )
    both.save_to_disk(str(tmp_path / "both"))
    assert len(open_source(f"hf:{tmp_path}/both")) == 3
    assert len(open_source(f"hf:{tmp_path}/both?split=test&column=picture")) == 2
    with pytest.raises(UserError, match=r"Did you mean test\? One of: train, test"):
        open_source(f"hf:{tmp_path}/both?split=tests")
    plant(tmp_path / "files/train", "cat/1.png", "dog/2.png")
    loose = open_source(
        f"hf:{tmp_path}/files?split=train"
    )  # a folder of images, which `datasets` loads by itself
    assert (
        labels(loose) == ["cat", "dog"]
        and decode(loose.read(1)).shape == (7, 6, 3)
        and loose.fingerprint()
    )
    with pytest.raises(UserError, match="unknown image column"):
        open_source(f"hf:{tmp_path}/both?column=id")


def test_images_of_more_than_8_bits_in_a_set_of_torchvision(tmp_path):
    """Once they were scaled by 65535, and refused at opening."""
    pytest.importorskip("torchvision")
    source = open_source(f"torchvision:ImageFolder?root={grey12(tmp_path / 'set', 4)}")
    assert (source.dtype, with_decode(source, DecodeOptions(channels=1)).channels) == ("uint16", 1)
    assert read_pixels(source, 0).max() == 4095


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Where a `gs` that stands before the real one notes that it was started."""
    (tmp_path / "bin").mkdir()
    note = tmp_path / "started"
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\necho 10.0; echo $0 >> {note}\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # look for it again
    return note


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def test_a_set_of_torchvision_obeys_the_rules_of_images(tmp_path, ghostscript):
    """Pillow would start Ghostscript, decode 169 megapixels, and end at the first broken file."""
    pytest.importorskip("torchvision")
    plant(tmp_path / "set", "a/good.png", "b/good.png")
    (tmp_path / "set/a/eps.jpg").write_bytes(EPS)
    Image.new("1", (13000, 13000)).save(tmp_path / "set/a/huge.png")
    (tmp_path / "set/b/broken.png").write_bytes(png()[:-20])
    (tmp_path / "set/b/html.jpg").write_bytes(b"<html>404</html>")
    source = open_source(f"torchvision:ImageFolder?root={tmp_path}/set")
    bad = {name.partition("[")[2]: reason for name, reason in scan(source).bad}
    assert bad == {
        "0]": "not an image, or not of a format that is read",  # in the set's order
        "2]": "169.0 megapixels, more than the limit of 100",
        "3]": "truncated PNG: no end chunk",
        "5]": "not an image, or not of a format that is read",
    }
    assert not ghostscript.exists() and len(source.fingerprint()) == 64
    batch = Batches(source, RandomResizedCropFlip((8, 8)), 6)[0]
    assert len(batch.images) == 6 and {file.name for file in batch.bad} <= {
        f"ImageFolder[{i}" for i in bad
    }
    (tmp_path / "set/b/good.png").unlink()  # after the set has listed it
    with pytest.raises(BadImage, match="No such file"):
        read_pixels(source, 4)


def test_other_threads_use_pillow_meanwhile(tmp_path):
    """Only the thread that reads an item is handed bytes, and Pillow is as it was in the end."""
    pytest.importorskip("torchvision")
    plant(tmp_path / "set", *(f"a/{i}.png" for i in range(40)))
    source = open_source(f"torchvision:ImageFolder?root={tmp_path}/set")
    before = Image.open

    def work(i: int) -> bool:
        if i % 2:
            return isinstance(source.read(i), bytes)
        with Image.open(io.BytesIO(png(i))) as image:
            return image.size == (6, 7)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [i % 40 for i in range(400)]))
    assert Image.open is before


def test_labels_of_a_set_without_a_list_of_them_decode_nothing(tmp_path, ghostscript):
    """Some sets know a class by making the item alone."""
    (tmp_path / "eps.jpg").write_bytes(EPS)

    class Items:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return Image.open(tmp_path / "eps.jpg").convert("RGB"), i

    source = TorchVision(Items(), "Items")
    assert labels(source) == ["0", "1"] and source.read(1) == EPS
    with pytest.raises(BadImage, match="not of a format that is read"):
        decode(source.read(0))
    assert not ghostscript.exists()


def test_an_image_column_obeys_the_rules_of_images(tmp_path, ghostscript):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "eps.jpg").write_bytes(EPS)
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(3 * 10**9)
    rows = [{"bytes": EPS, "path": None}] + [
        {"bytes": None, "path": str(tmp_path / name)} for name in ("eps.jpg", "big.png")
    ]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": rows}, features=features)
    found = scan(HuggingFace(data, "set", "image", None)).bad
    unread = "not an image, or not of a format that is read"
    most = "3,000 MB, more than the 864 MB that an image of 100 megapixels can need"
    assert [reason.partition(" (--")[0] for _, reason in found] == [unread, unread, most]
    assert not ghostscript.exists()
