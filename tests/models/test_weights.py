"""A run folder gives back its model; what is wrong with a folder is said in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from torchmae.errors import UserError
from torchmae.models import masking
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.vit import ViT
from torchmae.models.weights import load, load_mae, load_weights, read_weights
from torchmae.runfolder import read_config

LOADERS = [load, load_mae]


@pytest.fixture
def mae():
    torch.manual_seed(0)
    encoder = ViT(
        (8, 12),
        4,
        2,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mean=(0.1, 0.2),
        std=(0.3, 0.4),
        drop_path=0.2,
    )
    mae = MAE(encoder, DecoderConfig("transformer", 8, 1, 2))
    with torch.no_grad():
        for parameter in mae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return mae


@pytest.fixture
def run(mae, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": mae.config(), "seed": 1}))
    save_file(mae.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def change(run, edit):
    """Writes the run's weights again after `edit(weights)`."""
    weights = load_file(run / "model.safetensors")
    edit(weights)
    save_file(weights, run / "model.safetensors")


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_load(mae, run, kind):
    encoder, images = load(kind(run)), torch.randn(3, 2, 8, 12)
    assert isinstance(encoder, ViT) and not any(module.training for module in encoder.modules())
    assert torch.equal(encoder(images), mae.eval().encoder(images))
    assert (
        encoder.image_size == (8, 12) and encoder.mean == (0.1, 0.2) and encoder.std == (0.3, 0.4)
    )
    assert encoder.config() == mae.encoder.config()
    pixels = torch.randint(0, 256, (3, 2, 8, 12), dtype=torch.uint8)
    assert torch.equal(encoder.normalize(pixels), mae.encoder.normalize(pixels))


def test_load_mae(mae, run):
    again, images = load_mae(run), torch.randn(3, 2, 8, 12)
    assert not any(module.training for module in again.modules())
    mask = masking.random(masking.noise(0, torch.zeros(3).long(), torch.arange(3), 6), (2, 3), 0.5)
    for a, b in zip(again(images, mask), mae.eval()(images, mask)):
        assert torch.equal(a, b)
    assert again.config() == mae.config()
    assert all(
        torch.equal(value, mae.state_dict()[name]) for name, value in again.state_dict().items()
    )
    assert not again.encoder.pos_embed.requires_grad and not again.decoder.pos_embed.requires_grad


def test_loading_draws_nothing_that_stays(run):
    torch.manual_seed(1)
    first = load_mae(run).state_dict()
    torch.manual_seed(2)
    assert all(
        torch.equal(value, first[name]) for name, value in load_mae(run).state_dict().items()
    )


def test_half_precision_weights_become_floats(mae, run):
    change(run, lambda weights: weights.update({name: w.bfloat16() for name, w in weights.items()}))
    encoder = load(run)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    assert torch.equal(encoder.cls_token, mae.encoder.cls_token.bfloat16().float())


@pytest.mark.parametrize("loader", LOADERS)
def test_not_a_run_folder(loader, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            UserError,
            match=f"{path} is not a run folder .*no config.json.*finetune or import made$",
        ):
            loader(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"model": 3}',
        '{"model": {}}',
        '{"model": {"encoder": 3}}',
        "\x00",
    ],
)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_config_that_is_none(loader, run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json does not describe a torchmae model"):
        loader(run)


def test_a_config_of_bytes(run):
    (run / "config.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"config\.json does not describe a torchmae model"):
        read_config(run)


@pytest.mark.parametrize(
    "part,name,value,message",
    [
        ("encoder", "mlp_ratio", "4", "mlp_ratio '4' of a model: a number"),
        ("encoder", "num_heads", [2], r"num_heads \[2\] of a model: a number"),
        ("encoder", "image_size", "8x12", "image_size is '8x12' and must be 2 numbers"),
        ("encoder", "init_values", "no", "init_values is 'no' and must be a number or None"),
        ("encoder", "colors", 3, "made by another version .*colors"),
        ("encoder", "mean", [0.1, "x"], r"mean is \(0.1, 'x'\) and must be a list of numbers"),
    ],
)
def test_a_value_of_another_type_is_named(run, part, name, value, message):
    config = json.loads((run / "config.json").read_text())
    config["model"][part][name] = value
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_mae(run)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_weights(loader, run):
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"{run} holds no weights yet"):
        loader(run)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("loader", LOADERS)
def test_truncated_weights(loader, run, share):
    path = run / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        loader(run)


def test_a_pickle_is_never_loaded(run):
    torch.save({"encoder.cls_token": torch.zeros(1, 1, 16)}, run / "model.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(run)


@pytest.mark.parametrize("loader", LOADERS)
def test_wrong_shapes(loader, run):
    change(run, lambda weights: weights.update({"encoder.norm.weight": torch.zeros(17)}))
    with pytest.raises(
        UserError, match=r"do not fit.*norm.weight is \[17\], not \[16\] \(1 difference\)"
    ):
        loader(run)


@pytest.mark.parametrize("loader", LOADERS)
def test_positions_of_another_grid(loader, run):
    change(run, lambda weights: weights.update({"encoder.pos_embed": torch.zeros(1, 10, 16)}))
    with pytest.raises(UserError, match=r"pos_embed is \[1, 10, 16\], not \[1, 7, 16\]"):
        loader(run)


@pytest.mark.parametrize("loader", LOADERS)
def test_missing_and_unknown_names(loader, run):
    def edit(weights):
        weights["encoder.norm.gamma"] = weights.pop("encoder.norm.weight")

    change(run, edit)
    with pytest.raises(
        UserError,
        match=r"norm.weight is missing; (encoder\.)?norm.gamma is not known \(2 differences\)",
    ):
        loader(run)


def test_a_missing_decoder_matters_to_the_whole_model_only(run):
    def edit(weights):
        for name in [name for name in weights if name.startswith("decoder.")]:
            del weights[name]

    change(run, edit)
    load(run)
    with pytest.raises(
        UserError, match=r"decoder.mask_token is missing; .*; .* \(\d\d differences\)"
    ):
        load_mae(run)


def test_a_bad_load_leaves_the_model_as_it_was(mae):
    before = {name: value.clone() for name, value in mae.encoder.state_dict().items()}
    weights = {name: torch.zeros_like(value) for name, value in before.items()}
    del weights["norm.bias"]
    with pytest.raises(
        UserError, match=r"weights of here do not fit its model: norm\.bias is missing"
    ):
        load_weights(mae.encoder, weights, "here")
    assert all(torch.equal(value, before[name]) for name, value in mae.encoder.state_dict().items())
