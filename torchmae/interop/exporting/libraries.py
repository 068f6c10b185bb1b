"""Weights in the layout of another library, with what it needs to build the model."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchmae.errors import UserError, library
from torchmae.interop.exporting.check import (
    ExportInput,
    ExportResult,
    hidden,
    no_decoder,
    reference_output,
)
from torchmae.interop.names import (
    Weights,
    fold_bn,
    fold_class_position,
    fold_layer_scale,
    to_ours,
    to_plain,
    to_torchvision,
    to_transformers,
)
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.patches import WHITE, gather_tokens
from torchmae.models.vit import ViT
from torchmae.models.weights import build_any


def plain_vit(subject: ExportInput, form: str) -> None:
    """`UserError` for what the ViTs of transformers and torchvision do not have."""
    encoder = subject.encoder
    if encoder.registers:
        raise UserError(f"{form} has no register tokens: use --to timm, onnx or torch-export")
    if len(set(encoder.patch)) > 1:
        raise UserError(f"{form} takes square patches only: use --to timm, onnx or torch-export")


def square(subject: ExportInput, form: str) -> int:
    height, width = subject.encoder.image_size
    if height != width:
        raise UserError(
            f"{form} takes square images only, not {height}x{width}: use --to timm, onnx or "
            "torch-export"
        )
    return height


def to_timm(subject: ExportInput, folder: Path) -> ExportResult:
    """A folder for `timm.create_model("local-dir:...")`, which can be uploaded to a hub as it is.

    With registers, as timm's `vit_*_reg4_*`: `reg_token`, and positions of the patches alone
    (`no_embed_class`).
    """
    timm = library("timm", "timm")
    no_decoder(subject, "timm")
    encoder, classes = subject.encoder, list(subject.config.get("classes", []))
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    arguments = {name: getattr(encoder, name) for name in names}
    arguments |= {"img_size": encoder.image_size, "in_chans": encoder.channels}
    arguments |= {"global_pool": "avg" if subject.pool == "mean" else "token"}
    if encoder.init_values is not None:
        arguments |= {"init_values": encoder.init_values}
    if encoder.registers:
        arguments |= {"class_token": True, "reg_tokens": encoder.registers, "no_embed_class": True}
    pretrained_cfg = {
        "input_size": [encoder.channels, *encoder.image_size],
        "mean": encoder.mean,
        "std": encoder.std,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "num_classes": len(classes),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": subject.crop_pct,
    }
    about = {
        "architecture": f"vit_base_patch16_{'reg4_gap_256' if encoder.registers else '224'}",
        "num_classes": len(classes),
        "num_features": encoder.embed_dim,
        "model_args": {**arguments, "num_classes": len(classes)},
        "pretrained_cfg": pretrained_cfg,
        **({"label_names": classes} if classes else {}),
    }
    (folder / "config.json").write_text(json.dumps(about, indent=1))
    save(fold_class_position(fold_bn(subject.weights)), folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    lines = [
        "import timm",
        f'model = timm.create_model("local-dir:{subject.out}", pretrained=True).eval()',
        "logits = model(images)" if classes else "tokens = model.forward_features(images)",
    ]
    return ExportResult(model if classes else model.forward_features, lines, model)


def to_hugging_face(subject: ExportInput, folder: Path) -> ExportResult:
    """A folder for `from_pretrained`: ViTModel, ViTForImageClassification (class token) or
    ViTMAEForPreTraining."""
    transformers = library("transformers", "transformers")
    transformers.utils.logging.disable_progress_bar()
    model = subject.model
    plain_vit(subject, "transformers' ViT")
    if subject.pool == "mean":
        raise UserError(
            "transformers' ViT classifies the class token; this one pools the mean of the patches: "
            "use --to timm or onnx"
        )
    kind, config = hugging_face_config(subject, transformers)
    config.architectures = [kind.__name__]
    config.save_pretrained(folder)
    # Not save_pretrained for the weights: 5.23 writes names of the decoder that no other version
    # knows.
    bare = kind is transformers.ViTModel
    weights = fold_layer_scale(fold_bn(subject.weights))
    save(to_transformers(weights, "" if bare else "vit."), folder)
    write_preprocessor(subject.encoder, folder)
    again = kind.from_pretrained(folder, **({"add_pooling_layer": False} if bare else {})).eval()

    def reloaded(images: Tensor) -> Tensor:
        if isinstance(model, MAE):
            mask = hidden(subject, images)
            order = torch.cat(mask, dim=1).float()
            return gather_tokens(again(images, noise=order).logits, mask.hide)
        output = again(images)
        return output.last_hidden_state if bare else output.logits

    extra = ", add_pooling_layer=False" if bare else ""
    lines = [
        f"from transformers import {kind.__name__}",
        f'model = {kind.__name__}.from_pretrained("{subject.out}"{extra}).eval()',
        f"output = model(images).{'last_hidden_state' if bare else 'logits'}",
    ]
    return ExportResult(reloaded, lines, again)


def hugging_face_config(subject: ExportInput, transformers: Any) -> tuple[Any, Any]:
    """The class of transformers, and its config."""
    encoder, model = subject.encoder, subject.model
    height, width = encoder.image_size
    sizes: dict[str, Any] = {
        "image_size": height if height == width else encoder.image_size,
        "patch_size": encoder.patch[0],
        "num_channels": encoder.channels,
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.embed_dim * encoder.mlp_ratio),
        "layer_norm_eps": 1e-6,
    }
    if isinstance(model, Classifier):
        labels = dict(enumerate(model.classes))
        config = transformers.ViTConfig(**sizes, id2label=labels)
        return transformers.ViTForImageClassification, config
    if not isinstance(model, MAE):
        return transformers.ViTModel, transformers.ViTConfig(**sizes)
    square(subject, "transformers' ViTMAE")
    decoder = model.decoder.config
    if decoder.kind != "transformer" or model.target_name not in ("pixels", "norm-pixels"):
        raise UserError(
            "transformers' ViTMAE has a decoder of blocks that predicts pixels, not "
            f"{decoder.kind} and {model.target_name}: add --only encoder, or use --to safetensors"
        )
    config = transformers.ViTMAEConfig(
        **sizes,
        decoder_hidden_size=decoder.dim,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=4 * decoder.dim,
        mask_ratio=subject.mask_ratio,
        norm_pix_loss=model.target_name == "norm-pixels",
    )
    return transformers.ViTMAEForPreTraining, config


def write_preprocessor(encoder: ViT, folder: Path) -> None:
    """What transformers' ViTImageProcessor does to images before the model."""
    height, width = encoder.image_size
    pixels = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_resize": True,
        "do_rescale": encoder.scaling is None,
        "rescale_factor": 1 / WHITE,
        "do_normalize": True,
        "image_mean": encoder.mean,
        "image_std": encoder.std,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1))


def to_vision(subject: ExportInput, folder: Path) -> ExportResult:
    """The weights of a `torchvision.models.VisionTransformer`, which has 3 channels, squares and a
    class token."""
    models = library("torchvision.models", "torchvision")
    no_decoder(subject, "torchvision")
    plain_vit(subject, "torchvision's VisionTransformer")
    encoder, classes = subject.encoder, subject.config.get("classes")
    side = square(subject, "torchvision's VisionTransformer")
    if subject.pool == "mean" or encoder.channels != 3:
        what = (
            "3 channels"
            if encoder.channels != 3
            else "the class token's head, and this one pools the mean"
        )
        raise UserError(
            f"torchvision's VisionTransformer has {what}: use --to timm, onnx or torch-export"
        )
    arguments = {
        "image_size": side,
        "patch_size": encoder.patch[0],
        "num_layers": encoder.depth,
        "num_heads": encoder.num_heads,
        "hidden_dim": encoder.embed_dim,
        "mlp_dim": int(encoder.embed_dim * encoder.mlp_ratio),
    }
    if classes:
        arguments["num_classes"] = len(classes)
    save(to_torchvision(fold_layer_scale(fold_bn(subject.weights))), folder)
    again = models.VisionTransformer(**arguments)
    if not classes:
        again.heads = nn.Identity()
    again.load_state_dict(load_file(folder / "model.safetensors"))
    again.eval()

    def tokens(images: Tensor) -> Tensor:
        x = again._process_input(images)
        return again.encoder(torch.cat([again.class_token.expand(len(x), -1, -1), x], dim=1))

    listed = ", ".join(f"{name}={value}" for name, value in arguments.items())
    lines = ["import torch, torchvision", "from safetensors.torch import load_file"]
    lines += [f"model = torchvision.models.VisionTransformer({listed})"]
    lines += [] if classes else ["model.heads = torch.nn.Identity()  # the class token's features"]
    lines.append(f'model.load_state_dict(load_file("{subject.out}/model.safetensors"))')
    return ExportResult(
        again if classes else tokens, [*lines, "output = model.eval()(images)"], again
    )


def to_safetensors(subject: ExportInput, folder: Path) -> ExportResult:
    """One file in the layout of facebookresearch/mae (timm's names), with our description in its
    metadata."""
    if subject.pool == "mean" and isinstance(subject.model, ViT):
        raise UserError(
            "the norm of this encoder belongs to its classifier's pooling: export the classifier"
        )
    stated = {**subject.config, "mask_ratio": subject.mask_ratio, "crop_pct": subject.crop_pct}
    save(subject.weights, folder, {"torchmae": json.dumps(stated)})
    again: Any = build_any(subject.config).eval()
    weights = to_ours(to_plain(load_file(folder / "model.safetensors"))[1], subject.config)
    prefix = "encoder." if isinstance(again, ViT) else ""
    again.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items()})
    lines = [
        "from safetensors.torch import load_file",
        f'weights = load_file("{subject.out}/model.safetensors")',
        "model.load_state_dict(weights)  # of timm, or of facebookresearch/mae for a whole MAE",
    ]
    return ExportResult(
        lambda images: reference_output(subject._replace(model=again), images), lines, again
    )


def save(weights: Weights, folder: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes model.safetensors."""
    stored = {name: weight.contiguous().clone() for name, weight in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata or {"format": "pt"})
