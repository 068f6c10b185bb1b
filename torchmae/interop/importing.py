"""`mae import`: weights of facebookresearch/mae, timm and transformers as a run folder, compared
with their source."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError, printable
from torchmae.interop.foreign import Source
from torchmae.interop.names import Weights, decoder_from_shapes, encoder_config
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, mask_from_order, num_visible
from torchmae.models.patches import IMAGENET, Size, sincos_positions, size_name
from torchmae.models.vit import ViT
from torchmae.settings.options import parse_size

# Of the largest feature: what two float32 implementations of the same function may differ by.
CLOSE = 1e-4


@dataclass
class Report:
    """The lines that are printed: what was found, and what is guessed or differs."""

    lines: list[str] = field(default_factory=list)

    def note(self, what: str, line: str) -> None:
        self.lines.append(f"  {what:<10}{printable(line)}")


@dataclass(frozen=True)
class Facts:
    """What is known of a model besides its tensors.

    `requested` is what the user says (None where nothing), `found` what the source says; both under
    the names of the flags of `mae import`.
    """

    requested: Mapping[str, Any]
    found: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> tuple[Any, str]:
        """The value, and where it comes from; the user's before the source's before the
        default."""
        if self.requested.get(name) is not None:
            return self.requested[name], "as requested"
        if name in self.found:
            return self.found[name], "the source's"
        return default, "assumed"


def describe(plain: Weights, facts: Facts, report: Report) -> dict[str, Any]:
    """What `config()` of the model will be: an MAE's, a classifier's or, under "encoder" alone, an
    encoder's."""
    if facts.found.get("activation", "gelu") != "gelu":
        raise UserError(
            f"the source's activation is {facts.found['activation']}; torchmae's ViT has exact GELU"
        )
    encoder = describe_encoder(plain, facts, report)
    if "head.weight" in plain:
        return {"encoder": encoder} | describe_head(plain, facts, report)
    if any(name.startswith("decoder_") for name in plain):
        return {"encoder": encoder} | describe_decoder(plain, facts, report)
    report.note(
        "decoder",
        "missing, so mae reconstruct refuses; mae_visualize_* files and ViTMAEForPreTraining have "
        "one",
    )
    return {"encoder": encoder}


def describe_encoder(plain: Weights, facts: Facts, report: Report) -> dict[str, Any]:
    """The arguments of `build_encoder`."""
    size = facts.get("image_size")[0]
    size = parse_size(size) if isinstance(size, str | int) else tuple(size) if size else None
    heads, why_heads = facts.get("heads")
    encoder = encoder_config(plain, size, heads)
    channels = encoder["channels"]
    registers = encoder["registers"]
    flat = IMAGENET if channels == 3 else ((0.5,) * channels,) * 2
    mean, why_mean = facts.get("mean", flat[0])
    std, _ = facts.get("std", flat[1])
    height, width = encoder["image_size"]
    scaled = encoder["init_values"] is not None
    if scaled:
        encoder["init_values"], _ = facts.get("init_values", encoder["init_values"])
    report.note(
        "encoder",
        f"{encoder['depth']} blocks, {encoder['embed_dim']} wide, {encoder['num_heads']} heads "
        f"({why_heads}), patches of {size_name(encoder['patch_size'])} px, images of "
        f"{height}x{width}, {channels} channel{'s' * (channels > 1)}"
        f"{f', {registers} registers' * (registers > 0)}{', layer scale' * scaled}",
    )
    report.note("pixels", f"mean {tuple(mean)}, std {tuple(std)} ({why_mean})")
    resizing, _ = facts.get("position_resizing", "timm")
    return encoder | {"mean": tuple(mean), "std": tuple(std), "position_resizing": resizing}


def describe_head(plain: Weights, facts: Facts, report: Report) -> dict[str, Any]:
    """A classifier's arguments besides its encoder."""
    count = len(plain["head.weight"])
    names, why = facts.get("classes", [str(i) for i in range(count)])
    if isinstance(names, str):
        names = read_classes(names)
    if len(names) != count:
        raise UserError(f"{len(names)} class names ({why}) for a head of {count} classes")
    pool = "mean" if "fc_norm.weight" in plain else "cls"
    pooled = f"{pool}{' of the patches' * (pool == 'mean')}"
    report.note("head", f"{count} classes (names {why}) on the {pooled}")
    return {"classes": list(names), "pool": pool, "batch_norm": "bn.running_mean" in plain}


def describe_decoder(plain: Weights, facts: Facts, report: Report) -> dict[str, Any]:
    """An MAE's arguments besides its encoder."""
    heads, why_heads = facts.get("decoder_heads")
    decoder = decoder_from_shapes(plain, heads)
    target, why = facts.get("target", facts.found.get("guess", "norm-pixels"))
    shape = f"{decoder.depth} blocks, {decoder.dim} wide, {decoder.heads} heads ({why_heads})"
    report.note(
        "decoder",
        f"{shape if decoder.depth else f'linear, {decoder.dim} wide'}, predicts {target} ({why}"
        f"{'; --target says otherwise' if why == 'assumed' else ''})",
    )
    if target == "norm-pixels":
        report.note(
            "pictures",
            "brightness and contrast of hidden patches as the visible ones' (no head for them)",
        )
    loss_on = facts.found.get("loss_on", "hidden")
    about = {"decoder": asdict(decoder), "target": target, "loss_on": loss_on}
    return about | {"encode_all": False}


def crop_of(facts: Facts, layout: str, model: dict[str, Any]) -> tuple[float, str]:
    """The share of an image's sides that evaluation sees, and where that comes from.

    The published figures of the reference are measured on the middle 224 px of 256 up to 224 px, on
    whole images above.
    """
    share, why = facts.get("crop_pct", 1.0)
    # The reference's fine-tuned files have timm's names.
    of_reference = "classes" in model and layout in ("facebookresearch/mae", "timm")
    if why == "assumed" and of_reference:
        share = 0.875 if max(model["encoder"]["image_size"]) <= 224 else 1.0
        why = "assumed, as facebookresearch/mae measures; --crop-pct says otherwise"
    if not 0 < share <= 1:
        raise UserError(f"--crop-pct {share:g} ({why}): say a share above 0, at most 1")
    return share, why


def read_classes(path: str) -> list[str]:
    try:
        return [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the class names of {path}: {error}") from error


@torch.no_grad()
def compare(made: nn.Module, found: Source, report: Report) -> None:
    """A forward pass on random images, compared with the source's own model if there is one;
    differences as notes.

    Raises:
        UserError: outputs are not finite, or differ by more than `CLOSE` of the largest.
    """
    encoder = made if isinstance(made, ViT) else made.encoder
    assert isinstance(encoder, ViT)
    same = torch.allclose(
        encoder.pos_embed, sincos_positions(encoder.grid, encoder.embed_dim), atol=1e-5
    )
    report.note(
        "positions",
        "the fixed sin-cos table"
        if same
        else "learned; used as they are (mae finetune trains them on, mae pretrain does not)",
    )
    images = torch.randn(
        2, encoder.channels, *encoder.image_size, generator=torch.Generator().manual_seed(0)
    )
    own = outputs(made, images)
    broken = [name for name, value in own.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{', '.join(broken)} of random images are not finite: the weights are damaged"
        )
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in own.items())
    report.note("proof", f"2 random images: {shapes}, all finite")
    if found.model is None:
        eps = f"{found.facts['eps']:g} in" if "eps" in found.facts else "not known of"
        report.note("norm eps", f"{eps} the source, 1e-6 here, as in the reference and timm")
        return
    norms = [m for m in found.model.modules() if isinstance(m, nn.LayerNorm)]
    epsilons = {m.eps for m in norms}
    if epsilons != {1e-6}:
        far = max(differences(own, outputs(found.model, images)).values())
        listed = ", ".join(f"{e:g}" for e in sorted(epsilons))
        report.note(
            "norm eps",
            f"{listed} in the source, 1e-6 here: its outputs differ by up to {far:.1e} for that",
        )
        for norm in norms:
            norm.eps = 1e-6
    theirs = outputs(found.model, images)
    for name, difference in differences(own, theirs).items():
        library = type(found.model).__module__.split(".")[0]
        report.note("proof", f"{name} differ from those of {library} by {difference:.1e}")
        if not difference <= CLOSE * max(1.0, float(theirs[name].abs().max())):
            raise UserError(
                f"the imported model is another function than the source's ({name} differ by "
                f"{difference:.1e}): it has a part that its tensors do not show (an activation, a "
                "pooling, a scale), so nothing was imported"
            )


def differences(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: float((value - theirs[name]).abs().max())
        for name, value in own.items()
        if name in theirs
    }


def outputs(model: Any, images: Float[Tensor, "B C H W"]) -> dict[str, Tensor]:
    """What a model has of tokens `[B, T, D]`, logits `[B, classes]` and predictions of hidden
    patches `[B, M, P]`.

    The model is ours, timm's or transformers'; all hide the same patches: all but the first
    quarter.
    """
    if isinstance(model, ViT):
        return {"tokens": model(images)}
    if isinstance(model, Classifier):
        return {"tokens": model.encoder(images), "logits": model(images)}
    if isinstance(model, MAE):
        return {
            "tokens": model.encoder(images),
            "predictions": model(images, first_quarter(images, model.encoder.grid)).prediction,
        }
    if hasattr(model, "forward_features"):
        logits = {"logits": model(images)} if model.num_classes else {}
        return {"tokens": model.forward_features(images), **logits}
    config, base = model.config, getattr(model, "vit", model)
    if config.model_type != "vit_mae":
        logits = {"logits": model(images).logits} if hasattr(model, "classifier") else {}
        return {"tokens": base(images).last_hidden_state, **logits}
    ratio, config.mask_ratio = config.mask_ratio, 0.0
    count = base.embeddings.patch_embeddings.num_patches
    order = torch.arange(count).float().expand(len(images), -1)
    tokens = base(images, noise=order).last_hidden_state
    config.mask_ratio = 0.75
    predictions = {}
    if hasattr(model, "decoder"):
        predictions = {
            "predictions": model(images, noise=order).logits[:, num_visible(count, 0.75) :]
        }
    config.mask_ratio = ratio
    return {"tokens": tokens, **predictions}


def first_quarter(images: Tensor, grid: Size) -> Mask:
    """The first quarter of the patches is visible."""
    order = torch.arange(math.prod(grid)).expand(len(images), -1)
    return mask_from_order(order, 0.75)
