"""Features of a file: as computed ones; refused where they belong to something else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.planted import plant_run, small_vit

import torchmae
from torchmae.data.sources import open_source
from torchmae.errors import UserError
from torchmae.eval.neighbors.stored import Features, features_of_set
from torchmae.settings.groups import FeatureOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("stored") / "run", small_vit())


def taken(run: Path, data: Path, **options: object) -> Features:
    choice = FeatureOptions(**options)
    return features_of_set(str(run), open_source(data), torchmae.load(run), choice, CPU)


def test_a_file_of_embed_has_the_features_that_are_computed(
    encoder: Path, photos: Path, tmp_path: Path
) -> None:
    file = torchmae.embed(encoder, photos, out=tmp_path / "f.npz", pool="cls", layer=2)
    found = taken(encoder, photos, features=str(file))
    again = taken(encoder, photos, pool="cls", layer=2)
    assert found[0] == again[0] == list(range(24)) and found[2:] == again[2:] == (2, "cls")
    assert torch.equal(found.rows, again.rows)


def test_files_of_something_else_are_refused(encoder: Path, photos: Path, tmp_path: Path) -> None:
    file = str(torchmae.embed(encoder, photos, out=tmp_path / "f.npz"))
    other = plant_run(tmp_path / "other", small_vit(depth=2))
    (tmp_path / "text.npz").write_text("no array")
    with np.load(file) as arrays:
        held = dict(arrays)
    np.savez(tmp_path / "old.npz", **{n: x for n, x in held.items() if n != "about"})
    np.savez(tmp_path / "cut.npz", **(held | {"features": held["features"][:9]}))
    np.savez(tmp_path / "odd.npz", **(held | {"about": np.array(json.dumps({"run": 1}))}))
    for run, data, options, message in [
        (other, photos, {"features": file}, "are of other weights \\(run\\)"),
        (encoder, photos / "blob", {"features": file}, "are of other images"),
        (encoder, photos, {"features": file, "layer": 1}, "--layer 1: --features .* of layer 3"),
        (encoder, photos, {"features": file, "pool": "cls"}, "--pool cls: .* of pool mean"),
        (encoder, photos, {"features": str(tmp_path / "no.npz")}, "is no file of features"),
        (encoder, photos, {"features": str(tmp_path / "text.npz")}, "is no file of features"),
        (encoder, photos, {"features": str(tmp_path / "odd.npz")}, "is no file of features"),
        (encoder, photos, {"features": str(tmp_path / "old.npz")}, "does not say which run"),
        (encoder, photos, {"features": str(tmp_path / "cut.npz")}, "are damaged"),
    ]:
        with pytest.raises(UserError, match=message):
            taken(run, data, **options)
