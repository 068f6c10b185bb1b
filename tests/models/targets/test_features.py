"""Features of another encoder as a target: those that `torchmae.load` gives, frozen."""

import pytest
import torch
import torch.nn.functional as F
from helpers.mae import DECODER, some, tiny
from helpers.small import SMALL, make_photos

import torchmae
from torchmae import cli
from torchmae.errors import UserError
from torchmae.models.mae import MAE
from torchmae.models.targets import build_target
from torchmae.models.weights import load_weights
from torchmae.train.optim import param_groups_weight_decay


def test_they_are_the_encoder_s_of_the_same_pixels():
    torch.manual_seed(0)
    teacher = tiny((16, 16))
    mean, std = (0.1, 0.45, 0.8), (0.3, 0.2, 0.4)
    target = build_target({"name": "run", "model": teacher.config()}, (4, 4), 3, mean, std)
    ids = torch.stack([torch.randperm(16)[:5] for _ in range(4)])
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    images = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert target(images, ids).isnan().all(), "nothing is loaded"
    load_weights(target.network, target.network_weights(teacher.state_dict()), "teacher")
    with torch.no_grad():
        tokens = teacher.encoder(teacher.encoder.normalize(pixels))[:, 1:]
    wanted = torch.stack([F.layer_norm(x[i], (32,)) for x, i in zip(tokens, ids)])
    torch.testing.assert_close(target(images, ids), wanted, atol=1e-4, rtol=1e-4)
    wide = F.pad(images, (0, 16))  # any size of the same patches
    assert target(wide, ids + 16).shape == (4, 5, 32)


def test_nothing_trains_them():
    teacher = tiny((16, 16))
    model = MAE(tiny((16, 16)).encoder, DECODER, {"name": "run", "model": teacher.config()})
    load_weights(model.target.network, model.target.network_weights(teacher.state_dict()), "x")
    assert not list(model.target.parameters())
    assert not any(
        parameter is buffer
        for group in param_groups_weight_decay(model, 0.1)
        for parameter in group["params"]
        for buffer in model.target.buffers()
    )
    before = {name: value.clone() for name, value in model.target.state_dict().items()}
    images, mask = some(model)
    loss = model.train()(images, mask).loss
    loss.backward()
    assert loss.isfinite() and not model.target.network.training
    assert all(torch.equal(value, before[n]) for n, value in model.target.state_dict().items())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    photos = make_photos(folder / "photos")
    return photos, torchmae.pretrain(str(photos), out=str(folder / "run"), epochs=1, **SMALL).path


def test_a_run_trains_on_the_features_of_another(teacher, tmp_path):
    photos, run = teacher
    asked = dict(out=str(tmp_path / "run"), target=f"run:{run}", epochs=1, **SMALL)
    made = torchmae.pretrain(str(photos), **asked).path
    assert torchmae.pretrain(str(photos), **asked).path == made, "it is finished"
    model, old = torchmae.models.weights.load_mae(made), torchmae.models.weights.load_mae(run)
    for name, value in old.encoder.state_dict().items():
        assert torch.equal(model.target.network.state_dict()[name], value)
    assert not (made / "pictures").exists()
    assert cli.main(["knn", str(made), str(photos)]) == 0


def test_what_does_not_fit_is_said_in_one_line(teacher, tmp_path):
    photos, run = teacher
    for options, words in {
        ("patch_size", 4): "has patches of 8 px, the model 4: use --patch-size 8",
        ("channels", 1): "takes 3 channels, the model 1",
        ("target", "run"): "--target run needs a run with an encoder .* --target run:RUN",
    }.items():
        asked = {**SMALL, "target": f"run:{run}", **dict([options])}
        with pytest.raises(UserError, match=words):
            torchmae.pretrain(str(photos), out=str(tmp_path / "run"), **asked)
