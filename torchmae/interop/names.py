"""State dicts of other libraries to our names and back: tensors are renamed, split and joined; no
files here.

All go through one layout, called plain: that of facebookresearch/mae, which is timm's for the
encoder (`patch_embed.proj`, `cls_token`, `reg_token`, `pos_embed`, `blocks.N.*`, `norm`),
`mask_token` and `decoder_*` for the decoder, `fc_norm` and `head` for a classifier, `target.*` for
a fitted target. Ours is the same under `encoder.` and `decoder.`. The position table of the plain
layout has a row for the class token and none for registers.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmae.errors import UserError
from torchmae.models.decoders import DecoderConfig
from torchmae.models.patches import Size, as_size, grid_of, size_name
from torchmae.models.sizes import SIZES

Weights = dict[str, Tensor]
Table = Mapping[str, str]


def under(prefix: str, other: str, rows: Table) -> dict[str, str]:
    return {f"{prefix}.{name}": f"{other}.{theirs}" for name, theirs in rows.items()}


def swap(table: Table) -> dict[str, str]:
    return {theirs: name for name, theirs in table.items()}


# plain name: theirs. N is a block's number; a last `.weight` or `.bias` is the same on both sides.
OURS = {
    "mask_token": "decoder.mask_token",
    **{f"decoder_{name}": f"decoder.{name}" for name in ("embed", "pos_embed", "norm", "pred")},
    **{
        f"decoder_blocks.N.{name}": f"decoder.blocks.N.{name}"
        for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    },
}


LAYER = {
    "norm1": "layernorm_before",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


# The names on the hub, which every version of transformers reads; version 5 has others in memory
# (NEWER).
TRANSFORMERS = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",  # this and layer scale: of Dinov2Model
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    **under("blocks.N", "encoder.layer.N", LAYER),
    "blocks.N.ls1.gamma": "encoder.layer.N.layer_scale1.lambda1",
    "blocks.N.ls2.gamma": "encoder.layer.N.layer_scale2.lambda1",
    "norm": "layernorm",
    "head": "classifier",
    "mask_token": "decoder.mask_token",
    **{
        f"decoder_{name}": f"decoder.decoder_{name}"
        for name in ("embed", "pos_embed", "norm", "pred")
    },
    **under("decoder_blocks.N", "decoder.decoder_layers.N", LAYER),
}


NEWER = {
    r"^(vit|deit|dinov2|dinov2_with_registers)\.": "",
    r"^layers\.": "encoder.layer.",
    # What save_pretrained of 5.23 writes:
    r"^decoder\.decoder_encoder\.layer\.": "decoder.decoder_layers.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
    # Dinov2Model:
    r"(layer\.\d+)\.norm1\.": r"\1.layernorm_before.",
    r"(layer\.\d+)\.norm2\.": r"\1.layernorm_after.",
}


TORCHVISION = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    **under(
        "blocks.N",
        "encoder.layers.encoder_layer_N",
        {
            "norm1": "ln_1",
            "attn.qkv.weight": "self_attention.in_proj_weight",
            "attn.qkv.bias": "self_attention.in_proj_bias",
            "attn.proj": "self_attention.out_proj",
            "norm2": "ln_2",
            "mlp.fc1": "mlp.0",
            "mlp.fc2": "mlp.3",
        },
    ),
    "norm": "encoder.ln",
    "head": "heads.head",
}


# timm's names as the authors of other methods write them.
TIMM = {
    "bn": "head.0",  # the linear probe of facebookresearch/mae
    "head": "head.1",
    "reg_token": "register_tokens",  # DINOv2
    "blocks.N.ls1.gamma": "blocks.N.gamma_1",  # BEiT
    "blocks.N.ls2.gamma": "blocks.N.gamma_2",
}


# The encoder inside of a method's checkpoint: the first of these prefixes that there is. MoCo v3
# and DINO evaluate the base encoder and the teacher.
INSIDE = {
    "base_encoder.": "MoCo v3",
    "teacher.backbone.": "DINO",
    "backbone.": "DINO",
    "student.backbone.": "DINO",
}


# No part of an encoder's tokens.
UNUSED = re.compile(
    r"embeddings\.mask_token|pooler\.dense\.(weight|bias)"  # transformers
    r"|masked_embed|lm_head\.(weight|bias)|cls_pt_layers\..*"  # iBOT, BEiT
)


PAIR = r"\.(weight|bias)"


KNOWN = re.compile(
    rf"cls_token|pos_embed|mask_token|decoder_pos_embed|patch_embed\.proj{PAIR}"
    rf"|(norm|fc_norm|head){PAIR}|decoder_(embed|norm|pred){PAIR}"
    rf"|(decoder_)?blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]){PAIR}"
    r"|blocks\.\d+\.ls[12]\.gamma"
    r"|bn\.(running_mean|running_var|num_batches_tracked)|reg_token|target\.\w+"
)


FOREIGN = {
    r"\bls[12]\b|gamma_?\d|layer_?scale|lambda_?1": "layer scale outside the encoder's blocks",
    r"[qk]_norm|(query|key)_norm|(query|key)_layernorm": "normalized queries and keys",
    r"rel(ative)?_pos": "relative positions",
    r"dist(illation)?_token|head_dist|distillation": "a distillation token",
    r"w12|fc1_[gx]|gate_proj|weights_in|swiglu": "gated (SwiGLU) layers",
    r"norm_pre|pre_?layrnorm": "a norm before the blocks",
    r"attn_pool|probe": "attention pooling",
    r"pre_logits": "a layer before the head (pre_logits)",
    r"blocks\.\d+\.(attn|mlp)\.(norm|inner_attn_ln|ffn_ln)": "a norm inside a block",
}


def renamed(name: str, table: Table) -> str:
    """The name by a table; one that is not in it stays."""
    number = re.search(r"(?<=blocks\.)\d+|(?<=layer[._])\d+|(?<=layers\.)\d+", name)
    general = name[: number.start()] + "N" + name[number.end() :] if number else name
    stem, _, last = general.rpartition(".")
    new = table.get(general) or (f"{table[stem]}.{last}" if stem in table else None)
    return name if new is None else new.replace("N", number.group()) if number else new


def rename(weights: Mapping[str, Tensor], table: Table) -> Weights:
    return {renamed(name, table): weight for name, weight in weights.items()}


def classic_name(name: str) -> str:
    """The name on the hub of a tensor of transformers, from what any version calls it; without a
    base model's prefix."""
    for pattern, text in NEWER.items():
        name = re.sub(pattern, text, name)
    return name


def join_qkv(weights: Weights) -> Weights:
    """Separate `attn.q`, `attn.k`, `attn.v` as the one `attn.qkv`: `[3 D, D]` and `[3 D]`."""
    joined = dict(weights)
    for name in weights:
        if ".attn.q." in name:
            parts = [joined.pop(name.replace(".attn.q.", f".attn.{x}."), None) for x in "qkv"]
            if any(part is None for part in parts):
                raise UserError(
                    f"{name} is there, but not the key's and the value's: the file is incomplete"
                )
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(
                [part for part in parts if part is not None]
            )
    return joined


def split_qkv(weights: Weights) -> Weights:
    """The inverse of `join_qkv`."""
    cut: Weights = {}
    for name, weight in weights.items():
        if ".attn.qkv." in name:
            cut |= {
                name.replace(".attn.qkv.", f".attn.{x}."): part
                for x, part in zip("qkv", weight.chunk(3))
            }
        else:
            cut[name] = weight
    return cut


def to_plain(weights: Mapping[str, Tensor]) -> tuple[str, Weights, list[str]]:
    """Any known state dict under plain names.

    Returns:
        The name of the layout, the weights, and the names of tensors that were skipped because
        nothing uses them.

    Raises:
        UserError: what our ViT cannot represent, or no ViT at all; names the tensors.
    """
    # "module." is DistributedDataParallel's.
    names = {name.removeprefix("module."): weight for name, weight in weights.items()}
    method, names, unused = unwrap(names)
    plain: Weights
    if "encoder.patch_embed.proj.weight" in names:
        layout = "torchmae"
        unused += [n for n in names if n.startswith("decoder.statistics.")]
        ours = {n: w for n, w in names.items() if n not in unused}
        plain = {n.removeprefix("encoder."): w for n, w in rename(ours, swap(OURS)).items()}
    elif any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in names):
        layout = "transformers"
        classic = {classic_name(name): weight for name, weight in names.items()}
        unused += sorted(n for n in classic if UNUSED.fullmatch(n))
        used = {n: w for n, w in classic.items() if n not in unused}
        plain = join_qkv(rename(used, swap(TRANSFORMERS)))
    elif "conv_proj.weight" in names:
        layout, plain = "torchvision", rename(names, swap(TORCHVISION))
    elif "patch_embed.proj.weight" in names:
        layout = "facebookresearch/mae" if any(n.startswith("decoder_") for n in names) else "timm"
        unused += [n for n in names if UNUSED.fullmatch(n)]
        unused += ["mask_token"] if layout == "timm" and "mask_token" in names else []
        used = {n: w for n, w in names.items() if n not in unused}
        plain = join_beit_bias(rename(used, swap(TIMM)))
    else:
        first = ", ".join(list(names)[:3]) or "none"
        raise UserError(
            "not a ViT in the names of facebookresearch/mae, timm, transformers or torchvision "
            f"(its tensors: {first}, ...)"
        )
    refuse_foreign(plain)
    return method or layout, plain, unused


def unwrap(names: Weights) -> tuple[str | None, Weights, list[str]]:
    """The encoder of a checkpoint of MoCo v3 or DINO, which holds projections and a second network
    beside it.

    Returns:
        The method, None where there is no prefix; the encoder's weights without it; the names of
        the others.
    """
    for prefix, method in INSIDE.items():
        if f"{prefix}patch_embed.proj.weight" in names:
            # MoCo v3 has its projection in place of the encoder's head.
            own = [n for n in names if n.startswith(prefix) and not n.startswith(f"{prefix}head.")]
            # DINOv2 trains its blocks in chunks, numbered throughout.
            short = {n: re.sub(r"^blocks\.\d+\.(?=\d)", "blocks.", n[len(prefix) :]) for n in own}
            return method, {short[n]: names[n] for n in own}, [n for n in names if n not in short]
    return None, names, []


def join_beit_bias(plain: Weights) -> Weights:
    """BEiT's biases of queries and values, `attn.q_bias` and `attn.v_bias`, as that of the one
    linear map, where keys have none."""
    joined = dict(plain)
    for name in plain:
        if name.endswith(".attn.q_bias"):
            value = plain.get(name.replace("q_bias", "v_bias"))
            if value is None:
                raise UserError(f"{name} is there, but not the values': the file is incomplete")
            both = joined.pop(name), joined.pop(name.replace("q_bias", "v_bias"))
            zeros = torch.zeros_like(value)
            joined[name.replace("q_bias", "qkv.bias")] = torch.cat([both[0], zeros, both[1]])
    return joined


def refuse_foreign(plain: Weights) -> None:
    """A `UserError` that says what of a ViT ours cannot represent."""
    strange = [name for name in plain if not KNOWN.fullmatch(name)]
    if strange:
        what = [
            words
            for pattern, words in FOREIGN.items()
            if any(re.search(pattern, name) for name in strange)
        ]
        parts = " and ".join(filter(None, [", ".join(what[:-1]), *what[-1:]]))
        raise UserError(
            f"the source has {f'{parts}, which' if parts else 'tensors that'} torchmae's ViT does "
            f"not have: {', '.join(strange[:4])} ({len(strange)} in all)"
        )
    for name, words in (("cls_token", "class token"), ("pos_embed", "position table")):
        if name not in plain:
            raise UserError(
                f"the source has no {words} ({name} is missing), which torchmae's ViT needs"
            )
    if "norm.weight" in plain and "fc_norm.weight" in plain:
        raise UserError(
            "the source has a norm before and one after the pooling (norm and fc_norm); a "
            "classifier of torchmae has only one of the two"
        )
    if "fc_norm.weight" in plain and "head.weight" not in plain:
        raise UserError(
            "the source has the norm of a classifier's pooling (fc_norm) but no head: import the "
            "whole classifier"
        )


def count_blocks(plain: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [
        int(m.group(1)) for m in (re.match(rf"{prefix}\.(\d+)\.", name) for name in plain) if m
    ]
    return 1 + max(numbers, default=-1)


def mlp_ratio(dim: int, hidden: int) -> float:
    """The ratio that `int(dim * ratio)` takes back to `hidden`."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


def encoder_config(
    plain: Weights, image_size: tuple[int, int] | None, num_heads: int | None
) -> dict[str, Any]:
    """The arguments of `build_encoder` that shapes of tensors tell: all but mean, std and how
    positions are resized.

    Args:
        plain: the weights under plain names.
        image_size: None for a square one. Shapes do not tell its sides.
        num_heads: None for those of the size in `SIZES` with this width. Shapes do not tell them
            either.

    Raises:
        UserError: tensors that do not fit together, or sizes that have to be given.
    """
    kernel = plain["patch_embed.proj.weight"]
    table = plain["pos_embed"]
    if kernel.ndim != 4 or table.ndim != 3:
        raise UserError(
            f"patch_embed.proj.weight {list(kernel.shape)} and pos_embed {list(table.shape)}: "
            "torchmae's ViT takes 2-D patches [D, C, p, q] and one position table [1, 1 + N, D]"
        )
    dim, channels = kernel.shape[:2]
    patch = as_size(tuple(kernel.shape[2:]))
    registers = plain["reg_token"].shape[1] if "reg_token" in plain else 0
    image_size = image_size_of(table.shape[1], patch, registers, image_size)
    first = plain.get("blocks.0.mlp.fc1.weight")
    if first is None:
        raise UserError(
            "the source has no blocks.0.mlp.fc1.weight: the file is incomplete, or no plain ViT"
        )
    heads = num_heads or next(
        (size["num_heads"] for size in SIZES.values() if size["embed_dim"] == dim), None
    )
    if heads is None:
        raise UserError(
            f"no size that torchmae knows is {dim} wide, and shapes do not tell the heads: say "
            "--heads"
        )
    return {
        "kind": "vit",
        "image_size": image_size,
        "patch_size": patch[0] if len(set(patch)) == 1 else patch,
        "channels": channels,
        "embed_dim": dim,
        "depth": count_blocks(plain, "blocks"),
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(dim, first.shape[0]),
        "registers": registers,
        # Only what new weights start with; 1e-5 is DINOv2's.
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in plain else None,
    }


def prefix_rows(registers: int) -> tuple[int, ...]:
    """How many rows a position table may have before those of the patches: for the class token (the
    reference, timm), for none (timm's `no_embed_class`), for the class token and registers (timm
    without it)."""
    return (1, 0, 1 + registers) if registers else (1, 0)


def image_size_of(
    rows: int, patch: Size, registers: int, image_size: tuple[int, int] | None
) -> tuple[int, int]:
    """The size of the images of a position table with so many rows: a square, or `image_size` if it
    fits."""
    counts = [rows - prefix for prefix in prefix_rows(registers)]
    if image_size is None:
        side = next((math.isqrt(n) for n in counts if n > 0 and math.isqrt(n) ** 2 == n), None)
        if side is None:
            raise UserError(
                f"the position table has {rows} rows, no square grid and a class token: say its "
                "image size with --image-size HEIGHTxWIDTH"
            )
        return side * patch[0], side * patch[1]
    grid = [side // p for side, p in zip(image_size, patch)]
    if any(side % p for side, p in zip(image_size, patch)) or math.prod(grid) not in counts:
        raise UserError(
            f"--image-size {image_size[0]}x{image_size[1]}: the position table has {rows} rows, "
            f"which is no {grid[0]}x{grid[1]} grid of {size_name(patch)} px patches and a class "
            "token"
        )
    return image_size


def decoder_from_shapes(plain: Weights, num_heads: int | None) -> DecoderConfig:
    """The decoder of these tensors; the heads, if they are not known, 32 wide as in the paper's
    decoder.

    Raises:
        UserError: the decoder is incomplete, or none that torchmae has.
    """
    depth = count_blocks(plain, "decoder_blocks")
    needed = ["decoder_embed.weight", "decoder_pred.weight"]
    needed += ["mask_token"] if depth or "decoder_norm.weight" in plain else []
    missing = [n for n in needed if n not in plain]
    if missing:
        raise UserError(f"the decoder is incomplete: {', '.join(missing)} is missing")
    dim = plain["decoder_embed.weight"].shape[0]
    values = plain["patch_embed.proj.weight"][0].numel()
    if "target.components" in plain:
        values = plain["target.components"].shape[1]
    hidden = len(plain.get("decoder_blocks.0.mlp.fc1.weight", ()))
    out = len(plain["decoder_pred.weight"])
    if (depth and hidden != 4 * dim) or out != values:
        raise UserError(
            f"torchmae's decoder has MLPs of 4 times its width {dim} and predicts the {values} "
            f"values of a patch; this one has {hidden} and {out}"
        )
    if not depth:
        return DecoderConfig("linear", dim, 0, 0)
    return DecoderConfig("transformer", dim, depth, num_heads or max(1, dim // 32))


def to_ours(plain: Weights, config: dict[str, Any]) -> Weights:
    """The weights of the model that `config` describes, float32, under our names.

    What another library does without because it is zero is added: the class token's row of a
    position table, the biases of queries, keys and values, and the statistics head, which starts as
    "as the visible patches".
    """
    whole = {
        name: (weight.detach().float() if weight.is_floating_point() else weight)
        .contiguous()
        .clone()
        for name, weight in plain.items()
    }
    encoder = config["encoder"]
    patch = encoder["patch_size"]
    patch = as_size(patch if isinstance(patch, int) else tuple(patch))
    grid = grid_of(tuple(encoder["image_size"]), patch)
    rows = whole["pos_embed"].shape[1] - math.prod(grid)
    if rows == 0:
        whole["pos_embed"] = F.pad(whole["pos_embed"], (0, 0, 1, 0))
    elif rows > 1:  # the positions of registers, which have none here, are part of the tokens
        table = whole["pos_embed"]
        whole["reg_token"] += table[:, 1:rows]
        whole["pos_embed"] = torch.cat([table[:, :1], table[:, rows:]], dim=1)
    for name in list(whole):
        if name.endswith("attn.qkv.weight"):
            whole.setdefault(name.replace("weight", "bias"), torch.zeros(len(whole[name])))
    ours = rename(whole, OURS)
    others = ("decoder.", "fc_norm.", "head.", "bn.", "target.")
    ours = {n if n.startswith(others) else f"encoder.{n}": weight for n, weight in ours.items()}
    if config.get("target") == "norm-pixels":
        dim = config["decoder"]["dim"]
        ours |= {
            "decoder.statistics.weight": torch.zeros(2, dim),
            "decoder.statistics.bias": torch.zeros(2),
        }
    return ours


def fold_class_position(plain: Weights) -> Weights:
    """For timm's models with registers, whose positions are those of the patches alone
    (`no_embed_class`): the class token's row of the table becomes part of the token. The same
    function."""
    if "reg_token" not in plain:
        return plain
    table = plain["pos_embed"]
    return plain | {"cls_token": plain["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}


def fold_bn(plain: Weights, eps: float = 1e-6) -> Weights:
    """A probe's BatchNorm without affine parameters as part of its linear head: the same function
    in eval mode."""
    if "bn.running_mean" not in plain:
        return plain
    mean, variance, weight, bias = (
        plain[n].double() for n in ("bn.running_mean", "bn.running_var", "head.weight", "head.bias")
    )
    scaled = weight * (variance + eps).rsqrt()
    rest = {n: w for n, w in plain.items() if not n.startswith("bn.")}
    return rest | {"head.weight": scaled.float(), "head.bias": (bias - scaled @ mean).float()}


def fold_layer_scale(plain: Weights) -> Weights:
    """Layer scale as part of the linear maps before it: the same function, for libraries that have
    none."""
    folded = {n: w for n, w in plain.items() if not re.search(r"\.ls[12]\.gamma$", n)}
    for name in plain.keys() - folded.keys():
        stem, gamma = name.removesuffix(".gamma"), plain[name].double()
        before = f"{stem[:-4]}.{'attn.proj' if stem.endswith('ls1') else 'mlp.fc2'}"
        weight, bias = (folded[f"{before}.{part}"].double() for part in ("weight", "bias"))
        folded[f"{before}.weight"] = (gamma.unsqueeze(1) * weight).float()
        folded[f"{before}.bias"] = (gamma * bias).float()
    return folded


def to_transformers(plain: Weights, prefix: str) -> Weights:
    """The names on the hub. `prefix` is "vit." for a model with a head or a decoder, "" for an
    encoder alone."""
    theirs = rename(split_qkv(plain), TRANSFORMERS)
    return {
        n if n.startswith(("decoder.", "classifier.")) else f"{prefix}{n}": w.contiguous()
        for n, w in theirs.items()
    }


def to_torchvision(plain: Weights) -> Weights:
    return rename(plain, TORCHVISION)
