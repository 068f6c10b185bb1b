"""`mae export`: a run's model in the form of another library, reloaded there and compared before it is called done."""

import json
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
    to_ours,
    to_plain,
    to_torchvision,
    to_transformers,
)
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE, build_encoder
from torchmae.models.masking import Mask, num_visible
from torchmae.models.patches import gather_tokens
from torchmae.models.vit import ViT


class ExportInput(NamedTuple):
    """What is exported: the module in eval mode, its weights under plain names (see `models.convert`), its description,
    the folder in which it will stand at the end, and the share of an image's sides that evaluation sees."""

    model: Any
    weights: Weights
    config: dict[str, Any]
    mask_ratio: float
    out: Path
    crop_pct: float

    @property
    def encoder(self) -> ViT:
        return self.model if isinstance(self.model, ViT) else self.model.encoder

    @property
    def pool(self) -> str:
        return "mean" if isinstance(self.encoder.norm, nn.Identity) else "cls"


class ExportResult(NamedTuple):
    """An export: the function of the reloaded model, images to what `reference_output` gives; the lines that load it; that model, if
    it is one of PyTorch; the largest difference allowed."""

    reloaded: Callable[[Float[Tensor, "B C H W"]], Tensor]
    lines: list[str]
    model: nn.Module | None
    tolerance: float = 1e-5
    batches: tuple[int, ...] = (16,)


@torch.no_grad()
def reference_output(subject: ExportInput, images: Float[Tensor, "B C H W"]) -> Tensor:
    """Tokens of an encoder, logits of a classifier, predictions of an MAE for the patches that `hidden` gives."""
    if isinstance(subject.model, MAE):
        return subject.model(images, hidden(subject, images)).prediction
    return subject.model(images)


def hidden(subject: ExportInput, images: Tensor) -> Mask:
    """The first patches are visible, as many as the run's ratio leaves."""
    order = torch.arange(subject.encoder.grid[0] * subject.encoder.grid[1]).expand(len(images), -1)
    visible = num_visible(order.shape[1], subject.mask_ratio)
    return Mask(order[:, :visible], order[:, visible:])


def compare(subject: ExportInput, made: ExportResult) -> str:
    """How far the two are apart on 16 random images (in each size of batch), in words; `RunError` if that is too far.

    The tolerance is absolute. Where outputs are large, float32 itself rounds more coarsely than that, in any order of the
    same sums; there the models are held against each other in float64, and the tolerance stays what it is.
    """
    encoder, generator = subject.encoder, torch.Generator().manual_seed(0)
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
            f"reloaded, the export differs by {difference:.1e} (allowed: {made.tolerance:.0e}): nothing written"
        )
    return words


def max_abs_diff(
    subject: ExportInput, made: ExportResult, images: Float[Tensor, "B C H W"]
) -> tuple[float, float]:
    """The largest difference, over all sizes of batch, and the largest output."""
    differences, outputs = [], []
    for batch in made.batches:
        expected, given = reference_output(subject, images[:batch]), made.reloaded(images[:batch])
        if given.shape != expected.shape:
            raise RunError(
                f"reloaded, the export gives {list(given.shape)}, not {list(expected.shape)}: nothing written"
            )
        differences.append((given - expected).abs().max())
        outputs.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(outputs).max())


def no_decoder(subject: ExportInput, form: str) -> None:
    if isinstance(subject.model, MAE):
        raise UserError(
            f"{form} has no masked autoencoder: add --only encoder, or use --to transformers or safetensors"
        )


def square(subject: ExportInput, form: str) -> int:
    height, width = subject.encoder.image_size
    if height != width:
        raise UserError(
            f"{form} takes square images only, not {height}x{width}: use --to timm, onnx or torch-export"
        )
    return height


def to_timm(subject: ExportInput, folder: Path) -> ExportResult:
    """A folder for `timm.create_model("local-dir:...")`, which can be uploaded to a hub as it is."""
    timm = library("timm", "timm")
    no_decoder(subject, "timm")
    encoder, classes = subject.encoder, list(subject.config.get("classes", []))
    pool = "avg" if subject.pool == "mean" else "token"
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    arguments = {name: getattr(encoder, name) for name in names}
    arguments |= {"img_size": encoder.image_size, "in_chans": encoder.channels, "global_pool": pool}
    pixels: dict[str, Any] = dict(
        input_size=[encoder.channels, *encoder.image_size], mean=encoder.mean, std=encoder.std
    )
    places = dict(first_conv="patch_embed.proj", classifier="head", num_classes=len(classes))
    shown = dict(fixed_input_size=True, interpolation="bicubic", crop_pct=subject.crop_pct)
    about: dict[str, Any] = dict(
        architecture="vit_base_patch16_224",
        num_classes=len(classes),
        num_features=encoder.embed_dim,
    )
    about |= dict(
        model_args={**arguments, "num_classes": len(classes)},
        pretrained_cfg=pixels | places | shown,
    )
    about |= {"label_names": classes} if classes else {}
    (folder / "config.json").write_text(json.dumps(about, indent=1))
    save(fold_bn(subject.weights), folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    use = "logits = model(images)" if classes else "tokens = model.forward_features(images)"
    return ExportResult(
        model if classes else model.forward_features,
        [
            "import timm",
            f'model = timm.create_model("local-dir:{subject.out}", pretrained=True).eval()',
            use,
        ],
        model,
    )


def to_hugging_face(subject: ExportInput, folder: Path) -> ExportResult:
    """A folder for `from_pretrained`: ViTModel, ViTForImageClassification (class token) or ViTMAEForPreTraining."""
    transformers = library("transformers", "transformers")
    transformers.utils.logging.disable_progress_bar()
    encoder, model = subject.encoder, subject.model
    if subject.pool == "mean":
        raise UserError(
            "transformers' ViT classifies the class token; this one pools the mean of the patches: use --to timm or onnx"
        )
    sizes: dict[str, Any] = {
        "image_size": encoder.image_size[0]
        if len(set(encoder.image_size)) == 1
        else encoder.image_size,
        "patch_size": encoder.patch_size,
        "num_channels": encoder.channels,
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.embed_dim * encoder.mlp_ratio),
        "layer_norm_eps": 1e-6,
    }
    kind = transformers.ViTModel
    use, extra = "output = model(images).last_hidden_state", ", add_pooling_layer=False"
    if isinstance(model, MAE):
        square(subject, "transformers' ViTMAE")
        dim = subject.config["decoder_dim"]
        theirs = transformers.ViTMAEConfig(
            **sizes,
            decoder_hidden_size=dim,
            decoder_num_hidden_layers=subject.config["decoder_depth"],
            decoder_num_attention_heads=subject.config["decoder_heads"],
            decoder_intermediate_size=4 * dim,
            mask_ratio=subject.mask_ratio,
            norm_pix_loss=subject.config["target"] == "norm-pixels",
        )
        kind, use, extra = transformers.ViTMAEForPreTraining, "output = model(images).logits", ""
    elif isinstance(model, Classifier):
        theirs = transformers.ViTConfig(**sizes, id2label=dict(enumerate(model.classes)))
        kind, use, extra = (
            transformers.ViTForImageClassification,
            "output = model(images).logits",
            "",
        )
    else:
        theirs = transformers.ViTConfig(**sizes)
    theirs.architectures = [kind.__name__]
    theirs.save_pretrained(folder)
    # Not save_pretrained for the weights: 5.23 gives the decoder's names that no other version knows.
    save(
        to_transformers(fold_bn(subject.weights), "" if kind is transformers.ViTModel else "vit."),
        folder,
    )
    height, width = encoder.image_size
    pixels: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": height, "width": width},
        "resample": 3,
    }
    pixels |= {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    pixels |= {"image_mean": encoder.mean, "image_std": encoder.std}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1))
    again = kind.from_pretrained(folder, **({"add_pooling_layer": False} if extra else {})).eval()

    def reloaded(images: Tensor) -> Tensor:
        if isinstance(model, MAE):
            mask = hidden(subject, images)
            order = torch.cat(mask, dim=1).float()
            return gather_tokens(again(images, noise=order).logits, mask.hide)
        output = again(images)
        return output.logits if isinstance(model, Classifier) else output.last_hidden_state

    load_line = f'model = {kind.__name__}.from_pretrained("{subject.out}"{extra}).eval()'
    return ExportResult(
        reloaded, [f"from transformers import {kind.__name__}", load_line, use], again
    )


def to_vision(subject: ExportInput, folder: Path) -> ExportResult:
    """The weights of a `torchvision.models.VisionTransformer`, which has 3 channels, squares and a class token."""
    models = library("torchvision.models", "torchvision")
    no_decoder(subject, "torchvision")
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
        "patch_size": encoder.patch_size,
        "num_layers": encoder.depth,
        "num_heads": encoder.num_heads,
        "hidden_dim": encoder.embed_dim,
        "mlp_dim": int(encoder.embed_dim * encoder.mlp_ratio),
    }
    if classes:
        arguments["num_classes"] = len(classes)
    save(to_torchvision(fold_bn(subject.weights)), folder)
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
    """A graph for ONNX Runtime and its relatives."""
    onnxruntime, _ = (
        library("onnxruntime", "onnx"),
        library("onnxscript", "onnx"),
    )  # torch.onnx.export needs the latter
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
    """One file in the layout of facebookresearch/mae (timm's names); its metadata lets mae import know it exactly."""
    if subject.pool == "mean" and isinstance(subject.model, ViT):
        raise UserError(
            "the norm of this encoder belongs to its classifier's pooling: export the classifier"
        )
    stated = {**subject.config, "mask_ratio": subject.mask_ratio, "crop_pct": subject.crop_pct}
    save(subject.weights, folder, {"torchmae": json.dumps(stated)})
    builders = {
        MAE: MAE.build,
        Classifier: Classifier.build,
        ViT: lambda c: build_encoder(c["encoder"]),
    }
    again: Any = builders[type(subject.model)](subject.config)
    weights = to_ours(to_plain(load_file(folder / "model.safetensors"))[1], subject.config)
    own = (
        {n.removeprefix("encoder."): w for n, w in weights.items()}
        if isinstance(again, ViT)
        else weights
    )
    again.load_state_dict(own)
    lines = [
        "from safetensors.torch import load_file",
        f'weights = load_file("{subject.out}/model.safetensors")',
    ]
    lines += [
        "model.load_state_dict(weights)  # of timm, or of facebookresearch/mae for a whole MAE"
    ]
    return ExportResult(
        lambda images: reference_output(subject._replace(model=again.eval()), images), lines, again
    )


def save(weights: Weights, folder: Path, metadata: dict[str, str] | None = None) -> None:
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
