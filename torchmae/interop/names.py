"""State dicts of other libraries to our names and back: tensors are renamed, cut and joined; no files here.

All go through one layout, called plain: that of facebookresearch/mae, which is timm's for the encoder (`patch_embed.proj`,
`cls_token`, `pos_embed`, `blocks.N.*`, `norm`), `mask_token` and `decoder_*` for the decoder, `fc_norm` and `head` for a
classifier. Ours is the same under `encoder.` and `decoder.`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmae.errors import UserError
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


# The names on the hub, which every version of transformers reads; version 5 has others in memory (NEWER).
TRANSFORMERS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    **under("blocks.N", "encoder.layer.N", LAYER),
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
    r"^(vit|deit)\.": "",
    r"^layers\.": "encoder.layer.",
    r"^decoder\.decoder_encoder\.layer\.": "decoder.decoder_layers.",  # what save_pretrained of 5.23 writes
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
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


PROBE = {"bn": "head.0", "head": "head.1"}  # the linear probe of facebookresearch/mae


UNUSED = {
    "embeddings.mask_token",
    "pooler.dense.weight",
    "pooler.dense.bias",
}  # no part of an encoder's tokens


PAIR = r"\.(weight|bias)"


KNOWN = re.compile(
    rf"cls_token|pos_embed|mask_token|decoder_pos_embed|patch_embed\.proj{PAIR}|(norm|fc_norm|head){PAIR}"
    rf"|decoder_(embed|norm|pred){PAIR}|(decoder_)?blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]){PAIR}"
    r"|bn\.(running_mean|running_var|num_batches_tracked)"
)


FOREIGN = {
    r"\bls[12]\b|gamma_?\d|layer_?scale|lambda_?1": "layer scale",
    r"reg(ister)?_tokens?": "register tokens",
    r"[qk]_norm|(query|key)_norm|(query|key)_layernorm": "normalised queries and keys",
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
    """The name on the hub of a tensor of transformers, from what any version calls it; without a base model's prefix."""
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
    """The layout's name, the weights under plain names, and the names that were left out because nothing uses them.

    What our ViT cannot represent, and what is no ViT at all, is a `UserError` that names the tensors.
    """
    names = {
        name.removeprefix("module."): weight for name, weight in weights.items()
    }  # DistributedDataParallel's
    unused: list[str] = []
    plain: Weights
    if "encoder.patch_embed.proj.weight" in names:
        layout = "torchmae"
        unused = [n for n in names if n.startswith("decoder.statistics.")]
        ours = {n: w for n, w in names.items() if n not in unused}
        plain = {n.removeprefix("encoder."): w for n, w in rename(ours, swap(OURS)).items()}
    elif any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in names):
        layout = "transformers"
        classic = {classic_name(name): weight for name, weight in names.items()}
        unused = sorted(UNUSED & set(classic))
        plain = join_qkv(
            rename({n: w for n, w in classic.items() if n not in UNUSED}, swap(TRANSFORMERS))
        )
    elif "conv_proj.weight" in names:
        layout, plain = "torchvision", rename(names, swap(TORCHVISION))
    elif "patch_embed.proj.weight" in names:
        layout = "facebookresearch/mae" if any(n.startswith("decoder_") for n in names) else "timm"
        plain = rename(names, swap(PROBE))
        if layout == "timm" and "mask_token" in plain:
            del plain["mask_token"]
            unused = ["mask_token"]
    else:
        first = ", ".join(list(names)[:3]) or "none"
        raise UserError(
            f"not a ViT in the names of facebookresearch/mae, timm, transformers or torchvision (its tensors: {first}, ...)"
        )
    refuse_foreign(plain)
    return layout, plain, unused


def refuse_foreign(plain: Weights) -> None:
    """A `UserError` that says what of a ViT ours cannot represent."""
    strange = [name for name in plain if not KNOWN.fullmatch(name)]
    if strange:
        what = [
            words
            for pattern, words in FOREIGN.items()
            if any(re.search(pattern, name) for name in strange)
        ]
        raise UserError(
            f"torchmae's ViT has no {' and no '.join(what) or 'such tensors'}: {', '.join(strange[:4])} ({len(strange)} in all)"
        )
    for name, words in (("cls_token", "class token"), ("pos_embed", "position table")):
        if name not in plain:
            raise UserError(f"it has no {words} ({name} is missing), which torchmae's ViT needs")
    if "norm.weight" in plain and "fc_norm.weight" in plain:
        raise UserError(
            "it has a norm before and one after the pooling (norm and fc_norm); torchmae's ViT has either"
        )
    if "fc_norm.weight" in plain and "head.weight" not in plain:
        raise UserError(
            "it has the norm of a classifier's pooling (fc_norm) but no head: import the whole classifier"
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
    """The arguments of `ViT` from the shapes of the tensors, all but mean and std.

    The image is square unless `image_size` says otherwise. Shapes do not tell the heads: without `num_heads` they are those
    of the size in `SIZES` with this width.
    """
    kernel, table = plain["patch_embed.proj.weight"], plain["pos_embed"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or table.ndim != 3:
        raise UserError(
            f"patch_embed.proj.weight {list(kernel.shape)} and pos_embed {list(table.shape)}: torchmae's ViT takes "
            "square patches [D, C, p, p] and one position table [1, 1 + N, D]"
        )
    dim, channels, patch = kernel.shape[:3]
    rows = table.shape[1]
    if image_size is None:
        side = next(
            (math.isqrt(n) for n in (rows - 1, rows) if n > 0 and math.isqrt(n) ** 2 == n), None
        )
        if side is None:
            raise UserError(
                f"the position table has {rows} rows, no square grid and a class token: say its image size with "
                "--image-size HEIGHTxWIDTH"
            )
        image_size = (side * patch, side * patch)
    grid = (image_size[0] // patch, image_size[1] // patch)
    if any(side % patch for side in image_size) or rows - math.prod(grid) not in (0, 1):
        raise UserError(
            f"--image-size {image_size[0]}x{image_size[1]}: the position table has {rows} rows, which is no "
            f"{grid[0]}x{grid[1]} grid of {patch} px patches and a class token"
        )
    depth = count_blocks(plain, "blocks")
    first = plain.get("blocks.0.mlp.fc1.weight")
    if first is None:
        raise UserError(
            "it has no blocks.0.mlp.fc1.weight: the file is incomplete, or no plain ViT"
        )
    heads = num_heads or next(
        (size["num_heads"] for size in SIZES.values() if size["embed_dim"] == dim), None
    )
    if heads is None:
        raise UserError(
            f"no size that torchmae knows is {dim} wide, and shapes do not tell the heads: say --heads"
        )
    return {
        "image_size": image_size,
        "patch_size": patch,
        "channels": channels,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(dim, first.shape[0]),
    }


def decoder_config(plain: Weights, num_heads: int | None) -> dict[str, Any]:
    """The decoder's arguments of `MAE`; the heads, if they are not known, 32 wide as in the paper's decoder."""
    missing = [
        n for n in ("decoder_embed.weight", "decoder_pred.weight", "mask_token") if n not in plain
    ]
    if missing:
        raise UserError(f"the decoder is incomplete: {', '.join(missing)} is missing")
    dim, values = (
        plain["decoder_embed.weight"].shape[0],
        plain["patch_embed.proj.weight"][0].numel(),
    )
    hidden = len(plain.get("decoder_blocks.0.mlp.fc1.weight", ()))
    out = len(plain["decoder_pred.weight"])
    if hidden != 4 * dim or out != values:
        raise UserError(
            f"torchmae's decoder has MLPs of 4 times its width {dim} and predicts the {values} values of a patch; this "
            f"one has {hidden} and {out}"
        )
    return {
        "decoder_dim": dim,
        "decoder_depth": count_blocks(plain, "decoder_blocks"),
        "decoder_heads": num_heads or max(1, dim // 32),
    }


def to_ours(plain: Weights, config: dict[str, Any]) -> Weights:
    """The weights of the model that `config` describes, float32, under our names.

    What another library leaves out because it is zero is made: the class token's row of a position table, the biases of
    queries, keys and values, and the statistics head, which starts as "as the visible patches".
    """
    whole = {
        name: (weight.detach().float() if weight.is_floating_point() else weight)
        .contiguous()
        .clone()
        for name, weight in plain.items()
    }
    encoder = config["encoder"]
    dim, (height, width) = encoder["embed_dim"], encoder["image_size"]
    if whole["pos_embed"].shape[1] == (height // encoder["patch_size"]) * (
        width // encoder["patch_size"]
    ):
        whole["pos_embed"] = F.pad(whole["pos_embed"], (0, 0, 1, 0))
    for name in list(whole):
        if name.endswith("attn.qkv.weight"):
            whole.setdefault(name.replace("weight", "bias"), torch.zeros(len(whole[name])))
    ours = rename(whole, OURS)
    kept = ("decoder.", "fc_norm.", "head.", "bn.")
    ours = {n if n.startswith(kept) else f"encoder.{n}": weight for n, weight in ours.items()}
    if config.get("target") == "norm-pixels":
        dim = config["decoder_dim"]
        ours |= {
            "decoder.statistics.weight": torch.zeros(2, dim),
            "decoder.statistics.bias": torch.zeros(2),
        }
    return ours


def fold_bn(plain: Weights, eps: float = 1e-6) -> Weights:
    """A probe's BatchNorm without affine parameters as part of its linear head: the same function in eval mode."""
    if "bn.running_mean" not in plain:
        return plain
    mean, variance, weight, bias = (
        plain[n].double() for n in ("bn.running_mean", "bn.running_var", "head.weight", "head.bias")
    )
    scaled = weight * (variance + eps).rsqrt()
    rest = {n: w for n, w in plain.items() if not n.startswith("bn.")}
    return rest | {"head.weight": scaled.float(), "head.bias": (bias - scaled @ mean).float()}


def to_transformers(plain: Weights, prefix: str) -> Weights:
    """The names on the hub. `prefix` is "vit." for a model with a head or a decoder, "" for an encoder alone."""
    theirs = rename(split_qkv(plain), TRANSFORMERS)
    return {
        n if n.startswith(("decoder.", "classifier.")) else f"{prefix}{n}": w.contiguous()
        for n, w in theirs.items()
    }


def to_torchvision(plain: Weights) -> Weights:
    return rename(plain, TORCHVISION)
