"""The classifier that a fine-tuning starts with: channels, other runs, the linear probe."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import QUICK
from safetensors.torch import load_file

import torchmae
from torchmae.errors import UserError
from torchmae.models.patches import resize_positions
from torchmae.models.weights import load_classifier, load_mae
from torchmae.runfolder import read_config

ONE = {**QUICK, "epochs": 1}


def test_the_linear_probe(run: Path, photos: Path, tmp_path: Path) -> None:
    """Frozen encoder, class token, BatchNorm without parameters; 0 blocks mean the same."""
    out = torchmae.finetune(run, photos, out=tmp_path / "p", train="0", **QUICK)
    config = read_config(out)
    assert (config["config"]["train"], config["config"]["optimizer"]) == ("head", "sgd")
    assert (config["model"]["pool"], config["model"]["batch_norm"]) == ("cls", True)
    model = load_classifier(out)
    assert not list(model.bn.parameters())
    assert model.bn.running_var is not None
    assert not torch.equal(model.bn.running_var, torch.ones(128))
    options = {"optimizer": "lars", "base_lr": 9.0, **QUICK}
    lars = torchmae.finetune(run, photos, out=tmp_path / "l", train="head", **options)
    assert not torch.equal(load_classifier(lars).head.weight, model.head.weight)


def test_channels_that_differ_are_refused_with_the_ways_out(run: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 10)
    for channels in (1, 5):
        pixels = generator.integers(0, 256, (20, 32, 32, channels), dtype=np.uint8)
        np.savez(tmp_path / f"{channels}.npz", images=pixels, labels=labels)
    grey, five = tmp_path / "1.npz", tmp_path / "5.npz"
    for data, options, message in (
        (five, {}, r"takes 3 channels, .* has 5: --channels 5 adapts the run's patch weights"),
        (five, {"channels": 3}, "--channels 3: .* has 5, and only gray and color convert"),
    ):
        with pytest.raises(UserError, match=message):
            torchmae.finetune(run, data, out=tmp_path / "out", **options, **ONE)
    out = torchmae.finetune(run, grey, out=tmp_path / "as the run", **ONE)
    assert load_classifier(out).encoder.channels == 3  # grey and colour convert to each other
    for data, channels in ((grey, 3), (grey, 1), (five, 5)):
        out = tmp_path / f"{data.stem}-{channels}"
        torchmae.finetune(run, data, out=out, channels=channels, **ONE)
        assert load_classifier(out).encoder.channels == channels


def test_a_classifier_as_the_run_gives_its_encoder(run: Path, photos: Path, tmp_path: Path) -> None:
    first = torchmae.finetune(run, photos, out=tmp_path / "first", **ONE)
    for pool in ("mean", "cls"):
        still = {"base_lr": 0.0, "min_lr": 0.0, **ONE}
        out = torchmae.finetune(Path(first), photos, out=tmp_path / pool, pool=pool, **still)
        ours, theirs = load_classifier(out), load_file(first / "model.safetensors")
        for name, value in ours.encoder.state_dict().items():
            if not name.startswith("norm."):
                assert torch.equal(value, theirs[f"encoder.{name}"]), name
        tokens = ours.encoder(torch.zeros(1, 3, 32, 32))
        has_norm = tokens[0, 0].std(correction=0).item() == pytest.approx(1, abs=0.01)
        assert has_norm == (pool == "cls")


def test_from_scratch_with_the_architecture_of_a_run(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    out = torchmae.finetune("none", photos, out=tmp_path / "s", model=run, seed=5, **ONE)
    ours, theirs = (read_config(folder)["model"]["encoder"] for folder in (out, run))
    names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "channels")
    assert [ours[name] for name in names] == [theirs[name] for name in names]
    name = "encoder.blocks.0.mlp.fc1.weight"
    a, b = (load_file(folder / "model.safetensors")[name] for folder in (Path(out), run))
    assert not torch.allclose(a, b, atol=0.01)


def test_positions_are_resized_by_the_rule_that_is_named_and_kept(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    before = load_file(run / "model.safetensors")["encoder.pos_embed"]
    for rule in ("timm", "reference"):
        options = {"train": "head", "clamp_crops": rule == "reference", **ONE}
        out = torchmae.finetune(
            run, photos, out=tmp_path / rule, image_size=56, position_resizing=rule, **options
        )
        found = load_classifier(out).encoder.pos_embed  # frozen: as they were resized
        assert torch.equal(found, resize_positions(before, (4, 4), (7, 7), rule))
        assert read_config(out)["config"]["clamp_crops"] == options["clamp_crops"]
        # A later training from that run resizes alike, without the flag.
        later = torchmae.finetune(out, photos, out=tmp_path / f"{rule}-2", image_size=40, **options)
        again = load_classifier(later).encoder.pos_embed
        assert torch.equal(again, resize_positions(found, (7, 7), (5, 5), rule))
        continued = torchmae.pretrain(
            photos, out=tmp_path / f"{rule}-3", from_run=out, image_size=24, epochs=1, batch_size=8,
            workers=0, device="cpu", decoder_dim=32, decoder_depth=1,
        )  # fmt: skip
        encoder = load_mae(continued).encoder
        assert torch.equal(encoder.pos_embed, resize_positions(found, (7, 7), (3, 3), rule))
        assert encoder.config()["position_resizing"] == rule
    with pytest.raises(UserError, match="unknown --position-resizing 'mae'; one of: timm, ref"):
        torchmae.finetune(run, photos, out=tmp_path / "no", position_resizing="mae")
