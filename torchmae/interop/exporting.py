"""A run's model in the format of another library, reloaded there and compared. `EXPORTS` has one
function a format."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchmae.errors import RunError, UserError
from torchmae.interop.foreign import library
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
from torchmae.models.masking import Mask, mask_from_order
from torchmae.models.patches import WHITE, gather_tokens
from torchmae.models.vit import ViT
from torchmae.models.weights import build_any


class ExportInput(NamedTuple):
    """What is exported: the module in eval mode, its weights under plain names (see
    `interop.names`), its `config()`, the final folder, and the share of an image's sides that
    evaluation sees."""

    model: Any
    weights: Weights
    config: dict[str, Any]
    mask_ratio: float
    out: Path
    crop_pct: float

    @property
    def encoder(self) -> ViT:
        encoder = self.model.encoder if isinstance(self.model, MAE | Classifier) else self.model
        if not isinstance(encoder, ViT):
            raise UserError(f"only a ViT can be exported, not {type(encoder).__name__}")
        return encoder

    @property
    def pool(self) -> str:
        return "mean" if isinstance(self.encoder.norm, nn.Identity) else "cls"


class ExportResult(NamedTuple):
    """An export.

    `reloaded` is the function of the reloaded model, from images to what `reference_output`
    returns; `lines` of Python load it; `model` is that model, if it is one of PyTorch; `tolerance`
    is the largest difference allowed, in each size of batch of `batches`.
    """

    reloaded: Callable[[Float[Tensor, "B C H W"]], Tensor]
    lines: list[str]
    model: nn.Module | None
    tolerance: float = 1e-5
    batches: tuple[int, ...] = (16,)


@torch.no_grad()
def reference_output(subject: ExportInput, images: Float[Tensor, "B C H W"]) -> Tensor:
    """Tokens of an encoder, logits of a classifier, predictions of an MAE for the hidden patches of
    `hidden`."""
    if isinstance(subject.model, MAE):
        return subject.model(images, hidden(subject, images)).prediction
    return subject.model(images)


def hidden(subject: ExportInput, images: Tensor) -> Mask:
    """The first patches are visible, as many as at the run's mask ratio."""
    order = torch.arange(math.prod(subject.encoder.grid)).expand(len(images), -1)
    return mask_from_order(order, subject.mask_ratio)


def compare(subject: ExportInput, made: ExportResult) -> str:
    """The largest difference on 16 random images, in words.

    The tolerance is absolute. Where outputs are large, float32 itself rounds more coarsely than
    that, in any order of the same sums; then the models are compared in float64, with the same
    tolerance.

    Raises:
        RunError: the difference is larger than the tolerance.
    """
    encoder = subject.encoder
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, encoder.channels, *encoder.image_size, generator=generator)
    difference, largest = max_abs_diff(subject, made, images)
    words = f"by at most {difference:.1e}"
    if not difference <= made.tolerance and made.model is not None:
        models = (subject.model.double(), made.model.double())
        difference, _ = max_abs_diff(subject, made, images.double())
        words += f" in float32 (outputs go up to {largest:.0f}) and by {difference:.1e} in float64"
        for model in models:
            model.float()
    if not difference <= made.tolerance:
        raise RunError(
            f"reloaded, the export differs by {difference:.1e} (allowed: {made.tolerance:.0e}): "
            "nothing written"
        )
    return words


def max_abs_diff(
    subject: ExportInput, made: ExportResult, images: Float[Tensor, "B C H W"]
) -> tuple[float, float]:
    """The largest difference, over all sizes of batch, and the largest output."""
    differences, outputs = [], []
    for batch in made.batches:
        expected = reference_output(subject, images[:batch])
        output = made.reloaded(images[:batch])
        if output.shape != expected.shape:
            raise RunError(
                f"reloaded, the export returns {list(output.shape)}, not {list(expected.shape)}: "
                "nothing written"
            )
        differences.append((output - expected).abs().max())
        outputs.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(outputs).max())


def no_decoder(subject: ExportInput, form: str) -> None:
    if isinstance(subject.model, MAE):
        raise UserError(
            f"{form} has no masked autoencoder: add --only encoder, or use --to transformers or "
            "safetensors"
        )


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
        "do_rescale": True,
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


def program(subject: ExportInput, form: str) -> Any:
    """The forward pass without a mask as a graph, for any number of images."""
    no_decoder(subject, form)
    images = torch.zeros(2, subject.encoder.channels, *subject.encoder.image_size)
    batch = {"images": {0: torch.export.Dim("batch")}}
    return torch.export.export(subject.model, (images,), dynamic_shapes=batch, strict=True)


def to_torch_export(subject: ExportInput, folder: Path) -> ExportResult:
    """A program that needs PyTorch, but not torchmae."""
    torch.export.save(program(subject, "torch.export"), folder / "model.pt2")
    again = torch.export.load(folder / "model.pt2").module()
    lines = [
        "import torch",
        f'model = torch.export.load("{subject.out}/model.pt2").module()',
        "output = model(images)",
    ]
    return ExportResult(again, lines, again, batches=(1, 3, 16))


def to_onnx(subject: ExportInput, folder: Path) -> ExportResult:
    """A graph for ONNX Runtime and others that read ONNX."""
    onnxruntime = library("onnxruntime", "onnx")
    library("onnxscript", "onnx")  # torch.onnx.export needs it
    graph = program(subject, "ONNX")
    made = torch.onnx.export(
        graph, (), input_names=["images"], output_names=["output"], dynamo=True, verbose=False
    )
    assert made is not None
    made.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    lines = [
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{subject.out}/model.onnx")',
        'output = session.run(None, {"images": images.numpy()})[0]',
    ]

    def reloaded(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return ExportResult(reloaded, lines, None, 1e-4, (1, 3, 16))


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


EXPORTS: dict[str, Callable[[ExportInput, Path], ExportResult]] = {
    "timm": to_timm,
    "transformers": to_hugging_face,
    "torchvision": to_vision,
    "onnx": to_onnx,
    "torch-export": to_torch_export,
    "safetensors": to_safetensors,
}
