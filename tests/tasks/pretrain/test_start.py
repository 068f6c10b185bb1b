"""`mae pretrain --from RUN`: the start is RUN's weights bit for bit, made to fit other images; RUN
stays as it is."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import flat, pretrain_config, resolve_pretrain
from helpers.small import SMALL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import torchmae
from torchmae import cli
from torchmae import runfolder as runs
from torchmae.data.loader import Batch
from torchmae.data.scan import Scan
from torchmae.data.sources import open_source
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.models import patches, weights
from torchmae.models.decoders import DecoderConfig
from torchmae.models.encoders import build_encoder
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.masking import MaskGenerator
from torchmae.models.patches import patchify, resize_positions, sincos_positions
from torchmae.models.vit import ViT
from torchmae.models.weights import load, load_mae
from torchmae.runfolder import read_config
from torchmae.tasks.pretrain.run import make_batches
from torchmae.tasks.pretrain.start import (
    build_model,
    fit_target,
    init_from_run,
    sample_patches,
)
from torchmae.tasks.pretrain.task import PretrainTask
from torchmae.train.distributed import World

ONE = World(0, 1, torch.device("cpu"))
LIGHT = dict(batch_size=8, workers=0, device="cpu", precision="fp32")
STILL = dict(base_lr=0.0, epochs=1, **LIGHT)  # a training that moves nothing


def begin(run: Path, channels: int = 3, **options: Any) -> tuple[MAE, str, SimpleNamespace]:
    """The model before its first step, for data of so many channels; its origin in words; the
    settings."""
    requested = pretrain_config("photos", from_run=str(run), **options)
    requested.check()
    config, parent = init_from_run(requested, channels)
    assert parent is not None
    channels = config.decode.channels or channels
    found = Scan(24, [], 40, 48, (0.4,) * channels, (0.3,) * channels, True)
    facts = dict(images=24, height=40, width=48, channels=channels)
    resolved, _ = resolve_pretrain(config, **facts, embed_dim=parent.encoder.embed_dim)
    return *build_model(resolved, found, parent), flat(resolved)


def same(ours: nn.Module, theirs: nn.Module, but: Sequence[str] = ()) -> None:
    """Equal weights bit for bit; `but` are the only names with other ones."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert set(mine) == set(other)
    assert {name for name in mine if not torch.equal(mine[name], other[name])} == set(but)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def shake(module: nn.Module) -> None:
    """Away from initial values, which hide mistakes: zero biases, norms of ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def make_run(folder: Path, model: MAE | Classifier) -> Path:
    """A run folder of a model, as a training leaves it."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    runs.write_config(
        folder,
        "finetune" if isinstance(model, Classifier) else "pretrain",
        {},
        None,
        model.config(),
    )
    return folder


def make_mae(
    folder: Path, channels: int = 3, target: str = "norm-pixels", encode_all: bool = False
) -> Path:
    model = MAE(
        ViT((32, 32), 8, channels, 128, 6, 4),
        DecoderConfig("transformer", 32, 1, 4),
        target=target,
        encode_all=encode_all,
    )
    shake(model)
    return make_run(folder, model)


@pytest.fixture
def untouched(run: Path):
    before = contents(run)
    yield
    assert contents(run) == before


@pytest.mark.usefixtures("untouched")
def test_the_start_is_the_run_bit_for_bit_and_so_is_its_loss(run: Path) -> None:
    parent = load_mae(run)
    model, origin, config = begin(run)
    same(model, parent)
    assert model.config() == parent.config() and origin == f"{run}: encoder and decoder"
    assert (config.model, config.image_size, config.patch_size) == ("vit_micro", "32", 8)
    assert config.normalize == "run" and model.encoder.mean == parent.encoder.mean != (0.4,) * 3
    images = torch.randint(
        0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    batch = Batch(images, None, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    losses = [PretrainTask(m, MaskGenerator(), 0)(batch)["loss"].item() for m in (model, parent)]
    assert losses[0] == losses[1]
    assert not model.encoder.pos_embed.requires_grad and all(
        p.requires_grad for p in model.encoder.blocks.parameters()
    )


@pytest.mark.usefixtures("untouched")
def test_a_whole_training_starts_there(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """At learning rate 0 its last weights are its first ones."""
    out = torchmae.pretrain(photos, out=tmp_path / "out", from_run=run, **STILL)
    same(load_mae(out), load_mae(run))
    assert f"      start  {run}: encoder and decoder\n" in capsys.readouterr().out
    stored = read_config(out)["config"]
    assert (
        stored["from_run"] == str(run)
        and stored["new_decoder"] is False
        and stored["normalize"] == "run"
    )


def test_the_command_trains_on_at_another_resolution(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [
        "--image-size",
        "48x32",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    assert (
        cli.main(
            ["pretrain", str(photos), "--from", str(run), "--out", str(tmp_path / "out"), *flags]
        )
        == 0
    )
    assert "positions resized from 4x4 to 6x4" in capsys.readouterr().out
    assert load_mae(tmp_path / "out").encoder.image_size == (48, 32)


def test_another_resolution_resizes_positions_and_nothing_else(run: Path) -> None:
    parent = load_mae(run)
    model, origin, _ = begin(run, image_size="64x32")
    assert origin == f"{run}: encoder and decoder; positions resized from 4x4 to 8x4"
    assert torch.equal(
        model.encoder.pos_embed, resize_positions(parent.encoder.pos_embed, (4, 4), (8, 4))
    )
    assert torch.equal(model.decoder.pos_embed, sincos_positions((8, 4), 32))
    for part in (model.encoder, model.decoder):
        part.pos_embed = nn.Parameter(
            torch.zeros(1, 17, part.pos_embed.shape[-1]), requires_grad=False
        )
    same(model, parent, but=["encoder.pos_embed", "decoder.pos_embed"])
    turned, _, _ = begin(run, image_size="16x64")  # as many patches as before, elsewhere
    assert torch.equal(turned.decoder.pos_embed, sincos_positions((2, 8), 32))


@pytest.mark.parametrize("old, new", [(3, 1), (1, 3), (3, 5)])
def test_other_channels_give_the_same_for_images_whose_channels_are_alike(
    tmp_path: Path, old: int, new: int
) -> None:
    parent = load_mae(make_mae(tmp_path / "run", old))
    model, origin, config = begin(tmp_path / "run", new)
    assert origin.endswith(
        f"encoder and decoder; patch weights of {old} channels averaged to {new}"
    )
    assert config.normalize == "data" and model.encoder.mean == (0.4,) * new
    changed = ["encoder.patch_embed.proj.weight", "decoder.pred.weight", "decoder.pred.bias"]
    assert {
        n for n, w in model.state_dict().items() if w.shape != parent.state_dict()[n].shape
    } == set(changed)

    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torchmae.Mask(*torch.arange(16).expand(2, -1).split([4, 12], dim=1))
    ours, theirs = (
        m.eval()(images.expand(-1, n, -1, -1), mask).prediction
        for m, n in ((model, new), (parent, old))
    )
    # a value a channel: (images, patches, places, channels)
    ours, theirs = ours.unflatten(-1, (64, new)), theirs.unflatten(-1, (64, old))
    torch.testing.assert_close(
        ours, theirs.mean(-1, keepdim=True).expand_as(ours), rtol=1e-4, atol=1e-5
    )


def test_adapting_an_encoder() -> None:
    encoder = ViT((16, 16), 4, 3, 32, 2, 2)
    shake(encoder)
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    encoder.adapt(3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items())
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    torch.testing.assert_close(
        encoder.normalize(white)[0, :, 0, 0], torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6])
    )

    weight = before["patch_embed.proj.weight"]
    encoder.adapt(2, (0.1, 0.2), (0.3, 0.4))
    for channel in range(2):
        torch.testing.assert_close(
            encoder.patch_embed.proj.weight[:, channel], weight.mean(1) * 3 / 2
        )
    assert encoder.config()["channels"] == 2 and encoder.normalize(white[:, :2]).shape == (
        1,
        2,
        16,
        16,
    )
    built = build_encoder(encoder.config())
    built.load_state_dict(encoder.state_dict())
    images = torch.randn(2, 2, 16, 16)
    assert torch.equal(built(images), encoder(images))
    assert (
        encoder.patch_embed.proj(images)
        .flatten(2)
        .transpose(1, 2)
        .allclose(  # it is a whole convolution still
            encoder.patch_embed(patchify(images, (4, 4))), atol=1e-5
        )
    )
    with pytest.raises(UserError, match="one value for each of 3 channels"):
        encoder.adapt(3, (0.1,), (0.2, 0.2, 0.2))


def test_data_of_five_channels_and_grey_train_on_from_a_run_of_three(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 5), dtype=np.uint8)
    np.save(tmp_path / "deep.npy", pixels)
    deep = torchmae.pretrain(
        tmp_path / "deep.npy", out=tmp_path / "deep", from_run=run, epochs=1, **LIGHT
    )
    assert load_mae(deep).encoder.channels == 5
    np.testing.assert_allclose(load(deep).mean, pixels.mean((0, 1, 2)) / 255, atol=1e-4)
    grey = torchmae.pretrain(
        photos, out=tmp_path / "grey", channels=1, from_run=deep, epochs=1, **LIGHT
    )
    assert load_mae(grey).encoder.channels == 1


@pytest.mark.parametrize("normalize", ["data", "imagenet", "run"])
def test_statistics_as_asked(run: Path, normalize: str) -> None:
    model, _, _ = begin(run, normalize=normalize)
    means = {"data": (0.4,) * 3, "imagenet": patches.IMAGENET[0], "run": load(run).mean}
    assert model.encoder.mean == means[normalize]
    assert torch.equal(model.encoder.pixel_statistics[0].flatten(), torch.tensor(means[normalize]))


def test_a_new_decoder_is_that_of_the_seed(run: Path) -> None:
    model, origin, config = begin(run, new_decoder=True, decoder_dim=48, decoder_heads=4, seed=5)
    assert origin == f"{run}: encoder, with a new decoder" and config.decoder_depth is None
    encoder = load(run)
    with weights.seeded(5):
        same(model, MAE(encoder, DecoderConfig("transformer", 48, 2, 4)))
    again, other = (begin(run, new_decoder=True, seed=seed)[0] for seed in (0, 1))
    same(again, begin(run, new_decoder=True)[0])
    assert not torch.equal(again.decoder.mask_token, other.decoder.mask_token)
    assert len(again.decoder.blocks) == 2  # vit_micro's default, not the run's


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("was", [False, True])
def test_mask_tokens_in_encoder_or_decoder_as_the_new_command_says(
    tmp_path: Path, was: bool, now: bool
) -> None:
    parent = make_mae(tmp_path / "parent", encode_all=was)
    model, origin, _ = begin(parent, encode_all=now)
    assert model.encode_all is now and (", were in the " in origin) == (was != now)
    mine, theirs = model.state_dict(), load_mae(parent).state_dict()
    assert mine.keys() ^ theirs.keys() == (
        set() if was == now else {"mask_token", "decoder.mask_token"}
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in mine.keys() & theirs.keys())
    if was != now:
        names = ("encoder", "decoder") if now else ("decoder", "encoder")
        assert origin.endswith("; mask tokens in the {}, were in the {} (a new one)".format(*names))


def test_another_target_keeps_the_decoder_and_says_so(tmp_path: Path) -> None:
    """The statistics head is there only where the target needs it: gone, or new."""
    normal, raw = make_mae(tmp_path / "normal"), make_mae(tmp_path / "raw", target="pixels")
    model, origin, _ = begin(normal, target="pixels")
    assert origin.endswith("; target pixels, was norm-pixels (its layer keeps its weights)")
    parent = load_mae(normal)
    assert parent.decoder.statistics is not None and model.decoder.statistics is None
    parent.decoder.statistics = None
    same(model, parent)
    model, origin, _ = begin(raw)
    assert "target norm-pixels, was pixels" in origin
    assert (
        model.decoder.statistics is not None
        and model.decoder.statistics.weight.count_nonzero() == 0
    )
    model.decoder.statistics = None
    same(model, load_mae(raw))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_from_a_classifier_with_trained_positions(
    run: Path, photos: Path, tmp_path: Path, pool: str
) -> None:
    classifier = Classifier(load(run), ["a", "b"], pool)
    shake(classifier)
    folder = make_run(tmp_path / "classifier", classifier)
    out = torchmae.pretrain(photos, out=tmp_path / "out", from_run=folder, **STILL)
    own, theirs = load_mae(out).encoder, classifier.encoder
    if pool == "mean":  # it had no last norm
        assert (
            isinstance(own.norm, nn.LayerNorm)
            and own.norm.eps == 1e-6
            and bool((own.norm.weight == 1).all())
        )
        assert (
            begin(folder)[1] == f"{folder}: encoder, with a new decoder; new last norm "
            "(the classifier's was its own)"
        )
        own.norm = nn.Identity()
    else:
        assert begin(folder)[1] == f"{folder}: encoder, with a new decoder"
    same(own, theirs)
    assert not begin(folder)[0].encoder.pos_embed.requires_grad


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """An encoder alone, of a size without a name, with learned positions, as `mae import` makes
    it."""
    encoder = ViT((16, 16), 4, 3, 64, 2, 2)
    shake(encoder)
    save_file(encoder.state_dict(), tmp_path / "weights.safetensors")
    source = str(tmp_path / "weights.safetensors")
    return torchmae.import_(source, out=tmp_path / "imported", heads=2).path


def test_from_an_imported_encoder_of_a_size_without_a_name(
    imported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    capsys.readouterr()
    options = dict(out=tmp_path / "out", from_run=imported, epochs=1, **LIGHT)
    out = torchmae.pretrain(photos, **options)
    said = capsys.readouterr().out
    assert (
        f"  start  {imported}: encoder, with a new decoder\n" in said
        and "64 wide, 2 blocks, 0." in said
    )
    stored = read_config(out)["config"]
    assert stored["model"] is None and (stored["image_size"], stored["patch_size"]) == ("16", 4)
    assert stored["base_lr"] == 1.5e-4 * (4096 / 8) ** 0.75
    assert torchmae.pretrain(photos, **options) == out  # finished: nothing to do
    same(begin(imported)[0].encoder, load(imported))
    with pytest.raises(
        UserError,
        match=r"--model vit_micro, but that of .* is none with a name \(64 wide, 2 blocks, 2 heads",
    ):
        begin(imported, model="vit_micro")


def test_the_learning_rate_is_that_of_the_run_s_width(tmp_path: Path) -> None:
    wide = make_run(
        tmp_path / "wide",
        MAE(ViT((16, 16), 4, 3, 768, 1, 12), DecoderConfig("transformer", 32, 1, 4)),
    )
    assert begin(wide)[2].base_lr == 1.5e-4 and begin(wide)[2].model is None


def lights_out(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes a training fail in the middle, with a checkpoint of the step before."""
    forward, calls = PretrainTask.forward, iter(range(100))

    def fails(self: PretrainTask, batch: Batch) -> dict[str, Tensor]:
        if next(calls) == step:
            raise RuntimeError("the lights went out")
        return forward(self, batch)

    monkeypatch.setattr(PretrainTask, "forward", fails)


def test_a_run_that_was_stopped_ends_with_the_same_bits_without_its_parent(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    parent = make_mae(tmp_path / "parent")
    options = dict(from_run=str(parent), image_size=48, channels=1, epochs=2, **LIGHT)
    whole = torchmae.pretrain(photos, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        lights_out(patch, step=4)
        with pytest.raises(RuntimeError, match="lights"):
            torchmae.pretrain(photos, out=tmp_path / "cut", save_minutes=1e-6, **options)
    parent.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    cut = torchmae.pretrain(photos, out=tmp_path / "cut", **options)
    said = capsys.readouterr().out
    assert "resuming from step" in said and f"  start  {parent}; this run goes on" in said
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert torchmae.pretrain(photos, out=tmp_path / "cut") == cut  # what is left open is as it was
    for change, words in [
        (dict(new_decoder=True), "new_decoder was False, is True"),
        (dict(from_run="other"), f"from_run was {parent}, is other"),
        (dict(image_size=32), "image_size was 48, is 32"),
    ]:
        with pytest.raises(UserError, match=words):
            torchmae.pretrain(photos, out=tmp_path / "cut", **options | change)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "decoder of nothing": (
        dict(from_run=None, new_decoder=True),
        "--new-decoder .* add --from RUN",
    ),
    "statistics of nothing": (
        dict(from_run=None, normalize="run"),
        "--normalize run .* add --from RUN",
    ),
    "no run": (dict(from_run="nowhere"), "nowhere is not a run folder"),
    "model": (
        dict(model="vit_tiny"),
        "--model vit_tiny, but that of .*small.* is vit_micro: leave --model out$",
    ),
    "patch": (
        dict(patch_size=16),
        "--patch-size 16, but that of .*small.* is 8: leave --patch-size out$",
    ),
    "decoder width": (
        dict(decoder_dim=64),
        "--decoder-dim 64, but that of .* is 32: .* or add --new-decoder",
    ),
    "decoder depth": (
        dict(decoder_depth=2),
        "--decoder-depth 2, but that of .* is 1: .* or add --new-decoder",
    ),
    "decoder heads": (
        dict(decoder_heads=2),
        "--decoder-heads 2, but that of .* is 1: .* or add --new-decoder",
    ),
    "decoder": (
        dict(decoder="linear"),
        "--decoder linear, but that of .* is transformer: .*--new-dec",
    ),
    "registers": (dict(registers=4), "--registers 4, but that of .* is 0: leave --registers out$"),
    "image": (dict(image_size=36), "image size 36x36 is not divisible by patch size 8"),
    "statistics": (
        dict(channels=1, normalize="run"),
        "statistics of 3 channels of 8-bit pixels, and there are 1 of uint8: use --normalize data",
    ),
    "imagenet": (dict(channels=1, normalize="imagenet"), "needs 3 channels, not 1"),
    "one name": (dict(normalize="runs"), "data or imagenet, or run with --from"),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_before_anything_is_trained(
    run: Path, photos: Path, tmp_path: Path, mistake: str
) -> None:
    options, words = MISTAKES[mistake]
    with pytest.raises(UserError, match=words):
        torchmae.pretrain(
            photos, **dict(out=tmp_path / "out", from_run=str(run), epochs=1, **LIGHT) | options
        )
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.usefixtures("untouched")
def test_a_run_cannot_start_from_itself(run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    for out in (run, tmp_path / "link"):
        with pytest.raises(UserError, match="is that of --from, .* name a new one with --out"):
            torchmae.pretrain(photos, out=out, from_run=run, epochs=1, **LIGHT)


def test_a_run_without_weights(run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_bytes((run / "config.json").read_bytes())
    for options in ({}, {"new_decoder": True}):
        with pytest.raises(UserError, match="holds no weights yet"):
            torchmae.pretrain(
                photos,
                out=tmp_path / "out",
                from_run=tmp_path / "begun",
                epochs=1,
                **options,
                **LIGHT,
            )


def test_settings_that_repeat_the_run_s_are_welcome(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    out = torchmae.pretrain(photos, out=tmp_path / "out", from_run=run, epochs=1, **SMALL)
    assert json.loads((out / "config.json").read_text())["config"]["decoder_dim"] == 32
    assert (
        load_file(out / "model.safetensors").keys() == load_file(run / "model.safetensors").keys()
    )


# ---------------------------------------------------------------- a fitted target, other parts


def test_a_target_is_fitted_before_the_first_step_and_saved(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = dict(target="pca", epochs=2, **SMALL)
    out = torchmae.pretrain(photos, out=tmp_path / "one", **options)
    assert "target pca: fitted on 384 patches" in capsys.readouterr().out  # 24 images, 16 of each
    weights = load_file(out / "model.safetensors")
    assert weights["target.components"].shape == (192, 96)
    model = load_mae(out)
    assert not model.target.needs_fit and model.decoder.pred.out_features == 96
    config, _ = resolve_pretrain(pretrain_config("photos", image_size=32, batch_size=8))
    batches = make_batches(config, open_source(str(photos)), ONE)
    sample = sample_patches(model.encoder, batches)
    model.target.components.fill_(torch.nan)
    fit_target(model, batches, ONE)
    assert torch.equal(model.target.components, weights["target.components"])
    whole = torch.stack(
        [CenterCropResize((32, 32))(batches.read(i, [])[1])[0] for i in range(len(batches.source))]
    )
    patches = patchify(model.encoder.normalize(whole), (8, 8)).flatten(0, 1)
    assert torch.equal(sample.unique(dim=0), patches.unique(dim=0)), "all there are, of few images"
    again = torchmae.pretrain(photos, out=tmp_path / "two", **options)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    photo = str(next(photos.rglob("*.jpg")))
    picture = tmp_path / "x.png"
    assert cli.main(["reconstruct", str(out), photo, "--out", str(picture)]) == 0
    assert picture.exists() and "raw pixels as predicted" in capsys.readouterr().out


def test_a_fitted_target_is_carried_or_fitted_again(photos: Path, tmp_path: Path) -> None:
    parent = torchmae.pretrain(photos, out=tmp_path / "pca", target="pca", epochs=1, **SMALL)
    model, origin, _ = begin(parent, target="pca")
    same(model, load_mae(parent))
    assert origin == f"{parent}: encoder and decoder" and not model.target.needs_fit
    grey, _, _ = begin(parent, channels=1, target="pca")
    assert grey.target.needs_fit and grey.target.width == 64, "other patches, other components"
    pixels, origin, _ = begin(parent, target="pixels")
    assert "target pixels, was pca (a new layer)" in origin
    assert pixels.decoder.pred.out_features == 192 and not pixels.state_dict().get("target.mean")


def test_other_decoders_and_registers_go_on(photos: Path, tmp_path: Path) -> None:
    options = {n: v for n, v in SMALL.items() if n != "decoder_depth"}
    parts = dict(decoder="linear", registers=4)
    out = torchmae.pretrain(photos, out=tmp_path / "one", epochs=1, **parts, **options)
    parent = load_mae(out)
    assert parent.encoder.registers == 4 and parent.config()["decoder"]["kind"] == "linear"
    model, _, config = begin(out)
    same(model, parent)
    assert (config.registers, config.decoder) == (4, "linear")
    fresh, _, config = begin(out, new_decoder=True)
    assert fresh.config()["decoder"]["kind"] == config.decoder == "transformer"
    assert fresh.encoder.registers == 4
    again = torchmae.pretrain(photos, out=tmp_path / "one", epochs=1, **parts, **options)
    assert again == out
    with pytest.raises(UserError, match="the linear decoder has no blocks"):
        torchmae.pretrain(photos, out=tmp_path / "two", epochs=1, **parts, **SMALL)
