"""Data sets of torchvision and Hugging Face."""

import numpy as np
import pytest
from helpers.sources import grey12, labels, plant, png, saved_dataset
from PIL import Image

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, decode
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.hubs import TorchVision
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
    with pytest.raises(UserError, match=r"one of: train, test\. Did you mean test"):
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
    """Once they were scaled by 65535 whatever --white said, and refused at opening."""
    pytest.importorskip("torchvision")
    from torchvision.datasets import ImageFolder

    spec = f"torchvision:ImageFolder?root={grey12(tmp_path / 'set', 4)}"
    source = TorchVision(
        ImageFolder(str(tmp_path / "set"), loader=lambda path: Image.open(path)), "set"
    )
    assert with_decode(source, DecodeOptions(white=4095)).read(0).max() == 255
    with pytest.raises(BadImage, match="nearly black"):
        source.read(0)
    assert open_source(spec).channels == 3  # its own loader converts to RGB
