"""Run folders of models that nobody has trained."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from torchmae.models.vit import ViT
from torchmae.runfolder import write_config


def small_vit(size=(32, 32), **options):
    """A ViT with random values everywhere, so that no bias is zero and no norm the identity."""
    torch.manual_seed(0)
    encoder = ViT(
        size, **({"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4} | options)
    )
    return shaken(encoder)


def shaken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def plant_run(folder: Path, model: nn.Module, verb: str = "import") -> Path:
    """A run folder that holds a model: an encoder, or anything with `config()`."""
    folder.mkdir(parents=True)
    encoder = isinstance(model, ViT)
    weights = {f"encoder.{n}" if encoder else n: w for n, w in model.state_dict().items()}
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors")
    described = {"encoder": model.config()} if encoder else model.config()
    write_config(folder, verb, {}, None, described)
    return folder
