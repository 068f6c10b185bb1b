"""--aspect keep: batches of several shapes, a pure function of the step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import SMALL, make_photos
from PIL import Image

import torchmae
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import UserError
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.masking import mask_from_bool
from torchmae.models.vit import ViT
from torchmae.settings.options import parse_size
from torchmae.tasks.pretrain.config import shapes_of
from torchmae.tasks.pretrain.run import aspects_of

KEEP = {**SMALL, "aspect": "keep", "schedule": "wsd", "warmup_epochs": 0.2, "labelled": "none"}
SHAPES = ((32, 32), (24, 40), (40, 24))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upright and lying photos."""
    folder = make_photos(tmp_path_factory.mktemp("photos") / "p", each=4)
    for file in sorted(folder.rglob("*.jpg"))[::2]:
        image = Image.open(file)
        image.resize((24, 48)).save(file)
    return folder


@pytest.mark.parametrize("aspect", [0.1, 0.5, 0.75, 1.0, 4 / 3, 2.0, 3.0])
def test_the_shape_of_an_aspect(aspect):
    (text,) = shapes_of([aspect], (224, 224), (16, 16))
    height, width = parse_size(text)
    patches = height // 16 * (width // 16)
    assert 0.9 * 196 <= patches <= 196
    assert abs(np.log(height / width / max(1 / 3, aspect))) < 0.15


def test_shapes_come_as_often_as_images_have_them():
    sizes = np.array([[100, 100]] * 12 + [[0, 0]] + [[200, 100]] * 4)
    found = shapes_of(aspects_of(sizes), (32, 32), (8, 8))
    assert sorted(found).count("32") == 12 and len(found) == 16


def test_a_step_has_one_shape_whatever_the_processes(photos):
    source, crop = open_source(photos), RandomResizedCropFlip((32, 32), 3, aspects=(1.0, 1.0))
    whole = Batches(source, crop, 4, 3, shapes=SHAPES)
    halves = [Batches(source, crop, 4, 3, rank, 2, shapes=SHAPES) for rank in range(2)]
    seen = set()
    for step in range(8):
        images = whole[step].images
        seen.add(tuple(images.shape[2:]))
        assert torch.equal(images, torch.cat([half[step].images for half in halves]))
    assert seen == set(SHAPES)


def test_crops_are_not_stretched():
    crop = RandomResizedCropFlip((24, 40), 0, (0.2, 1.0), aspects=(1.0, 1.0))
    for sample in range(50):
        window = crop.crop(480, 640, 0, sample)
        assert abs(window.width / window.height * 24 / 40 - 1) < 0.02


def test_another_shape_is_as_a_model_of_that_size():
    """Of images of another shape the loss is that of the same weights resized to it."""
    torch.manual_seed(0)
    sizes = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2)
    decoder = DecoderConfig("transformer", 16, 1, 2)
    model = MAE(ViT((32, 32), **sizes), decoder)
    other = MAE(ViT((24, 40), **sizes), decoder)
    weights = model.state_dict()
    table = torch.nn.functional.interpolate
    for name, dim in (("encoder.pos_embed", 32), ("decoder.pos_embed", 16)):
        grid = weights[name][:, 1:].reshape(1, 4, 4, dim).permute(0, 3, 1, 2)
        grid = table(grid, size=(3, 5), mode="bicubic", antialias=True)
        rows = grid.flatten(2).transpose(1, 2)
        weights[name] = torch.cat([weights[name][:, :1], rows], dim=1)
    other.load_state_dict(weights)
    images, hidden = torch.randn(2, 3, 24, 40), torch.zeros(2, 15, dtype=torch.bool)
    hidden[:, ::2] = True
    mask = mask_from_bool(hidden)
    one, two = model(images, mask), other(images, mask)
    assert torch.allclose(one.loss, two.loss) and torch.allclose(one.prediction, two.prediction)
    with pytest.raises(UserError, match="disagree"):
        model(torch.randn(2, 3, 32, 32), mask)


def test_a_run_goes_on_as_if_it_had_never_ended(photos, tmp_path):
    whole = torchmae.pretrain(photos, out=tmp_path / "whole", epochs=3, **KEEP)
    config = json.loads((Path(whole) / "config.json").read_text())["config"]
    assert len(config["shapes"]) == 16 and len(set(config["shapes"])) > 1
    torchmae.pretrain(photos, out=tmp_path / "parts", epochs=1.5, **KEEP)
    torchmae.pretrain(photos, out=tmp_path / "parts", epochs=3, **KEEP)
    one, two = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts"))
    assert one == two


def test_what_does_not_go_together(photos, tmp_path):
    with pytest.raises(UserError, match="one shape"):
        torchmae.pretrain(photos, out=tmp_path / "a", **{**KEEP, "cache": "device"})
    with pytest.raises(UserError, match="--aspect"):
        torchmae.pretrain(photos, out=tmp_path / "a", **{**KEEP, "aspect": "kept"})
