"""Patches that are no squares, such as those of spectrograms, from pre-training to exports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import SMALL, make_photos

import torchmae
from torchmae.cli import main
from torchmae.errors import UserError
from torchmae.models.detection.detector import square
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.models.vit import ViT
from torchmae.models.weights import load_mae
from torchmae.settings.groups import SourceOptions
from torchmae.settings.options import parse_patch, patch_text, requested
from torchmae.tasks.pretrain.config import ModelOptions, Pretrain

HERE = {**SMALL, "image_size": "32x64", "patch_size": "4x16", "epochs": 1, "labelled": "none"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rectangular")
    make_photos(place / "photos", each=4)
    torchmae.pretrain(place / "photos", out=place / "run", **HERE)
    return place


def stored(run: Path) -> dict[str, object]:
    return json.loads((run / "config.json").read_text())


@pytest.mark.parametrize("text, patch", [("16", 16), (16, 16), ("8x32", (8, 32)), ("8x8", 8)])
def test_a_patch_has_one_spelling(text, patch):
    assert parse_patch(text) == patch
    assert parse_patch(patch_text(patch)) == patch


@pytest.mark.parametrize("text", ["0", "8x0", "8y32", "-4", "8x32x2", "70000", ""])
def test_other_texts_are_no_patches(text):
    with pytest.raises(UserError, match="--patch-size"):
        parse_patch(text)


def test_the_run_says_its_patches(place):
    config = stored(place / "run")
    assert config["config"]["patch_size"] == "4x16"
    assert config["model"]["encoder"]["patch_size"] == [4, 16]
    mae = load_mae(place / "run")
    assert mae.encoder.grid == (8, 4)
    assert mae.encoder.patch_embed.proj.weight.shape[2:] == (4, 16)


def test_the_embedding_is_a_convolution_of_that_stride(place):
    encoder = load_mae(place / "run").encoder
    images = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    table = encoder.pos_embed[:, 1:]
    tokens = encoder.tokens(images)[:, 1:]
    maps = torch.nn.functional.conv2d(
        images, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=(4, 16)
    )
    assert torch.allclose(tokens - table, maps.flatten(2).transpose(1, 2), atol=1e-5)


def test_the_same_command_is_the_same_run(place):
    before = (place / "run" / "model.safetensors").read_bytes()
    torchmae.pretrain(place / "photos", out=place / "run", **HERE)
    assert (place / "run" / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="patch"):
        torchmae.pretrain(place / "photos", out=place / "run", **{**HERE, "patch_size": 8})


def test_square_patches_stay_whole_numbers():
    """As on the command line, where they are text; config.json has what it always had."""
    for patch in (8, "8", "8x8"):
        config = Pretrain(SourceOptions("digits"), model=ModelOptions(patch_size=patch))
        assert requested(config)["patch_size"] == 8


def test_later_verbs_take_them(place, tmp_path):
    run, photos = place / "run", place / "photos"
    features = torchmae.embed(run, photos, out=tmp_path / "f.npz", device="cpu")
    assert np.load(features)["features"].shape == (12, 128)
    quick = dict(epochs=1, batch_size=6, workers=0, device="cpu", precision="fp32")
    tuned = torchmae.finetune(run, photos, out=tmp_path / "tuned", **quick)
    assert stored(Path(tuned))["model"]["encoder"]["patch_size"] == [4, 16]
    picture = tmp_path / "r.png"
    words = ["reconstruct", str(run), str(photos / "blob" / "0.jpg"), "--out", str(picture)]
    assert main(words) == 0 and picture.stat().st_size


def test_what_needs_squares_says_so(place, tmp_path):
    with pytest.raises(UserError, match="square patches"):
        torchmae.export(place / "run", out=tmp_path / "hf", to="transformers")


def test_segmenters_take_them_and_detectors_say_no():
    encoder = ViT((32, 64), (8, 16), embed_dim=32, depth=4, num_heads=2)
    segmenter = Segmenter(encoder, ["sky", "ground"], head="fpn", width=16)
    assert segmenter.predict(torch.zeros(1, 3, 45, 90, dtype=torch.uint8)).shape == (1, 45, 90)
    with pytest.raises(UserError, match="square patches, not patches of 8x16 px"):
        square(encoder)
