"""`mae export`: a run's model in the form of another library, reloaded there and compared before it
is called done."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torchmae.disk import refuse_full, whole_folder
from torchmae.errors import UserError, choose
from torchmae.eval.extract import choose_pool
from torchmae.interop.exporting import EXPORTS
from torchmae.interop.exporting.check import (
    ExportInput,
    ExportResult,
    Masked,
    WithPreprocessing,
    compare,
)
from torchmae.interop.names import Weights, to_plain
from torchmae.models.detection.detector import Detector
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.masking import MaskGenerator
from torchmae.models.weights import (
    load,
    load_classifier,
    load_detector,
    load_mae,
    load_segmenter,
    read_weights,
)
from torchmae.report.words.model_card import card
from torchmae.runfolder import kind_of, read_config
from torchmae.tasks.export.config import Export
from torchmae.tasks.export.page import as_page, find_runtime, to_page

logger = logging.getLogger(__name__)

# What keeps its best weights, and how it is loaded.
WITH_BEST: dict[str, Any] = {
    "classifier": load_classifier,
    "segmenter": load_segmenter,
    "detector": load_detector,
}
# How the names of weights begin that are not the encoder's.
HEADS = ("decoder_", "mask_token", "head.", "bn.", "target.")
DENSE = ("segmenter", "detector")

GRAPHS = ("onnx", "torch-export")  # what can hold more than the model
FORMS: dict[str, Callable[..., ExportResult]] = {**EXPORTS, "page": to_page}


# Forms that other programs make of ours, by the names that users try.
ONNX = "export with --to onnx"
BY_OTHERS = {
    "tensorrt": f"{ONNX}, then, on the GPU that will run it, trtexec --onnx=FOLDER/model.onnx "
    "--saveEngine=model.plan",
    "openvino": f"{ONNX}, then: ovc FOLDER/model.onnx",
    "tflite": f"{ONNX}, then convert model.onnx with onnx2tf",
    "coreml": "export with --to torch-export, then convert it with coremltools",
    **dict.fromkeys(("torchscript", "jit", "pt2"), "--to torch-export has taken its place"),
    **dict.fromkeys(("pytorch", "pth", "pt"), "--to safetensors has the weights by name"),
    **dict.fromkeys(("huggingface", "hf"), "--to transformers, or --to timm"),
    "onnxruntime": f"{ONNX}, which it loads",
}


def run(config: Export) -> Path:
    """Exports, reloads, compares and writes the model card; returns the folder."""
    check(config)
    write, out = FORMS[config.to], Path(config.out)
    if config.to == "page":
        runtime = find_runtime(config.onnxruntime_web)
        config, write = as_page(config), partial(to_page, config.run, runtime)
    refuse_full(out)
    subject = open_run(config)
    with torch.no_grad(), whole_folder(out) as folder:
        made = write(subject, folder)
        difference = differ(subject, made)
        note = f"Reloaded like this it differed from torchmae {difference} on 16 random images."
        masked = config.to in ("onnx", "page")
        if isinstance(subject.model, MAE) and subject.model.decoder.statistics and not masked:
            note += (
                " Its head for brightness and contrast (decoder.statistics) has no place there and "
                "is not exported."
            )
        if subject.serving is not None:
            note += " It takes uint8 pixels, 0 to 255, and normalizes them itself."
        if config.best:
            note += " These are the weights of the epoch that was best on the validation images."
        lines = made.lines
        if out.is_absolute():  # cards are made to be published
            lines = [line.replace(str(out), out.name) for line in lines]
        what, readme = config.only or kind_of(read_config(config.run)), folder / "README.md"
        readme.write_text(card(config.run, what, subject.encoder, lines, note, folder))
    logger.info(
        f"{out}: compared with torchmae on 16 images: they differ {difference}. To load it:"
    )
    logger.info("\n".join(f"  {line}" for line in made.lines))
    if config.to == "page":
        logger.info(
            "To open the page, from this or any other static server:\n"
            f"  python -m http.server --bind 127.0.0.1 --directory {out}"
        )
    return out


def check(config: Export) -> None:
    """Raises UserError for what does not go together."""
    if config.to.lower() in BY_OTHERS:
        raise UserError(f"--to {config.to}: {BY_OTHERS[config.to.lower()]}")
    choose(FORMS, config.to, "form")
    if config.only not in (None, "encoder"):
        raise UserError(f"--only {config.only}: encoder is the only part that can be exported")
    if config.with_preprocessing and config.to not in (*GRAPHS, "page"):
        raise UserError(
            f"--with-preprocessing: {config.to} has no graph to put it into, and its users "
            f"normalize by mean and std of the card: use --to {' or '.join(GRAPHS)}"
        )
    if config.pool is not None and not config.with_preprocessing:
        raise UserError(f"--pool {config.pool}: only --with-preprocessing pools: add it")
    if config.onnxruntime_web is not None and config.to != "page":
        raise UserError(f"--onnxruntime-web: for --to page, and {config.to} has no use for it")


def differ(subject: ExportInput, made: ExportResult) -> str:
    """How far an export, reloaded, differs from the model, in words; `RunError` for too far."""
    if isinstance(subject.model, Detector):
        from torchmae.interop.exporting.detectors import compare_found  # needs torchvision

        return compare_found(subject, made)
    return compare(subject, made)


def open_run(config: Export) -> ExportInput:
    """The model of a run, or its encoder, with its weights under plain names."""
    described = read_config(config.run)
    kind, model = kind_of(described), described["model"]
    if model["encoder"].get("kind") == "timm":
        raise UserError(
            f"{config.run} has an encoder of timm, which is not exported: "
            f"torchmae.load('{config.run}').model is timm's own module"
        )
    if model.get("pool") == "attentive" and not config.only:
        raise UserError(
            "classifiers that pool by learned queries are not exported yet: add --only encoder, or "
            "load the run by torchmae.load_classifier"
        )
    refuse_dense(config, kind)
    refuse_scaling(config, model["encoder"].get("scaling"))
    weights = read_weights(config.run, "best.safetensors" if config.best else "model.safetensors")
    model.pop("beside", None)
    model.pop("contrast", None)
    unneeded = ["beside.", "contrast."]  # of --mae-weight and mae refine: no prediction needs them
    if model.get("pool") == "attentive":  # its encoder has a norm of its own
        unneeded += ["query_pool.", "fc_norm."]
    weights = {name: w for name, w in weights.items() if not name.startswith(tuple(unneeded))}
    if isinstance(model.get("target"), dict):
        if not config.only:
            raise UserError(
                f"predictions of {model['target']['name']} mean nothing without the run they are "
                "made of, for which no other library has a place: add --only encoder"
            )
        weights = {name: w for name, w in weights.items() if not name.startswith("target.")}
    if kind == "mae" and not described["config"].get("mask_ratio", 0.75) and not config.only:
        raise UserError(
            "an autoencoder of which nothing is hidden is none that other libraries have: add "
            "--only encoder"
        )
    weights = to_plain(of_encoder(weights) if kind in DENSE else weights)[1]
    if model.get("encode_all") and not config.only:
        raise UserError(
            "mask tokens in the encoder are known to no other library: add --only encoder"
        )
    if config.only:
        kind, model = "encoder", {n: v for n, v in model.items() if n in ("encoder", "pool")}
        weights = {n: w for n, w in weights.items() if not n.startswith(HEADS)}
    module = load_module(config, kind, kind_of(described))
    settings = described["config"]
    ratio, crop = MaskGenerator.of(settings).ratio, settings.get("crop_pct", 1.0)
    subject = ExportInput(module, weights, model, ratio, Path(config.out), crop)
    origin = {
        "run": Path(config.run).resolve().name,
        "weights": "best" if config.best else "last",
        "trained_with": f"torchmae {described.get('torchmae')}, commit {described.get('commit')}",
    }
    return subject._replace(origin=origin, serving=serving(config, module, kind))


def load_module(config: Export, kind: str, whole: str) -> Any:
    """The module that is exported.

    Args:
        config: the settings.
        kind: of what is exported.
        whole: of the run.
    """
    loaders: dict[str, Any] = {"mae": load_mae, "encoder": load, **WITH_BEST}
    if config.best:
        best = WITH_BEST.get(whole, load_classifier)(config.run, best=True)
        module: Any = best.encoder if config.only else best
    else:
        module = loaders[kind](config.run)
    if isinstance(module, Classifier):
        module.beside = None
    return module


def of_encoder(weights: Weights) -> Weights:
    """The encoder's: the heads of dense prediction have no plain names, and graphs take modules."""
    return {name: weight for name, weight in weights.items() if name.startswith("encoder.")}


def refuse_scaling(config: Export, scaling: dict[str, Any] | None) -> None:
    """Raises UserError for pixels that are not of 8 bits, where the form cannot say what is done
    with them."""
    if scaling and (config.with_preprocessing or scaling["kind"] != "none"):
        what = "--with-preprocessing" if config.with_preprocessing else f"--scale {scaling['kind']}"
        raise UserError(
            f"{what} is not exported for pixels that are not of 8 bits: export without it, or use "
            "torchmae.load"
        )


def refuse_dense(config: Export, kind: str) -> None:
    """Raises UserError for a form that has no place for what a run holds."""
    graphs = " or ".join(GRAPHS)
    if kind in DENSE and config.to not in GRAPHS:
        raise UserError(f"--to {config.to}: a {kind} has no place there: use --to {graphs}")


def serving(config: Export, module: Any, kind: str) -> WithPreprocessing | Masked | None:
    """The module that takes pixels, where it is asked for; torch-export refuses an MAE itself."""
    if not config.with_preprocessing:
        return None
    if kind == "mae":
        if config.pool is not None:
            raise UserError(
                f"--pool {config.pool}: a whole MAE returns pictures; its features: --only encoder"
            )
        return Masked(module, True).eval()
    if kind in WITH_BEST:
        if config.pool is not None:
            output = "boxes" if kind == "detector" else "logits"
            raise UserError(
                f"--pool {config.pool}: a {kind} returns {output}; its features: --only encoder"
            )
        return WithPreprocessing(module, None).eval()
    pool = config.pool or "mean"
    return WithPreprocessing(module, choose_pool(module, pool)).eval()
