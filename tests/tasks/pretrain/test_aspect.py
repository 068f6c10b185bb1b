"""--aspect keep: batches of several shapes, a pure function of the step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import SMALL, make_photos
from PIL import Image

import torchmae
from torchmae.data.loader import Batches, read_pixels
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


@pytest.fixture(scope="module")
def kept(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "run"
    return Path(torchmae.pretrain(photos, out=out, epochs=1, **KEEP))


def test_later_verbs_see_the_shape_of_each_image(kept, photos, tmp_path):
    """Features of an image among others of any shape are those of it alone, by plain arithmetic."""
    file = torchmae.embed(kept, photos, out=tmp_path / "all.npz", batch_size=5, device="cpu")
    with np.load(file) as arrays:
        found = dict(zip(arrays["paths"].tolist(), arrays["features"]))
    encoder, source = torchmae.load(kept), open_source(photos)
    assert [source.name(i) for i in range(len(source))] == list(found)
    config, seen = json.loads((kept / "config.json").read_text())["config"], set()
    shapes = [parse_size(text) for text in config["shapes"]]
    for i in range(len(source)):
        image = torch.from_numpy(read_pixels(source, i).copy()).permute(2, 0, 1)[None]
        height, width = image.shape[2:]
        size = min(shapes, key=lambda one: abs(np.log(one[0] / one[1] / height * width)))
        seen.add(size)
        side = min(height / size[0], width / size[1])
        h, w = round(side * size[0]), round(side * size[1])
        top, left = (height - h) // 2, (width - w) // 2
        crop = image[:, :, top : top + h, left : left + w]
        small = torch.nn.functional.interpolate(crop, size=size, mode="bicubic", antialias=True)
        with torch.no_grad():
            (map_,) = encoder.forward_intermediates(encoder.normalize(small), [-1], norm=True)
        assert np.allclose(map_[0].mean((1, 2)), found[source.name(i)], atol=1e-5)
    assert len(seen) == 2
    again = encoder.features([Image.open(source.path(i)) for i in range(6)])
    assert np.allclose(again, [found[source.name(i)] for i in range(6)], atol=1e-5)


def test_verbs_take_images_of_several_shapes(kept, photos, tmp_path, caplog):
    score = torchmae.knn(kept, photos, device="cpu")
    assert score["k"] == 20, score
    upright = next(path for path in photos.rglob("*.jpg") if Image.open(path).height == 48)
    torchmae.search(kept, photos, query=(str(upright),), out=tmp_path / "s.csv", device="cpu")
    first = (tmp_path / "s.csv").read_text().splitlines()[1]
    assert upright.name in first and float(first.rpartition(",")[2]) < 1e-4  # itself
    torchmae.reconstruct(kept, (str(upright),), out=tmp_path / "r.png", scale=1, device="cpu")
    torchmae.embed(kept, photos, pool="tokens", out=tmp_path / "t.safetensors", device="cpu")
    assert "center crop shows little" not in caplog.text
