"""The settings of `mae bench`, which of them go with WHAT, and their defaults."""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torchmae.errors import UserError, choose
from torchmae.models.sizes import size_of
from torchmae.settings.options import POSITIVE, argument, check_ranges, option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Bench:
    """Measure speed on this machine: numbers to the screen, and with all rounds to a JSON file.

    WHAT is step (forward, backward and AdamW beside other libraries), dense (segmenters and
    detectors beside torchvision's Mask R-CNN), wall-clock (the paper's
    Table 2: mask tokens in the encoder or not, decoder depth 8 or 1), data (images/s per core for
    each way of decoding, on the files of DATA), resume (a checkpoint saved and loaded) or startup
    (--help, and the first step). All candidates take turns; ratios are more reliable than times.
    """

    GROUP: ClassVar[str] = "settings"

    what: str = argument("step, dense, wall-clock, data, resume or startup", "WHAT")
    data: str | None = argument(
        "data: image files, as for mae pretrain; "
        "startup: what to train on, else a packed set made for it",
        "DATA",
        None,
    )
    model: str | None = option(
        None,
        "Sizes such as vit_base, commas between.",
        otherwise="vit_base; for wall-clock vit_large,vit_huge",
    )
    batch_size: int | None = option(
        None,
        "Images of a step.",
        within=POSITIVE,
        otherwise="step and data 16, on a GPU 256; wall-clock 8, on a GPU 64; dense 2, on a GPU 8",
    )
    image_size: int = option(224, "Side in pixels.", within=POSITIVE)
    patch_size: int | None = option(
        None,
        "Side of a patch in pixels.",
        within=POSITIVE,
        otherwise="as in the paper 16, for vit_huge 14",
    )
    precision: str | None = option(
        None, "fp32 or bf16.", otherwise="bf16 where the device is fast at it"
    )
    compile: bool = option(False, "Use torch.compile, for all.")
    vs: str | None = option(
        None,
        "step: libraries to compare with, commas between, or none.",
        metavar="NAMES",
        otherwise="transformers,lightly,vit-pytorch",
    )
    measure: bool = option(
        True, "wall-clock: measure times; otherwise operations are only counted."
    )
    step_images_per_s: float | None = option(
        None,
        "data: how many images/s the device takes.",
        within=POSITIVE,
        otherwise="measured for --model",
    )
    rounds: int = option(5, "Measurements of each; medians are shown.", within=POSITIVE)
    threads: int | None = option(
        None, "CPU threads.", within=POSITIVE, otherwise="torch's own choice"
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    out: str | None = option(
        None, "File of the results.", metavar="FILE", otherwise="bench-WHAT.json"
    )


class Kind(NamedTuple):
    """One WHAT: its settings besides those of all, its default models and batch sizes."""

    settings: set[str]
    model: str | None = None
    batch: int | None = None
    batch_on_gpu: int | None = None


OF_ALL = {"what", "rounds", "threads", "device", "out"}
STEP = {"model", "batch_size", "image_size", "patch_size", "precision", "compile"}
KINDS = {
    "step": Kind({*STEP, "vs"}, "vit_base", 16, 256),
    "dense": Kind(STEP - {"compile"}, "vit_base", 2, 8),
    "wall-clock": Kind({*STEP, "measure"}, "vit_large,vit_huge", 8, 64),
    "data": Kind({*STEP, "data", "step_images_per_s"}, "vit_base", 16, 256),
    "resume": Kind({"model"}, "vit_base", 1, 1),
    "startup": Kind({"data"}),
}


def check(config: Bench) -> None:
    """What can be known to be wrong before anything is built."""
    kind = choose(KINDS, config.what, "WHAT")
    for field in fields(config):
        if (
            field.name not in kind.settings | OF_ALL
            and getattr(config, field.name) != field.default
        ):
            goes = ", ".join(what for what, k in KINDS.items() if field.name in k.settings)
            word = word_of(config, field.name)
            raise UserError(f"{word} goes with mae bench {goes} only: leave it out")
    if config.what == "data" and config.data is None:
        raise UserError("DATA is missing: mae bench data FOLDER measures on image files of yours")
    check_ranges(config)
    if config.precision not in (None, "fp32", "bf16"):
        raise UserError(f"--precision {config.precision}: fp32 or bf16")
    if config.step_images_per_s is not None and config.model is not None:
        raise UserError(
            "--model is there to measure what --step-images-per-s says: leave one of them out"
        )
    if config.out is None:
        return
    if Path(config.out).is_dir() or config.out.endswith("/"):
        raise UserError(
            f"--out {config.out} is a folder: name a file such as {Path(config.out) / 'bench.json'}"
        )
    try:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {config.out} cannot be written: {error.strerror or error}"
        ) from error


def word_of(config: Bench, name: str) -> str:
    """A setting as it was typed."""
    if name == "data":
        return f"DATA ({config.data})"
    return f"--{'no-' * (getattr(config, name) is False)}{name.replace('_', '-')}"


def resolve(config: Bench, device: "torch.device") -> Bench:
    """The settings with nothing left open but the patch size, which depends on the model.

    Raises:
        UserError: there is no such model or library.
    """
    kind = KINDS[config.what]
    on_gpu = device.type == "cuda"
    if config.step_images_per_s is not None:  # no model is needed
        kind = Kind(kind.settings)
    from torchmae.benchmarks.peers import find_peers
    from torchmae.models.patches import as_size, grid_of
    from torchmae.train.distributed import fast_precision

    precision = "bf16" if fast_precision(device) == "bf16" else "fp32"
    config = replace(
        config,
        model=config.model or kind.model,
        batch_size=config.batch_size or (kind.batch_on_gpu if on_gpu else kind.batch),
        out=config.out or f"bench-{config.what}.json",
        precision=config.precision or (precision if kind.model else None),
        vs=(config.vs or "transformers,lightly,vit-pytorch") if config.what == "step" else None,
    )
    for name in models(config.model):
        size_of(name)
        grid_of(as_size(config.image_size), as_size(patch_size(config, name)))
    find_peers(config.vs or "")
    return config


def models(text: str | None) -> list[str]:
    """The names between the commas."""
    return [name.strip() for name in text.split(",")] if text else []


def patch_size(config: Bench, model: str) -> int:
    return config.patch_size or (14 if model == "vit_huge" else 16)


def public(config: Bench) -> Bench:
    """The settings as they may be published: of DATA only the last part of its path."""
    return replace(config, data=config.data and Path(config.data).name)


def command(config: Bench) -> str:
    """The command line of these settings."""
    words = ["mae", "bench", config.what, *([config.data] if config.data else [])]
    for field in fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        named = field.name in ("what", "data", "out")
        if (
            named
            or value == field.default
            or field.name not in KINDS[config.what].settings | OF_ALL
        ):
            continue
        words += (
            [flag, str(value)]
            if not isinstance(value, bool)
            else [flag if value else f"--no-{field.name}"]
        )
    return shlex.join(words)
