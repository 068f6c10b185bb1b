"""A run folder's model: `config.json` says how to build it, `model.safetensors` holds the weights.
No pickle anywhere."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from torchmae import manifest
from torchmae.errors import UserError
from torchmae.models.decoders import DecoderConfig
from torchmae.models.detection.detector import Detector
from torchmae.models.encoders import ENCODERS, Backbone, build_encoder
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.models.targets.tokenizer import Tokenizer
from torchmae.plugins import load_run_plugins
from torchmae.runfolder import kind_of, read_any_config, read_config
from torchmae.settings.options import fits, words


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed; the caller's random state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


T = TypeVar("T")


def read_weights(run: str | os.PathLike[str], name: str = "model.safetensors") -> dict[str, Tensor]:
    """`model.safetensors` of a run folder, or another of its files, on the CPU.

    Raises:
        UserError: it is missing, cannot be read, or is not what was written (see `manifest`).
    """
    path = Path(run) / name
    if not path.is_file() and name != "model.safetensors":
        raise UserError(
            f"{run} has no {name}: only mae finetune keeps the weights of the best epoch"
        )
    if not path.is_file():
        raise UserError(
            f"{run} holds no weights yet (no model.safetensors): let its training reach a "
            "checkpoint first"
        )
    try:
        manifest.check(Path(run), name)
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def load_weights(
    module: nn.Module, weights: dict[str, Tensor], source: str | os.PathLike[str]
) -> None:
    """Loads `weights`.

    Raises:
        UserError: names or shapes differ (it lists the first), or weights are not finite.
    """
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
            f"the weights of {source} do not fit its model: {'; '.join(wrong[:3])} "
            f"({len(wrong)} difference{'s' * (len(wrong) > 1)})"
        )
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"the weights of {source} are not finite ({broken[0]}, {len(broken)} of {len(weights)} "
            "tensors): their training failed, or they are damaged. Use others"
        )
    module.load_state_dict(weights)


def build(
    maker: Callable[[dict[str, Any]], T], config: dict[str, Any], run: str | os.PathLike[str]
) -> T:
    """The module that a config describes; `UserError` for settings that this version does not
    know."""
    try:
        return maker(config)
    except UserError as error:
        raise UserError(f"{run} describes no model: {error}") from error
    except FAILED as error:
        wrong = wrong_value(config)
        if wrong is not None:
            raise UserError(
                f"{run} describes no model: in its config.json {wrong}. Correct it, or restore the "
                "file from a copy"
            ) from error
        if isinstance(error, TypeError):
            raise UserError(f"{run} was made by another version of torchmae: {error}") from error
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{run} describes no model that can be built ({type(error).__name__}: {reason}): its "
            "config.json is damaged, or was changed"
        ) from error


FAILED: tuple[type[Exception], ...] = (
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError),
)


def wrong_value(config: dict[str, Any]) -> str | None:
    """The first value of another type than what a description is built with takes, in words."""
    encoder = config.get("encoder", config)  # it describes a whole model, or an encoder alone
    parts: list[tuple[Any, Any]] = [(ENCODERS.get(str(encoder.get("kind", "vit"))), encoder)]
    if encoder is not config:
        parts += [(DecoderConfig, config.get("decoder", {}))]
        parts += [(MODELS.get(kind_of({"model": config}), Classifier), config)]
    for maker, values in parts:
        if not isinstance(values, dict) or maker is None:
            continue
        hints = get_type_hints(maker.__init__)
        for name, value in values.items():
            value = tuple(value) if isinstance(value, list) else value
            if is_plain(hints.get(name)) and not fits(value, hints[name]):
                return f"{name} is {value!r} and must be {words(hints[name])}"
    return None


def is_plain(kind: Any) -> bool:
    """Whether `fits` knows a type: numbers, texts, None, tuples and unions of these."""
    if get_args(kind):
        inside = [one for one in get_args(kind) if one is not ...]
        return get_origin(kind) in (tuple, UnionType, Union) and all(map(is_plain, inside))
    return kind in (bool, int, float, str, NoneType)


def build_any(model: dict[str, Any]) -> nn.Module:
    """The module that a run folder's "model" describes, with new weights: an MAE, a classifier or
    an encoder."""
    kind = kind_of({"model": model})
    if kind == "encoder":
        encoder = build_encoder(model["encoder"])
        assert isinstance(encoder, nn.Module)
        return encoder
    made: nn.Module = MODELS[kind].build(model)
    return made


# What is made of an encoder, by `kind_of`.
MODELS: dict[str, Any] = {
    "mae": MAE,
    "classifier": Classifier,
    "segmenter": Segmenter,
    "detector": Detector,
}


def load_mae(run: str | os.PathLike[str], verify: bool = True) -> MAE:
    """The whole model of a run folder, encoder and decoder, in eval mode on the CPU.

    Args:
        run: the folder.
        verify: False for a run that was edited on purpose: files are not compared with its
            manifest.

    Raises:
        UserError: as `load`, or it has no decoder.
    """
    with manifest.verification(verify):
        return read_mae(run)


def read_mae(run: str | os.PathLike[str]) -> MAE:
    load_run_plugins(run)
    config = read_config(run)
    kind = kind_of(config)
    if kind != "mae":
        holds = "an encoder only" if kind == "encoder" else f"a {kind}"
        raise UserError(
            f"{run} holds {holds}, no "
            "decoder: import a file that has one (mae_visualize_*), or pre-train"
        )
    model = build(MAE.build, config["model"], run)
    load_weights(model, read_weights(run), run)
    return model.eval()


def load_classifier(
    run: str | os.PathLike[str], best: bool = False, verify: bool = True
) -> Classifier:
    """The classifier of a run folder, in eval mode on the CPU; `UserError` if it holds none.

    Args:
        run: the folder.
        best: the weights of the epoch that was best on the validation images, not the last ones.
        verify: as for `load_mae`.
    """
    with manifest.verification(verify):
        return read_classifier(run, best)


def read_classifier(run: str | os.PathLike[str], best: bool) -> Classifier:
    load_run_plugins(run)
    config = read_config(run)
    if kind_of(config) != "classifier":
        raise UserError(
            f"{run} holds no classifier: make one with mae finetune {run} LABELLED --out OUT"
        )
    model = build(Classifier.build, config["model"], run)
    load_weights(model, read_weights(run, "best.safetensors" if best else "model.safetensors"), run)
    return model.eval()


def load_segmenter(
    run: str | os.PathLike[str], best: bool = False, verify: bool = True
) -> Segmenter:
    """The segmenter of a run folder, in eval mode on the CPU; `UserError` if it holds none.

    Args:
        run: the folder.
        best: the weights that were best on the validation images, not the last ones.
        verify: as for `load_mae`.

    Returns:
        The segmenter; `segmenter.predict(images)` of uint8 images `[B, C, H, W]` of any size
        returns the numbers of the classes, uint8 `[B, H, W]`; `segmenter.classes` names them.
    """
    with manifest.verification(verify):
        load_run_plugins(run)
        config = read_config(run)
        if kind_of(config) != "segmenter":
            raise UserError(
                f"{run} holds no segmenter: make one with mae segment {run} LABELLED --out OUT"
            )
        model = build(Segmenter.build, config["model"], run)
        name = "best.safetensors" if best else "model.safetensors"
        load_weights(model, read_weights(run, name), run)
        return model.eval()


def load_detector(run: str | os.PathLike[str], best: bool = False, verify: bool = True) -> Detector:
    """The detector of a run folder, in eval mode on the CPU; `UserError` if it holds none.

    Args:
        run: the folder.
        best: the weights that were best on the validation images, not the last ones.
        verify: as for `load_mae`.

    Returns:
        The detector; `detector.predict(images)` of uint8 images `[B, C, H, W]` of any size returns
        boxes, scores, classes and masks of each (`Found`); `detector.classes` names the classes.
    """
    with manifest.verification(verify):
        load_run_plugins(run)
        config = read_config(run)
        if kind_of(config) != "detector":
            raise UserError(
                f"{run} holds no detector: make one with mae detect {run} ANNOTATED --out OUT"
            )
        model = build(Detector.build, config["model"], run)
        name = "best.safetensors" if best else "model.safetensors"
        load_weights(model, read_weights(run, name), run)
        return model.eval()


def load_tokenizer(run: str | os.PathLike[str], verify: bool = True) -> Tokenizer:
    """The tokenizer of a run folder, in eval mode on the CPU; `UserError` if it holds none.

    Args:
        run: the folder.
        verify: as for `load_mae`.

    Returns:
        The tokenizer; `tokenizer.tokens(tokenizer.normalize(images))` of uint8 images returns
        integers `[B, N]`.
    """
    with manifest.verification(verify):
        config = read_any_config(run)
        if kind_of(config) != "tokenizer":
            raise UserError(
                f"{run} holds no tokenizer: make one with mae tokenizer DATA, which makes a run "
                "folder of its own"
            )
        model = build(Tokenizer.build, config["model"]["tokenizer"], run)
        load_weights(model, read_weights(run), run)
        return model.eval()


def load(run: str | os.PathLike[str], verify: bool = True) -> Backbone:
    """The encoder of any run folder, in eval mode on the CPU.

    Args:
        run: the folder.
        verify: as for `load_mae`.

    Returns:
        The encoder; `encoder(encoder.normalize(images))` of uint8 images of `encoder.image_size`
        returns tokens `[B, num_prefix_tokens + N, D]`. That of a classifier that pools the mean has
        no final norm (an `nn.Identity`): the classifier's `fc_norm` is for the mean of the tokens,
        not for each.

    Raises:
        UserError: not a run folder, no weights yet, weights that do not fit or are not finite, or
            a file is not what was written.
    """
    with manifest.verification(verify):
        return read_encoder(run)


def read_encoder(run: str | os.PathLike[str]) -> Backbone:
    load_run_plugins(run)
    config = read_config(run)
    encoder = build(build_encoder, config["model"]["encoder"], run)
    if config["model"].get("pool") == "mean" or kind_of(config) in ("segmenter", "detector"):
        encoder.remove_norm()
    weights = read_weights(run)
    own = {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    assert isinstance(encoder, nn.Module)
    load_weights(encoder, own, run)
    return encoder.eval()
