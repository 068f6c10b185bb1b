"""A run folder's model: `config.json` says how to build it, `model.safetensors` holds the weights. No pickle anywhere."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from torchmae.errors import UserError
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE, build_encoder
from torchmae.models.vit import ViT
from torchmae.runfolder import kind_of, read_config


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


T = TypeVar("T")


def read_weights(run: str | os.PathLike[str], name: str = "model.safetensors") -> dict[str, Tensor]:
    """`model.safetensors` of a run folder, or another of its files, on the CPU."""
    path = Path(run) / name
    if not path.is_file() and name != "model.safetensors":
        raise UserError(
            f"{run} has no {name}: only mae finetune keeps the weights of the best epoch"
        )
    if not path.is_file():
        raise UserError(
            f"{run} holds no weights yet (no model.safetensors): let its training reach a checkpoint first"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def load_weights(
    module: nn.Module, weights: dict[str, Tensor], source: str | os.PathLike[str]
) -> None:
    """Every parameter from `weights`, names and shapes equal; otherwise a `UserError` that names the first differences."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is not known" for name in weights if name not in own]
    wrong += [
        f"{name} is {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if wrong:
        raise UserError(
            f"the weights of {source} do not fit its model: {'; '.join(wrong[:3])} ({len(wrong)} differences)"
        )
    module.load_state_dict(weights)


def build(
    maker: Callable[[dict[str, Any]], T], config: dict[str, Any], run: str | os.PathLike[str]
) -> T:
    """The module that a config describes; settings that this version does not know are a `UserError`."""
    try:
        return maker(config)
    except TypeError as error:
        raise UserError(f"{run} was made by another version of torchmae: {error}") from error


def load_mae(run: str | os.PathLike[str]) -> MAE:
    """The whole model of a run folder, encoder and decoder, in eval mode on the CPU."""
    config = read_config(run)
    if kind_of(config) != "mae":
        raise UserError(
            f"{run} holds {'a classifier' if kind_of(config) == 'classifier' else 'an encoder only'}, no decoder: import a "
            "file that has one (mae_visualize_*), or pre-train"
        )
    model = build(MAE.build, config["model"], run)
    load_weights(model, read_weights(run), run)
    return model.eval()


def load_classifier(run: str | os.PathLike[str], best: bool = False) -> Classifier:
    """The classifier of a run folder, in eval mode on the CPU: `classifier(images)` gives logits `[B, classes]`.

    Its last weights, or those of the epoch that was best on the validation images.
    """
    config = read_config(run)
    if kind_of(config) != "classifier":
        raise UserError(
            f"{run} holds no classifier: make one with mae finetune {run} LABELLED --out OUT"
        )
    model = build(Classifier.build, config["model"], run)
    load_weights(model, read_weights(run, "best.safetensors" if best else "model.safetensors"), run)
    return model.eval()


def load(run: str | os.PathLike[str]) -> ViT:
    """The encoder of any run folder, in eval mode on the CPU: `encoder(images)` gives `[B, 1 + N, D]`.

    `encoder.normalize` turns uint8 images of `encoder.image_size` into what it takes. The encoder of a classifier that
    pools the mean has no last norm (an `nn.Identity`): it was trained without, and its `fc_norm` is made for the mean of
    the tokens, not for each. The mean of these tokens is what `fc_norm` gets.
    """
    config = read_config(run)
    encoder = build(build_encoder, config["model"]["encoder"], run)
    if config["model"].get("pool") == "mean":
        encoder.norm = nn.Identity()  # type: ignore[assignment]
    weights = read_weights(run)
    load_weights(
        encoder,
        {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")},
        run,
    )
    return encoder.eval()
