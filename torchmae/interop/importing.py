"""`mae import`: weights of facebookresearch/mae, timm and transformers as a run folder, with a proof that they fit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError
from torchmae.interop.foreign import Source
from torchmae.interop.names import Weights, decoder_config, encoder_config
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, num_visible
from torchmae.models.patches import IMAGENET, sincos_positions
from torchmae.models.vit import ViT
from torchmae.settings.options import parse_size
from torchmae.tasks.import_weights.config import Import

CLOSE = 1e-4  # of the largest feature: what two float32 implementations of the same function may differ by


@dataclass
class Report:
    """The lines that are printed: what was found, and what is guessed or differs."""

    lines: list[str] = field(default_factory=list)

    def note(self, what: str, line: str) -> None:
        self.lines.append(f"  {what:<10}{line}")


def describe(
    config: Import, plain: Weights, facts: dict[str, Any], report: Report
) -> dict[str, Any]:
    """What `config()` of the model will be: an MAE's, a classifier's or, under "encoder" alone, an encoder's."""

    def said(name: str, otherwise: Any = None) -> tuple[Any, str]:
        asked = getattr(config, name)
        if asked is not None:
            return asked, "as asked"
        return (facts[name], "the source's") if name in facts else (otherwise, "assumed")

    if facts.get("activation", "gelu") != "gelu":
        raise UserError(
            f"the source's activation is {facts['activation']}; torchmae's ViT has exact GELU"
        )
    size = said("image_size")[0]
    size = parse_size(size) if isinstance(size, str | int) else tuple(size) if size else None
    heads, why_heads = said("heads")
    encoder = encoder_config(plain, size, heads)
    flat = IMAGENET if encoder["channels"] == 3 else ((0.5,) * encoder["channels"],) * 2
    (mean, why_mean), (std, _) = said("mean", flat[0]), said("std", flat[1])
    encoder |= {"mean": tuple(mean), "std": tuple(std)}
    height, width = encoder["image_size"]
    report.note(
        "encoder",
        f"{encoder['depth']} blocks, {encoder['embed_dim']} wide, {encoder['num_heads']} heads ({why_heads}), patches of "
        f"{encoder['patch_size']} px, images of {height}x{width}, {encoder['channels']} channels",
    )
    report.note("pixels", f"mean {tuple(mean)}, deviation {tuple(std)} ({why_mean})")
    if "head.weight" in plain:
        names, why = said("classes", [str(i) for i in range(len(plain["head.weight"]))])
        if isinstance(names, str):
            names = read_classes(names)
        if len(names) != len(plain["head.weight"]):
            raise UserError(
                f"{len(names)} class names ({why}) for a head of {len(plain['head.weight'])} classes"
            )
        pool = "mean" if "fc_norm.weight" in plain else "cls"
        report.note(
            "head",
            f"{len(names)} classes (names {why}) on the {pool}"
            + " of the patches" * (pool == "mean"),
        )
        return {
            "encoder": encoder,
            "classes": list(names),
            "pool": pool,
            "batch_norm": "bn.running_mean" in plain,
        }
    if not any(name.startswith("decoder_") for name in plain):
        report.note(
            "decoder",
            "missing, so mae reconstruct refuses; mae_visualize_* files and ViTMAEForPreTraining have one",
        )
        return {"encoder": encoder}
    heads, why_heads = said("decoder_heads")
    decoder = decoder_config(plain, heads)
    target, why = said("target", facts.get("guess", "norm-pixels"))
    report.note(
        "decoder",
        f"{decoder['decoder_depth']} blocks, {decoder['decoder_dim']} wide, {decoder['decoder_heads']} heads ({why_heads}), "
        f"predicts {target} ({why}{'; --target says otherwise' if why == 'assumed' else ''})",
    )
    if target == "norm-pixels":
        report.note(
            "pictures",
            "brightness and contrast of hidden patches as the visible ones' (no head for them)",
        )
    loss_on = facts.get("loss_on", "hidden")
    return {
        "encoder": encoder,
        **decoder,
        "target": target,
        "loss_on": loss_on,
        "encode_all": False,
    }


def crop_of(
    asked: float | None, facts: dict[str, Any], layout: str, model: dict[str, Any]
) -> tuple[float, str]:
    """The share of an image's sides that evaluation sees, and where that comes from.

    The published figures of the reference are measured on the middle 224 px of 256 up to 224 px, on whole images above.
    """
    share, why = 1.0, "assumed"
    if asked is not None:
        share, why = asked, "as asked"
    elif "crop_pct" in facts:
        share, why = float(facts["crop_pct"]), "the source's"
    elif "classes" in model and layout in (
        "facebookresearch/mae",
        "timm",
    ):  # fine-tuned files have timm's names
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
    """A forward pass on random images, beside the source's own model if there is one; what differs, as notes."""
    encoder = made if isinstance(made, ViT) else made.encoder
    assert isinstance(encoder, ViT)
    same = torch.allclose(
        encoder.pos_embed, sincos_positions(encoder.grid, encoder.embed_dim), atol=1e-5
    )
    report.note(
        "positions",
        "the fixed sin-cos table" if same else "learned; used as they are, fixed in training",
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
    report.note("proof", f"2 random images give {shapes}, all finite")
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
        report.note(
            "proof",
            f"{name} differ from those of {type(found.model).__module__.split('.')[0]} by {difference:.1e}",
        )
        if not difference <= CLOSE * max(1.0, float(theirs[name].abs().max())):
            raise UserError(
                f"the imported model is another function than the source's ({name} differ by {difference:.1e}): it has a part "
                "that its tensors do not show (an activation, a pooling, a scale), so nothing was imported"
            )


def differences(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: float((value - theirs[name]).abs().max())
        for name, value in own.items()
        if name in theirs
    }


def outputs(model: Any, images: Float[Tensor, "B C H W"]) -> dict[str, Tensor]:
    """What there is of tokens `[B, T, D]`, logits `[B, classes]` and predictions of hidden patches `[B, M, P]`.

    The model is ours, timm's or transformers'; all hide the same patches: those behind the first quarter.
    """
    if isinstance(model, ViT):
        return {"tokens": model(images)}
    if isinstance(model, Classifier):
        return {"tokens": model.encoder(images), "logits": model(images)}
    if isinstance(model, MAE):
        return {
            "tokens": model.encoder(images),
            "predictions": model(images, first_quarter(images, model.encoder)).prediction,
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


def first_quarter(images: Tensor, encoder: ViT) -> Mask:
    """The first quarter of the patches is visible."""
    order = torch.arange(encoder.grid[0] * encoder.grid[1]).expand(len(images), -1)
    visible = num_visible(order.shape[1], 0.75)
    return Mask(order[:, :visible], order[:, visible:])
