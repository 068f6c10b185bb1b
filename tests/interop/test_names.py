"""Names and shapes of other libraries' tensors: both ways without a loss, the architecture read
off, strangers refused."""

import pytest
import torch

from torchmae.errors import UserError
from torchmae.interop import names as convert
from torchmae.models.decoders import DecoderConfig
from torchmae.models.encoders import build_encoder
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.sizes import SIZES
from torchmae.models.vit import ViT

OPEN = ("mean", "std", "position_resizing")  # what shapes do not tell


def tensors(model):
    return {name: torch.randn_like(value.float()) for name, value in model.state_dict().items()}


@pytest.fixture
def vit():
    return ViT((8, 8), 4, 3, embed_dim=16, depth=2, num_heads=2)


@pytest.fixture
def plain(vit):
    return tensors(vit)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_ours_to_plain_names(vit):
    ours = tensors(MAE(vit, DecoderConfig("transformer", 8, 1, 2)))
    layout, plain, unused = convert.to_plain(ours)
    assert layout == "torchmae" and unused == [
        "decoder.statistics.weight",
        "decoder.statistics.bias",
    ]
    expected = set(vit.state_dict()) | {"mask_token", "decoder_pos_embed"}
    for name in ("embed", "norm", "pred"):
        expected |= {f"decoder_{name}.weight", f"decoder_{name}.bias"}
    for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
        expected |= {f"decoder_blocks.0.{name}.weight", f"decoder_blocks.0.{name}.bias"}
    assert set(plain) == expected
    for name, value in plain.items():
        own = (
            name.replace("decoder_", "decoder.", 1)
            if name.startswith("decoder_")
            else f"encoder.{name}"
        )
        assert torch.equal(value, ours["decoder.mask_token" if name == "mask_token" else own])


@pytest.mark.parametrize("kind", ["encoder", "mean", "token", "probe", "mae"])
def test_there_and_back(vit, kind):
    model = {
        "encoder": lambda: vit,
        "mean": lambda: Classifier(vit, "abc"),
        "token": lambda: Classifier(vit, "abc", "cls"),
        "probe": lambda: Classifier(vit, "abc", "cls", batch_norm=True),
        "mae": lambda: MAE(vit, DecoderConfig("transformer", 8, 2, 2), target="pixels"),
    }[kind]()
    prefix = "encoder." if kind == "encoder" else ""
    ours = {f"{prefix}{name}": value for name, value in tensors(model).items()}
    config = {"encoder": vit.config()} if kind == "encoder" else model.config()
    assert same(convert.to_ours(convert.to_plain(ours)[1], config), ours)


def test_queries_keys_and_values(plain):
    cut = convert.split_qkv(plain)
    weight = plain["blocks.1.attn.qkv.weight"]
    assert not any("qkv" in name for name in cut)
    assert torch.equal(cut["blocks.1.attn.k.weight"], weight[16:32])
    assert same(convert.join_qkv(cut), plain)
    del cut["blocks.1.attn.v.bias"]
    with pytest.raises(UserError, match=r"blocks.1.attn.q.bias is there, but not"):
        convert.join_qkv(cut)


@pytest.mark.parametrize(
    "name",
    [
        "vit.encoder.layer.3.attention.attention.query.weight",  # the hub's names, of versions 4
        "vit.layers.3.attention.q_proj.weight",  # version 5, in memory
        "layers.3.attention.q_proj.weight",  # without a head
    ],
)
def test_transformers_names_of_all_versions(name):
    assert convert.classic_name(name) == "encoder.layer.3.attention.attention.query.weight"


def test_transformers_decoder_names_of_all_versions():
    classic = "decoder.decoder_layers.0.attention.attention.value.bias"
    assert convert.classic_name(classic) == classic
    assert convert.classic_name("decoder.decoder_layers.0.attention.v_proj.bias") == classic
    assert (
        convert.classic_name("decoder.decoder_encoder.layer.0.attention.attention.value.bias")
        == classic
    )
    assert convert.classic_name("decoder.decoder_layers.0.mlp.fc2.bias").endswith(
        "layers.0.output.dense.bias"
    )


@pytest.mark.parametrize(
    "there", [lambda p: convert.to_transformers(p, ""), convert.to_torchvision]
)
def test_foreign_names_and_back(plain, there):
    theirs = there(plain)
    assert not set(theirs) & set(plain)
    assert same(convert.to_plain(theirs)[1], plain)


def test_prefix_of_distributed_training(plain):
    assert same(
        convert.to_plain({f"module.{name}": value for name, value in plain.items()})[1], plain
    )


@pytest.mark.parametrize("name", SIZES)
def test_architecture_of_all_sizes(name):
    vit = ViT((32, 32), 16, **{**SIZES[name], "depth": 1})
    found = convert.encoder_config(vit.state_dict(), None, None)
    assert found == {k: v for k, v in vit.config().items() if k not in OPEN}


@pytest.mark.parametrize("ratio", [4.0, 2.0, 8 / 3, 1.1, 0.3])
def test_mlp_ratio_comes_back(ratio):
    vit = ViT((8, 8), 4, embed_dim=36, depth=1, num_heads=2, mlp_ratio=ratio)
    found = convert.encoder_config(vit.state_dict(), None, 2)
    assert build_encoder(found).blocks[0].mlp.fc1.weight.shape == vit.blocks[0].mlp.fc1.weight.shape


def test_a_grid_that_is_not_square():
    weights = ViT((8, 24), 4, 2, embed_dim=16, depth=1, num_heads=2).state_dict()
    with pytest.raises(
        UserError, match=r"13 rows, no square grid and a class token: .* --image-size HEIGHTxWIDTH"
    ):
        convert.encoder_config(weights, None, 2)
    found = convert.encoder_config(weights, (12, 16), 2)
    assert found["image_size"] == (12, 16) and found["channels"] == 2
    for size in ((8, 8), (8, 26), (16, 16)):
        with pytest.raises(
            UserError, match=rf"--image-size {size[0]}x{size[1]}: the position table has 13 rows"
        ):
            convert.encoder_config(weights, size, 2)


def test_heads_cannot_be_guessed(plain):
    with pytest.raises(UserError, match="16 wide, and shapes do not tell the heads: say --heads"):
        convert.encoder_config(plain, None, None)
    assert convert.encoder_config(plain, None, 8)["num_heads"] == 8


def test_a_position_table_without_class_row(vit, plain):
    short = {**plain, "pos_embed": plain["pos_embed"][:, 1:]}
    config = {"encoder": convert.encoder_config(short, None, 2)}
    assert config["encoder"]["image_size"] == (8, 8)
    table = convert.to_ours(short, config)["encoder.pos_embed"]
    assert torch.equal(table[:, 1:], plain["pos_embed"][:, 1:]) and not table[:, 0].any()


def test_no_biases_of_queries_are_zeros(vit, plain):
    del plain["blocks.0.attn.qkv.bias"]
    ours = convert.to_ours(plain, {"encoder": vit.config()})
    assert (
        ours["encoder.blocks.0.attn.qkv.bias"].shape == (48,)
        and not ours["encoder.blocks.0.attn.qkv.bias"].any()
    )


def test_half_precision_becomes_float(vit, plain):
    ours = convert.to_ours({n: v.half() for n, v in plain.items()}, {"encoder": vit.config()})
    assert all(value.dtype == torch.float32 for value in ours.values())


@pytest.mark.parametrize(
    "name, words",
    [
        ("decoder_blocks.0.ls1.gamma", "layer scale outside the encoder's blocks"),
        ("blocks.1.attn.q_norm.weight", "normalized queries and keys"),
        ("blocks.0.attn.relative_position_bias_table", "relative positions"),
        ("rel_pos_bias.relative_position_bias_table", "relative positions"),
        ("dist_token", "a distillation token"),
        ("head_dist.weight", "a distillation token"),
        ("blocks.0.mlp.w12.weight", "gated"),
        ("blocks.0.mlp.fc1_g.weight", "gated"),
        ("norm_pre.weight", "a norm before the blocks"),
        ("attn_pool.latent", "attention pooling"),
        ("pre_logits.fc.weight", "a layer before the head"),
        ("blocks.0.mlp.norm.weight", "a norm inside a block"),
    ],
)
def test_what_our_vit_has_not(plain, name, words):
    says = rf"the source has {words}.*, which torchmae's ViT does not have: {name} \(1 in all\)"
    with pytest.raises(UserError, match=says):
        convert.to_plain({**plain, name: torch.zeros(2)})


def test_refusals_are_sentences(plain):
    names = ("dist_token", "blocks.0.attn.q_norm.weight", "blocks.0.mlp.norm.weight")
    for some, words in (
        (names[:2], "normalized queries and keys and a distillation token, which torchmae's"),
        (
            names,
            "normalized queries and keys, a distillation token and a norm inside a block, which",
        ),
        (("something.else",), "tensors that torchmae's ViT does not have: something.else (1 in"),
    ):
        with pytest.raises(UserError) as caught:
            convert.to_plain(plain | {name: torch.zeros(2) for name in some})
        assert str(caught.value).startswith(f"the source has {words}")


@pytest.mark.parametrize(
    "name, words", [("cls_token", "no class token"), ("pos_embed", "no position table")]
)
def test_what_our_vit_needs(plain, name, words):
    del plain[name]
    with pytest.raises(UserError, match=rf"the source has {words} \({name} is missing\)"):
        convert.to_plain(plain)


def test_norms_that_do_not_go_together(plain):
    extra = {"fc_norm.weight": torch.ones(16), "fc_norm.bias": torch.zeros(16)}
    with pytest.raises(UserError, match="a norm before and one after the pooling"):
        convert.to_plain(plain | extra)
    bare = {n: v for n, v in plain.items() if not n.startswith("norm.")} | extra
    with pytest.raises(UserError, match="no head"):
        convert.to_plain(bare)


@pytest.mark.parametrize(
    "weights", [{}, {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}]
)
def test_no_vit_at_all(weights):
    with pytest.raises(UserError, match="not a ViT in the names of"):
        convert.to_plain(weights)


def test_batch_norm_becomes_part_of_the_head(vit):
    probe = Classifier(vit, "abc", "cls", batch_norm=True).eval()
    probe.bn.running_mean.normal_()
    probe.bn.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(probe.head.weight)
    folded = convert.fold_bn(convert.to_plain(probe.state_dict())[1])
    images = torch.randn(4, 3, 8, 8)
    expected = torch.nn.functional.linear(
        probe.encoder(images)[:, 0], folded["head.weight"], folded["head.bias"]
    )
    assert "bn.running_mean" not in folded
    torch.testing.assert_close(probe(images), expected)


def test_a_decoder_that_ours_cannot_be(vit):
    plain = convert.to_plain(MAE(vit, DecoderConfig("transformer", 8, 1, 2)).state_dict())[1]
    assert convert.decoder_from_shapes(plain, None) == DecoderConfig("transformer", 8, 1, 1)
    with pytest.raises(UserError, match="decoder is incomplete: mask_token is missing"):
        convert.decoder_from_shapes({n: v for n, v in plain.items() if n != "mask_token"}, None)
    with pytest.raises(UserError, match="this one has 32 and 7"):
        convert.decoder_from_shapes(plain | {"decoder_pred.weight": torch.zeros(7, 8)}, None)
