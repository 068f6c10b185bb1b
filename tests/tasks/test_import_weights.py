"""Weights of other libraries become run folders whose outputs are the other library's; bad files
are refused, never run."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import Block
from torch import nn

import torchmae
from torchmae.cli import main
from torchmae.errors import UserError
from torchmae.models.heads import trainable
from torchmae.models.masking import Mask
from torchmae.models.weights import load, load_classifier, load_mae
from torchmae.runfolder import read_config
from torchmae.tasks.import_weights.config import Import
from torchmae.tasks.import_weights.run import run

SMALL = dict(patch_size=4, embed_dim=128, depth=2, num_heads=4)


def bring(source, out, **options):
    return run(Import(str(source), str(out), **options))


def shaken(model):
    """All weights away from their initial values, which hide mistakes (zeros, ones, equal rows)."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def vit(**options):
    options = {"img_size": 16, "num_classes": 0, **SMALL, **options}
    return shaken(timm.models.VisionTransformer(**options))


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def hugging_face(kind, **options):
    sizes = dict(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=16,
    )
    sizes |= dict(patch_size=4)
    if kind.startswith("ViTMAE"):
        sizes |= dict(
            decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=4
        )
        sizes |= dict(decoder_intermediate_size=256)
        config = transformers.ViTMAEConfig(**sizes | options)
    else:
        config = transformers.ViTConfig(**sizes | options)  # type: ignore[assignment]
    return shaken(getattr(transformers, kind)(config))


# The layouts of facebookresearch/mae


def test_mae_pretrain_file(tmp_path, images, capsys):
    source = vit()
    torch.save({"model": source.state_dict()}, tmp_path / "mae_pretrain_vit.pth")
    out = bring(tmp_path / "mae_pretrain_vit.pth", tmp_path / "run")
    assert torch.equal(load(out)(images), source.forward_features(images))
    said = capsys.readouterr().out
    assert "encoder in the layout of timm" in said and "30 tensors, 30 mapped" in said
    assert "missing, so mae reconstruct refuses" in said and "4 heads (assumed)" in said
    assert "learned" in said and "all finite" in said and "0.485" in said
    with pytest.raises(
        UserError, match=r"holds an encoder only, no decoder: import a file .*mae_visualize"
    ):
        load_mae(out)
    with pytest.raises(UserError, match="holds no classifier"):
        load_classifier(out)


VISUALIZE = [
    *(
        "cls_token",
        "pos_embed",
        "mask_token",
        "decoder_pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    ),
    *(
        "blocks.{}.norm1.weight",
        "blocks.{}.norm1.bias",
        "blocks.{}.attn.qkv.weight",
        "blocks.{}.attn.qkv.bias",
    ),
    *(
        "blocks.{}.attn.proj.weight",
        "blocks.{}.attn.proj.bias",
        "blocks.{}.norm2.weight",
        "blocks.{}.norm2.bias",
    ),
    *(
        "blocks.{}.mlp.fc1.weight",
        "blocks.{}.mlp.fc1.bias",
        "blocks.{}.mlp.fc2.weight",
        "blocks.{}.mlp.fc2.bias",
    ),
    *(
        "norm.weight",
        "norm.bias",
        "decoder_embed.weight",
        "decoder_embed.bias",
        "decoder_norm.weight",
    ),
    *("decoder_norm.bias", "decoder_pred.weight", "decoder_pred.bias"),
]


class Reference(nn.Module):
    """A masked autoencoder with the reference's names, of timm's blocks, written for this test."""

    def __init__(self, dim=128, width=64):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = timm.layers.PatchEmbed(16, 4, 3, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(
            *(Block(dim, 4, qkv_bias=True, norm_layer=norm) for _ in range(2))
        )
        self.decoder_embed = nn.Linear(dim, width)
        self.decoder_blocks = nn.Sequential(
            *(Block(width, 2, qkv_bias=True, norm_layer=norm) for _ in range(2))
        )
        self.norm = norm(dim)
        self.decoder_norm = norm(width)
        self.decoder_pred = nn.Linear(width, 48)

    def forward(self, images, order, visible):
        """Predictions of all patches, in their places."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        rows = torch.arange(len(images)).unsqueeze(1)
        x = torch.cat(
            [
                (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1),
                x[rows, order[:, :visible]],
            ],
            1,
        )
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        full = self.mask_token.repeat(len(x), order.shape[1], 1)
        full[rows, order[:, :visible]] = x[:, 1:]
        x = torch.cat([x[:, :1], full], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


def random_mask(count, visible=4, batch=3):
    order = torch.rand(batch, count, generator=torch.Generator().manual_seed(2)).argsort(1)
    return order, Mask(order[:, :visible], order[:, visible:])


@pytest.mark.parametrize(
    "name, target", [("mae_visualize_vit.pth", "pixels"), ("full.pth", "norm-pixels")]
)
def test_mae_visualize_file(tmp_path, images, capsys, name, target):
    source = shaken(Reference())
    weights = source.state_dict()
    listed = {n.format(i) for n in VISUALIZE for i in range(2)}
    listed |= {
        f"decoder_{n}".format(i) for n in VISUALIZE if n.startswith("blocks") for i in range(2)
    }
    assert set(weights) == listed
    torch.save({"model": weights}, tmp_path / name)
    model = load_mae(bring(tmp_path / name, tmp_path / "run"))
    assert (
        model.target_name == target
        and f"predicts {target} (assumed; --target" in capsys.readouterr().out
    )
    order, mask = random_mask(16)
    expected = source(images, order, 4)[torch.arange(3).unsqueeze(1), mask.hide]
    torch.testing.assert_close(model(images, mask).prediction, expected, rtol=0, atol=1e-5)


def test_a_training_checkpoint_says_its_target(tmp_path):
    arguments = argparse.Namespace(
        norm_pix_loss=False, mask_ratio=0.6, input_size=16, lr=1e-3, output_dir="x"
    )
    everything = {
        "model": shaken(Reference()).state_dict(),
        "optimizer": {"state": {}},
        "epoch": 3,
        "args": arguments,
    }
    torch.save(everything, tmp_path / "checkpoint-3.pth")
    out = bring(tmp_path / "checkpoint-3.pth", tmp_path / "run")
    assert load_mae(out).target_name == "pixels" and read_config(out)["config"]["mask_ratio"] == 0.6
    again = bring(tmp_path / "checkpoint-3.pth", tmp_path / "other", target="norm-pixels")
    assert load_mae(again).target_name == "norm-pixels"


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_fine_tuned_file(tmp_path, images, capsys, pool):
    source = vit(num_classes=5, global_pool=pool)
    torch.save({"model": source.state_dict()}, tmp_path / "finetuned.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\nemu\n")
    model = load_classifier(
        bring(tmp_path / "finetuned.pth", tmp_path / "run", classes=str(tmp_path / "names.txt"))
    )
    assert (
        model.classes == ("ant", "bee", "cat", "dog", "emu")
        and "classifier" in capsys.readouterr().out
    )
    torch.testing.assert_close(model(images), source(images), rtol=0, atol=1e-5)
    tokens = load(tmp_path / "run")(images)
    torch.testing.assert_close(tokens, source.forward_features(images), rtol=0, atol=1e-5)
    assert isinstance(load(tmp_path / "run").norm, nn.Identity if pool == "avg" else nn.LayerNorm)
    with pytest.raises(UserError, match="holds a classifier, no decoder"):
        load_mae(tmp_path / "run")


def test_linear_probe_file(tmp_path, images):
    source = vit(num_classes=5)
    source.head = nn.Sequential(nn.BatchNorm1d(128, affine=False, eps=1e-6), source.head)
    source.train()(torch.randn(8, 3, 16, 16))
    torch.save({"model": source.eval().state_dict()}, tmp_path / "probe.pth")
    model = load_classifier(bring(tmp_path / "probe.pth", tmp_path / "run"))
    torch.testing.assert_close(model(images), source(images), rtol=0, atol=1e-5)
    assert model.classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    "size, classes, share", [(16, 5, 0.875), (224, 5, 0.875), (228, 5, 1.0), (16, 0, 1.0)]
)
def test_a_fine_tuned_file_is_measured_as_the_reference_does(
    tmp_path, capsys, size, classes, share
):
    source = vit(img_size=size, num_classes=classes, embed_dim=64, depth=1)
    torch.save({"model": source.state_dict()}, tmp_path / "finetuned.pth")
    out = bring(tmp_path / "finetuned.pth", tmp_path / "run", heads=4)
    assert read_config(out)["config"]["crop_pct"] == share
    assert f"evaluation sees {share:g} of an image's sides (assumed" in capsys.readouterr().out
    again = bring(tmp_path / "finetuned.pth", tmp_path / "other", heads=4, crop_pct=0.9)
    assert read_config(again)["config"]["crop_pct"] == 0.9
    for wrong in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(
            UserError, match="--crop-pct .*: must be (more than 0|at most 1|a finite number)"
        ):
            bring(tmp_path / "finetuned.pth", tmp_path / "third", heads=4, crop_pct=wrong)
    assert not (tmp_path / "third").exists()


# Other methods' checkpoints of timm's ViT


def beside(prefix):
    """A tensor of a projection or another part beside an encoder."""
    return {f"{prefix}0.weight": torch.ones(3, 2)}


def under(prefix, weights):
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


def test_moco_v3_file(tmp_path, images, capsys):
    """Its own evaluation takes the base encoder without its projection."""
    source, other = vit(), shaken(vit())
    weights = under("module.base_encoder.", source.state_dict())
    weights |= under("module.momentum_encoder.", {n: w + 1 for n, w in other.state_dict().items()})
    weights |= beside("module.base_encoder.head.") | beside("module.predictor.")
    everything = {"epoch": 300, "arch": "vit_base", "state_dict": weights, "optimizer": {}}
    torch.save(everything, tmp_path / "vit-b-300ep.pth.tar")
    encoder = load(bring(tmp_path / "vit-b-300ep.pth.tar", tmp_path / "run"))
    assert torch.equal(encoder(images), source.forward_features(images))
    said = capsys.readouterr().out
    assert "encoder in the layout of MoCo v3" in said and "30 mapped" in said
    assert (
        "momentum_encoder (30 tensors), base_encoder.head (1 tensor), predictor (1 tensor)" in said
    )


def test_the_heads_of_moco_v3s_small_vit(tmp_path):
    """12, where timm's and DeiT's have 6; nothing in its tensors shows it."""
    source = vit(embed_dim=384, depth=1, num_heads=12)
    weights = under("module.base_encoder.", source.state_dict())
    torch.save({"state_dict": weights}, tmp_path / "vit-s-300ep.pth.tar")
    encoder = load(bring(tmp_path / "vit-s-300ep.pth.tar", tmp_path / "run"))
    images = torch.randn(2, 3, 16, 16)
    assert encoder.num_heads == 12 and torch.equal(encoder(images), source.forward_features(images))


@pytest.mark.parametrize(
    "prefixes, chosen",
    [
        ({"teacher": "backbone.", "student": "module.backbone."}, "teacher"),
        ({"student": "module.backbone."}, "student"),
        ({"teacher": "module.backbone.", "student": "backbone."}, "teacher"),
    ],
)
def test_dino_file(tmp_path, images, capsys, prefixes, chosen):
    """A checkpoint of DINO or iBOT; its own evaluation takes the teacher."""
    models = {part: vit() for part in prefixes}
    everything = {"epoch": 100, "args": argparse.Namespace(arch="vit_small", patch_size=16)}
    for shift, (part, prefix) in enumerate(prefixes.items()):
        weights = {n: w + shift for n, w in models[part].state_dict().items()}
        models[part].load_state_dict(weights)
        weights = under(prefix, weights) | {f"{prefix}masked_embed": torch.ones(1, 128)}
        everything[part] = weights | beside(prefix.replace("backbone", "head"))
    torch.save(everything, tmp_path / "checkpoint.pth")
    encoder = load(bring(tmp_path / "checkpoint.pth", tmp_path / "run"))
    assert torch.equal(encoder(images), models[chosen].forward_features(images))
    said = capsys.readouterr().out
    assert "encoder in the layout of DINO" in said and "head.0.weight" in said


def test_one_file_with_both_networks(tmp_path, images):
    teacher, student = vit(), vit(num_classes=0, depth=2)
    weights = under("student.backbone.", {n: w + 1 for n, w in student.state_dict().items()})
    weights |= under("teacher.backbone.", teacher.state_dict())
    save_file(weights, tmp_path / "w.safetensors")
    encoder = load(bring(tmp_path / "w.safetensors", tmp_path / "run"))
    assert torch.equal(encoder(images), teacher.forward_features(images))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("way", ["hub", "training"])
def test_dinov2_file(tmp_path, images, capsys, registers, way):
    """Layer scale, registers under another name, a mask token; blocks in chunks while training."""
    source = vit(init_values=0.5, reg_tokens=registers, no_embed_class=registers > 0)
    weights = dict(source.state_dict()) | {"mask_token": torch.ones(1, 128)}
    if registers:  # as DINOv2 writes it: the class token has a row of the table
        weights["register_tokens"] = weights.pop("reg_token")
        row = torch.randn(1, 1, 128)
        weights["pos_embed"] = torch.cat([row, weights["pos_embed"]], 1)
        weights["cls_token"] = weights["cls_token"] - row
    if way == "training":
        weights = {n.replace("blocks.", "blocks.0."): w for n, w in weights.items()}
        weights = under("backbone.", weights) | beside("dino_head.")
    torch.save({"teacher": weights} if way == "training" else weights, tmp_path / "dinov2.pth")
    out = bring(tmp_path / "dinov2.pth", tmp_path / "run", image_size=16)
    encoder = load(out)
    expected = source.forward_features(images)
    if registers:
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)
    else:
        assert torch.equal(encoder(images), expected)
    assert encoder.init_values == 1e-5 and encoder.registers == registers
    said = capsys.readouterr().out
    assert "layer scale" in said and "mask_token" in said


def test_beit_file_without_relative_positions(tmp_path, images):
    """gamma_1 and gamma_2; biases of queries and values, none of keys."""
    source = vit(init_values=0.1)
    weights = dict(source.state_dict())
    for i in range(2):
        bias = weights.pop(f"blocks.{i}.attn.qkv.bias")
        bias[128:256] = 0
        weights[f"blocks.{i}.attn.q_bias"] = bias[:128].clone()
        weights[f"blocks.{i}.attn.v_bias"] = bias[256:].clone()
        for j in (1, 2):
            weights[f"blocks.{i}.gamma_{j}"] = weights.pop(f"blocks.{i}.ls{j}.gamma")
    more = {"mask_token": torch.ones(1, 1, 128), "lm_head.weight": torch.ones(9, 128)}
    more |= {"lm_head.bias": torch.ones(9), "cls_pt_layers.0.gamma_1": torch.ones(128)}
    torch.save({"model": weights | more}, tmp_path / "beitv2.pth")
    encoder = load(bring(tmp_path / "beitv2.pth", tmp_path / "run"))
    assert torch.equal(encoder(images), source.forward_features(images))
    table = {"blocks.0.attn.relative_position_bias_table": torch.ones(9, 4)}
    torch.save({"model": weights | more | table}, tmp_path / "relative.pth")
    with pytest.raises(UserError, match="the source has relative positions, which torchmae's ViT"):
        bring(tmp_path / "relative.pth", tmp_path / "no")
    del weights["blocks.0.attn.v_bias"]
    torch.save({"model": weights}, tmp_path / "half.pth")
    with pytest.raises(UserError, match="q_bias is there, but not the values': .* incomplete"):
        bring(tmp_path / "half.pth", tmp_path / "no")


def test_positions_are_said_to_be_as_they_are_trained(tmp_path, capsys):
    """Fine-tuning trains them, pre-training does not; "fixed in training" once was said of both."""
    torch.save({"model": vit(num_classes=3).state_dict()}, tmp_path / "w.pth")
    out = bring(tmp_path / "w.pth", tmp_path / "run")
    words = "learned; used as they are (mae finetune trains them on, mae pretrain does not)"
    assert words in capsys.readouterr().out
    model = load_classifier(out)
    assert "encoder.pos_embed" in trainable(model, "all")
    assert not load(out).pos_embed.requires_grad


# timm


def test_timm_with_layer_scale(tmp_path, images):
    source = shaken(
        timm.models.VisionTransformer(img_size=16, num_classes=5, init_values=0.2, **SMALL)
    )
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = load_classifier(bring(tmp_path / "w.safetensors", tmp_path / "run"))
    assert torch.equal(model(images), source(images))
    last = {f"encoder.blocks.1.{n}" for n in ("norm2", "mlp.fc1", "mlp.fc2")}
    half = {n.rpartition(".")[0] for n in trainable(model, "0.5") if n.startswith("encoder.blocks")}
    assert half == last | {"encoder.blocks.1.ls2"}


def test_timm_with_a_file(tmp_path, images, capsys):
    source = shaken(timm.create_model("test_vit", num_classes=4, img_size=32))
    source.reset_classifier(4)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    given = f"timm:test_vit?checkpoint={tmp_path / 'w.safetensors'}"
    model = load_classifier(bring(given, tmp_path / "run", image_size=32))
    big = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(big), source(big), rtol=0, atol=1e-5)
    said = capsys.readouterr().out
    assert "logits differ from those of timm by" in said and "heads (the source's)" in said
    assert len(read_config(tmp_path / "run")["config"]["sha256"]) == 64


@pytest.mark.parametrize("no_embed_class", [True, False])
def test_timm_with_registers(tmp_path, images, capsys, no_embed_class):
    """Its position table has rows for the patches alone, or also for the class token and the
    registers."""
    source = vit(reg_tokens=4, no_embed_class=no_embed_class)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    encoder = load(bring(tmp_path / "w.safetensors", tmp_path / "run", image_size=16))
    expected = source.forward_features(images)
    assert encoder.registers == 4 and expected.shape == (3, 5 + 16, 128)
    torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)
    assert "3 channels, 4 registers" in capsys.readouterr().out


def test_rectangular_patches(tmp_path):
    source = vit(img_size=(8, 32), patch_size=(4, 8))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    encoder = load(bring(tmp_path / "w.safetensors", tmp_path / "run", image_size="8x32"))
    images = torch.randn(2, 3, 8, 32)
    assert encoder.patch == (4, 8) and encoder.grid == (2, 4)
    torch.testing.assert_close(encoder(images), source.forward_features(images), rtol=0, atol=1e-5)


def test_timm_with_its_published_weights(tmp_path, capsys, monkeypatch):
    """timm's own way from a name to weights, but for the download: its entry for the name leads to
    a file here."""
    make = timm.create_model
    source = shaken(make("test_vit"))
    save_file(source.state_dict(), tmp_path / "published.safetensors")
    here = {
        "file": str(tmp_path / "published.safetensors"),
        "mean": (0.1, 0.2, 0.3),
        "crop_pct": 0.8,
    }
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *given, **more: make(*given, **more, pretrained_cfg_overlay=here),  # type: ignore[misc]
    )
    model = load_classifier(bring("timm:test_vit", tmp_path / "run"))
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(model(images), source(images), rtol=0, atol=1e-5)
    assert model.encoder.mean == (0.1, 0.2, 0.3) and len(model.classes) == 1000
    assert read_config(tmp_path / "run")["config"]["crop_pct"] == 0.8
    assert "logits differ from those of timm by" in capsys.readouterr().out


def test_timm_function_that_tensors_do_not_show(tmp_path):
    """The same names and shapes, another activation: only the comparison finds it."""
    source = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, depth=2, act_layer="relu", img_size=32
    )
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    import torchmae.interop.foreign as foreign

    facts = foreign.Source(source.state_dict(), {"heads": 3}, None, source.eval())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchmae.tasks.import_weights.run.open_weights", lambda *_: facts)
        with pytest.raises(
            UserError, match=r"another function than the source's .* nothing was imported"
        ):
            bring("timm:x", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["timm:no_such_model", "timm:resnet18?checkpoint=nowhere.pth", "hf:nobody/nothing"]
)
def test_names_that_cannot_be_had_are_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["import", name, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mae: ") and len(said.strip().splitlines()) == 1
    assert os.listdir(tmp_path) == []


# transformers


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("names", ["as saved", "in memory"])
def test_vit_mae_for_pretraining(tmp_path, images, capsys, normalized, names):
    source = hugging_face("ViTMAEForPreTraining", norm_pix_loss=normalized, layer_norm_eps=1e-6)
    source.save_pretrained(tmp_path / "hf")
    if names == "in memory":
        save_file(source.state_dict(), tmp_path / "hf/model.safetensors", {"format": "pt"})
    model = load_mae(bring(tmp_path / "hf", tmp_path / "run"))
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(3))
    theirs, order = source(images, noise=noise), noise.argsort(1)
    ours = model(images, Mask(order[:, :4], order[:, 4:]))
    expected = theirs.logits[torch.arange(3).unsqueeze(1), order[:, 4:]]
    torch.testing.assert_close(ours.prediction, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-5)
    said = capsys.readouterr().out
    assert "predictions differ from those of transformers by" in said
    assert ("2 tensors of zeros" in said) == normalized


def test_vit_mae_model_and_another_epsilon(tmp_path, images, capsys):
    source = hugging_face("ViTMAEModel", mask_ratio=0.5)
    source.save_pretrained(tmp_path / "hf")
    encoder = load(bring(tmp_path / "hf", tmp_path / "run"))
    source.config.mask_ratio = 0.0
    theirs = source(images, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state
    torch.testing.assert_close(encoder(images), theirs, rtol=0, atol=1e-3)  # eps 1e-12 against 1e-6
    assert "1e-12 in the source, 1e-6 here" in capsys.readouterr().out


def test_vit_model_drops_its_pooler(tmp_path, images, capsys):
    source = hugging_face("ViTModel", layer_norm_eps=1e-6)
    source.save_pretrained(tmp_path / "hf")
    encoder = load(bring(tmp_path / "hf", tmp_path / "run"))
    torch.testing.assert_close(encoder(images), source(images).last_hidden_state, rtol=0, atol=1e-5)
    assert "skipped   pooler.dense.bias, pooler.dense.weight" in capsys.readouterr().out


def test_vit_for_image_classification_and_a_bin_file(tmp_path, images):
    labels = {0: "a", 1: "b", 2: "c"}
    source = hugging_face(
        "ViTForImageClassification", layer_norm_eps=1e-6, id2label=labels, qkv_bias=False
    )
    source.save_pretrained(tmp_path / "hf")
    torch.save(load_file(tmp_path / "hf/model.safetensors"), tmp_path / "hf/pytorch_model.bin")
    (tmp_path / "hf/model.safetensors").unlink()
    (tmp_path / "hf/preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}'
    )
    model = load_classifier(bring(tmp_path / "hf", tmp_path / "run"))
    torch.testing.assert_close(model(images), source(images).logits, rtol=0, atol=1e-5)
    assert model.classes == ("a", "b", "c") and model.encoder.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_of_transformers(tmp_path, images, capsys, registers):
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4)
    sizes |= dict(image_size=16, patch_size=4)
    sizes |= dict(num_register_tokens=registers) if registers else {}
    source = shaken(
        getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes))
    )
    source.save_pretrained(tmp_path / "hf")
    encoder = load(bring(tmp_path / "hf", tmp_path / "run"))
    torch.testing.assert_close(encoder(images), source(images).last_hidden_state, rtol=0, atol=1e-5)
    assert encoder.registers == registers and encoder.init_values == 1e-5
    said = capsys.readouterr().out
    assert "tokens differ from those of transformers by" in said
    assert "skipped   embeddings.mask_token" in said


def test_another_activation_is_refused(tmp_path):
    hugging_face("ViTModel", hidden_act="relu").save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match=r"activation is relu; .* exact GELU"):
        bring(tmp_path / "hf", tmp_path / "run")


def test_folders_that_are_no_model(tmp_path, run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config.json of a model"):
        bring(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="is a run folder already"):
        bring(run, tmp_path / "out")
    (tmp_path / "empty/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"neither model.safetensors nor pytorch_model.bin"):
        bring(tmp_path / "empty", tmp_path / "out")
    save_file({"a": torch.zeros(1)}, tmp_path / "empty/model.safetensors")
    with pytest.raises(UserError, match="of type bert; torchmae imports vit, vit_mae, dinov2"):
        bring(tmp_path / "empty", tmp_path / "out")


# Sizes, channels, the folder


def test_another_grid_and_channels(tmp_path):
    source = vit(img_size=(8, 32), in_chans=5, embed_dim=64, num_heads=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    wide = dict(image_size="8x32", heads=2)
    out = bring(tmp_path / "w.safetensors", tmp_path / "run", **wide)
    images = torch.randn(3, 5, 8, 32)
    torch.testing.assert_close(
        load(out)(images), source.forward_features(images), rtol=0, atol=1e-5
    )
    assert load(out).mean == (0.5,) * 5
    for options, words in [
        (dict(heads=2, image_size=16 * 4), "which is no 16x16 grid"),
        (dict(image_size="8x32"), "say --heads"),
        (dict(heads=3, image_size="8x32"), "width 64 is not divisible by 3 heads"),
        (dict(**wide, mean=(0.5,)), "need one value for each of 5 channels"),
        (dict(heads=2, image_size="big"), "a side such as 224"),
    ]:
        with pytest.raises(UserError, match=words):
            bring(tmp_path / "w.safetensors", tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_the_run_folder(tmp_path):
    save_file(vit().state_dict(), tmp_path / "w.safetensors")
    source = str(tmp_path / "w.safetensors")
    out = tmp_path / "deep/run"
    assert (
        main(["import", source, "--out", str(out), "--mean", "0", "0", "0", "--std", "1", "1", "1"])
        == 0
    )
    assert sorted(os.listdir(out)) == ["config.json", "manifest.json", "model.safetensors"]
    assert {record["state"] for record in torchmae.verify(out)} == {"OK"}
    assert os.listdir(tmp_path / "deep") == ["run"]
    about = json.loads((out / "config.json").read_text())
    assert (
        about["verb"] == "import" and about["data"] is None and about["config"]["source"] == source
    )
    assert about["model"]["encoder"]["mean"] == [0, 0, 0]
    with pytest.raises(UserError, match="is not an empty folder"):
        bring(source, out)
    (tmp_path / "void").mkdir()
    assert bring(source, tmp_path / "void") == tmp_path / "void"


def test_wrong_class_names(tmp_path):
    save_file(vit(num_classes=3).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"2 class names \(as requested\) for a head of 3 classes"):
        bring(tmp_path / "w.safetensors", tmp_path / "run", classes=str(tmp_path / "two.txt"))
    with pytest.raises(UserError, match="cannot read the class names"):
        bring(tmp_path / "w.safetensors", tmp_path / "run", classes=str(tmp_path / "none.txt"))


# Files that are bad or evil


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
@pytest.mark.parametrize("way", ["zip", "legacy", "inside"])
def test_a_malicious_pickle_is_never_executed(tmp_path, suffix, way):
    mark, path = tmp_path / "executed", tmp_path / f"evil.{suffix}"
    if way == "legacy":
        path.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    else:
        payload = {"model": vit().state_dict(), "args": argparse.Namespace(x=Evil(mark))}
        torch.save(payload if way == "inside" else Evil(mark), path)
    with pytest.raises(
        UserError, match=r"wants to run code \((posix|os|nt)\.system\) and was not loaded"
    ):
        bring(path, tmp_path / "run")
    path.write_bytes(pickle.dumps(Evil(mark), protocol=4))
    with pytest.raises(
        UserError, match=r"cannot be read as a PyTorch file: another kind of file"
    ) as caught:
        bring(path, tmp_path / "run")
    assert "weights_only" not in str(caught.value)  # PyTorch advises to switch the protection off
    assert not mark.exists() and not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # the payload does work
    assert mark.exists()


def test_a_malicious_pickle_in_a_folder_and_beside_timm(tmp_path):
    mark, folder = tmp_path / "executed", tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')
    torch.save(Evil(mark), folder / "pytorch_model.bin")
    for source in (folder, f"timm:test_vit?checkpoint={folder / 'pytorch_model.bin'}"):
        with pytest.raises(UserError, match="wants to run code"):
            bring(source, tmp_path / "run")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path, suffix, share):
    path = tmp_path / f"w.{suffix}"
    weights = vit().state_dict()
    torch.save({"model": weights}, path) if suffix == "pth" else save_file(weights, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"w\.\w+ cannot be read as") as caught:
        bring(path, tmp_path / "run")
    assert "\n" not in str(caught.value) and "run code" not in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (torch.zeros(3), "holds no state dict"),
        ({}, "holds no state dict"),
        ({"model": {}}, "holds no state dict|not a ViT"),
        ({"model": {"a": 3}}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"conv1.weight": torch.zeros(3)}, "not a ViT in the names of"),
    ],
)
def test_foreign_files(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=words):
        bring(tmp_path / "w.pth", tmp_path / "run")


def test_unknown_files(tmp_path):
    (tmp_path / "w.pth").write_text("<html>404</html>")
    for source, words in [
        (tmp_path / "w.pth", "cannot be read as a PyTorch file"),
        ("nowhere.pth", "is no file, no folder"),
    ]:
        with pytest.raises(UserError, match=words):
            bring(source, tmp_path / "run")


def test_weights_that_are_not_numbers(tmp_path):
    weights = vit().state_dict()
    weights["norm.bias"] = torch.full((128,), torch.nan)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"weights of .* are not finite \(norm.bias, 1 of 30"):
        bring(tmp_path / "w.safetensors", tmp_path / "run")


def test_a_missing_tensor_is_named(tmp_path):
    weights = vit().state_dict()
    del weights["blocks.1.norm2.bias"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"blocks.1.norm2.bias is missing \(1 difference\)"):
        bring(tmp_path / "w.safetensors", tmp_path / "run")


def test_a_missing_library_is_one_line(tmp_path):
    """A folder of transformers needs no library: it is only what the result is compared with."""
    hugging_face("ViTModel").save_pretrained(tmp_path / "hf")
    code = "import sys\n"
    for package in ("timm", "transformers", "huggingface_hub"):
        code += f"sys.modules['{package}'] = None\n"
    code += "from torchmae.cli import main\n"
    for source, expected in [("timm:test_vit", 2), ("hf:a/b", 2), (tmp_path / "hf", 0)]:
        code += (
            f"assert main(['import', '{source}', '--out', '{tmp_path / 'run'}']) == {expected}\n"
        )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pairs = [("timm", "timm"), ("huggingface_hub", "transformers")]
    assert done.stderr.splitlines() == [
        f'mae: this needs the package "{package}": pip install "torchmae[{extra}]"'
        for package, extra in pairs
    ]
    assert done.returncode == 0 and "norm eps  1e-12 in the source" in done.stdout
