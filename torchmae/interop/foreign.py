"""Weights as other libraries keep them: PyTorch and safetensors files, folders of timm and
transformers, their hubs.

The only place that reads PyTorch's pickled files, with `weights_only=True`: nothing in a file is
ever run.
"""

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from torchmae.disk import parse_json, sha256
from torchmae.errors import UserError, library
from torchmae.interop.names import Weights, to_plain
from torchmae.settings.options import parse_size

# Types of models of transformers that are imported, and their classes without a head.
TRANSFORMERS_MODELS = {
    "vit": "ViTModel",
    "vit_mae": "ViTMAEModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}


class Source(NamedTuple):
    """Weights as found.

    `facts` is what their file or library says about them: under the names of the flags of `mae
    import`, and activation, eps, mask_ratio, loss_on, guess (a target). `sha256` is that of the
    file, `model` the other library's own model, if there is one to compare with.
    """

    weights: Weights
    facts: dict[str, Any]
    sha256: str | None = None
    model: Any = None


def open_weights(source: str, image_size: str | int | None = None) -> Source:
    """The weights of `timm:NAME`, `hf:NAME`, a folder or a file."""
    kind, _, name = source.partition(":")
    if kind == "timm" and name:
        return from_timm(name, image_size)
    path = Path(download(name) if kind == "hf" and name else source)
    if (
        path.is_dir()
        and not (path / "config.json").exists()
        and len(alone := list(path.glob("*.safetensors"))) == 1
    ):
        path = alone[0]  # as mae export --to safetensors leaves it
    if path.is_dir():
        return from_folder(path)
    if not path.is_file():
        raise UserError(f"{source} is no file, no folder, and neither timm:NAME nor hf:NAME")
    weights, facts = read_file(path)
    return Source(weights, facts, sha256(path))


def read_file(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The tensors of a .safetensors or a PyTorch file, and the facts that it states."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                stated = parse_json((file.metadata() or {}).get("torchmae", "null"))
            return load_file(path), facts_of_model(stated) if stated else {}
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    value = read_pickle(path)
    arguments = value.get("args") if isinstance(value, dict) else None
    # DINO keeps teacher and student, and evaluates the teacher.
    for name in ("model", "state_dict", "module", "teacher", "student"):
        if isinstance(value, dict) and isinstance(value.get(name), dict):
            value = value[name]
            break
    tensors = isinstance(value, dict) and all(isinstance(v, Tensor) for v in value.values())
    if not tensors or not value:
        raise UserError(
            f"{path} holds no state dict (names and tensors), also not under model, state_dict, "
            "module, teacher or student"
        )
    facts: dict[str, Any] = {}
    if isinstance(arguments, argparse.Namespace) and hasattr(arguments, "norm_pix_loss"):
        facts["target"] = "norm-pixels" if arguments.norm_pix_loss else "pixels"
        facts["mask_ratio"] = getattr(arguments, "mask_ratio", 0.75)
    elif "visualize" in path.name:
        facts["guess"] = "pixels"
    small = value.get("module.base_encoder.cls_token")
    if small is not None and small.shape[-1] == 384:
        facts["heads"] = 12  # of MoCo v3's ViT-S; timm's has 6
    return {str(n): w for n, w in value.items()}, facts


def read_pickle(path: Path) -> Any:
    """What a PyTorch file holds: tensors, containers and numbers; nothing in it is run."""
    try:  # the reference's checkpoints hold their command line in a Namespace, which is data
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{path} wants to run code ({wanted[1].rstrip('.')}) and was not loaded: weights "
                "need none. Ask its author for a .safetensors file, or one of tensors alone"
            ) from error
        # PyTorch's own message for the rest recommends to load the file without this protection.
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "eights_only" in str(error):
            why = "another kind of file, or one with more than tensors in it"
        raise UserError(f"{path} cannot be read as a PyTorch file: {why}") from error


def facts_of_model(model: dict[str, Any]) -> dict[str, Any]:
    """Facts from our own description of a model, which `mae export` leaves in its files."""
    encoder = model["encoder"]
    facts = {name: encoder[name] for name in ("image_size", "mean", "std")} | {
        "heads": encoder["num_heads"]
    }
    more = ("position_resizing", "init_values")
    facts |= {name: encoder[name] for name in more if encoder.get(name) is not None}
    if "decoder" in model:
        facts["decoder_heads"] = model["decoder"]["heads"]
    others = ("target", "loss_on", "classes", "mask_ratio", "crop_pct")
    return facts | {name: model[name] for name in others if name in model}


def from_folder(folder: Path) -> Source:
    """A folder of transformers or timm: config.json and model.safetensors or pytorch_model.bin."""
    try:
        config = parse_json((folder / "config.json").read_text())
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise UserError(
            f"{folder} has no config.json of a model ({type(error).__name__})"
        ) from error
    if "torchmae" in config:
        raise UserError(f"{folder} is a run folder already: use it as it is")
    file = next(
        (f for n in ("model.safetensors", "pytorch_model.bin") if (f := folder / n).is_file()), None
    )
    if file is None:
        raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    weights, stated = read_file(file)
    if "architecture" in config:
        cfg, args = config.get("pretrained_cfg", {}), config.get("model_args", {})
        facts = {
            "mean": cfg.get("mean"),
            "std": cfg.get("std"),
            "classes": config.get("label_names"),
        }
        facts |= {
            "heads": args.get("num_heads"),
            "image_size": args.get("img_size"),
            "crop_pct": cfg.get("crop_pct"),
            "init_values": args.get("init_values"),
        }
        return Source(
            weights, stated | {n: v for n, v in facts.items() if v is not None}, sha256(file)
        )
    if config.get("model_type") not in TRANSFORMERS_MODELS:
        raise UserError(
            f"{folder} holds a model of type {config.get('model_type')}; torchmae imports "
            f"{', '.join(TRANSFORMERS_MODELS)}"
        )
    return Source(
        weights,
        stated | facts_of_transformers(folder, config),
        sha256(file),
        transformers_model(folder, config),
    )


def facts_of_transformers(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    size, labels = config.get("image_size", 224), config.get("id2label")
    facts = {
        "image_size": size,
        "heads": config.get("num_attention_heads", 12),
        "activation": config.get("hidden_act", "gelu"),
        "eps": config.get("layer_norm_eps", 1e-12),
        "classes": [labels[str(i)] for i in range(len(labels))] if labels else None,
    }
    if config["model_type"] == "vit_mae":
        facts["decoder_heads"] = config.get("decoder_num_attention_heads", 16)
        facts["target"] = "norm-pixels" if config.get("norm_pix_loss") else "pixels"
        facts["mask_ratio"] = config.get("mask_ratio", 0.75)
    if (folder / "preprocessor_config.json").is_file():
        pixels = parse_json((folder / "preprocessor_config.json").read_text())
        facts |= {"mean": pixels.get("image_mean"), "std": pixels.get("image_std")}
    return {name: value for name, value in facts.items() if value is not None}


def transformers_model(folder: Path, config: dict[str, Any]) -> Any:
    """The model as transformers builds it, to compare with; None without the library."""
    try:
        transformers = library("transformers", "transformers")
    except UserError:
        return None
    transformers.utils.logging.disable_progress_bar()
    name = (config.get("architectures") or [TRANSFORMERS_MODELS[config["model_type"]]])[0]
    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True).eval()
    except Exception as error:
        raise UserError(
            f"transformers cannot load {folder} as {name}: {str(error).splitlines()[0]}"
        ) from error


def download(name: str) -> str:
    """The folder of a model on the hub, downloaded because the user named it."""
    hub = library("huggingface_hub", "transformers")
    try:
        return str(
            hub.snapshot_download(
                name, allow_patterns=["*.json", "model.safetensors", "pytorch_model.bin"]
            )
        )
    except Exception as error:
        raise UserError(
            f"hf:{name} could not be fetched: {str(error).strip().splitlines()[0]}"
        ) from error


def from_timm(name: str, image_size: str | int | None) -> Source:
    """A model of timm with its published weights, or with those of a file."""
    timm = library("timm", "timm")
    name, _, file = name.partition("?checkpoint=")
    size: dict[str, Any] = {} if image_size is None else {"img_size": parse_size(image_size)}
    try:
        if file:
            if not Path(file).is_file():
                raise UserError(f"{file} does not exist")
            plain = to_plain(read_file(Path(file))[0])[1]
            head: dict[str, Any] = {
                "num_classes": len(plain.get("head.weight", ())),
                "global_pool": "avg" if "fc_norm.weight" in plain else "token",
            }
            model: Any = timm.create_model(name, **head, **size)
            model.load_state_dict(plain)
        else:
            model = timm.create_model(name, pretrained=True, **size)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"timm:{name} could not be made: {str(error).strip().splitlines()[0]}"
        ) from error
    cfg = model.pretrained_cfg
    facts = {"mean": cfg.get("mean"), "std": cfg.get("std"), "classes": cfg.get("label_names")}
    facts["crop_pct"] = cfg.get("crop_pct")
    if hasattr(model, "blocks") and hasattr(model, "patch_embed"):
        facts |= {
            "heads": getattr(model.blocks[0].attn, "num_heads", None),
            "image_size": model.patch_embed.img_size,
        }
    known = {n: v for n, v in facts.items() if v is not None}
    return Source(model.state_dict(), known, sha256(Path(file)) if file else None, model.eval())
