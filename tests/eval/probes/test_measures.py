"""Measures of frozen features: the same accuracies as the verbs that measure one of them."""

from pathlib import Path

import pytest
import torch

import torchmae
from torchmae.data.labels import labelled_sets
from torchmae.errors import UserError
from torchmae.eval.baselines import PIXELS, UNTRAINED
from torchmae.eval.probes.measures import MEASURES, frozen_guesses


def test_the_verbs_measure_the_same(run: Path, photos: Path) -> None:
    sets = labelled_sets(str(photos), None, 0.5, None, 3)
    ids, guesses = frozen_guesses(str(run), sets, 3, list(MEASURES), torch.device("cpu"))
    truth = sets.val_labels[ids]
    found = {name: float((one == truth).double().mean()) for name, one in guesses.items()}
    shared = {"val_fraction": 0.5, "seed": 3, "device": "cpu"}
    fast = {**shared, "fast": True}
    assert found == {
        "knn": torchmae.knn(run, photos, **shared)["knn"]["features"]["accuracy"],
        "linear": torchmae.probe(run, photos, **fast)["probe"]["features"]["accuracy"],
        "attentive": torchmae.probe(run, photos, head="attentive", **fast)["probe"]["features"][
            "accuracy"
        ],
    }


def test_an_untrained_encoder_and_raw_pixels(run: Path, photos: Path) -> None:
    """The first as mae knn measures it, which reduces pixels to another size."""
    sets = labelled_sets(str(photos), None, 0.5, None, 3)
    where = (str(run), sets, 3, ["knn"], torch.device("cpu"))
    ids, guesses = frozen_guesses(*where, UNTRAINED)
    truth = sets.val_labels[ids]
    verb = torchmae.knn(run, photos, val_fraction=0.5, seed=3, device="cpu")["knn"]
    assert float((guesses["knn"] == truth).double().mean()) == verb["untrained encoder"]["accuracy"]
    pixels = frozen_guesses(*where, PIXELS)[1]["knn"]
    trained = frozen_guesses(*where)[1]["knn"]
    assert not torch.equal(pixels, trained) and not torch.equal(pixels, guesses["knn"])


def test_only_what_is_asked_for(run: Path, photos: Path) -> None:
    sets = labelled_sets(str(photos), None, 0.5, None, 3)
    _, guesses = frozen_guesses(str(run), sets, 3, ["linear"], torch.device("cpu"))
    assert list(guesses) == ["linear"]


def test_a_class_that_cannot_be_read_is_named(run: Path, photos: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("across", "down"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                data = (photos / name / f"{i}.jpg").read_bytes()
                (folder / f"{part}{i}.jpg").write_bytes(data)
    for file in (tmp_path / "train" / "down").iterdir():
        file.write_bytes(b"\xff\xd8 no image")
    sets = labelled_sets(str(tmp_path), None, 0.2, None, 0)
    with pytest.raises(UserError, match="no training image of class 'down' can be read"):
        frozen_guesses(str(run), sets, 0, ["knn"], torch.device("cpu"))
