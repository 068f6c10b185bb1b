"""The verbs of torchmae: what `mae VERB` runs, and the functions of the library with the same
names."""

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torchmae import manifest, runfolder
from torchmae.plugins import prepare
from torchmae.settings.options import (
    DATA_ID,
    REQUIRED,
    changed,
    flatten,
    from_python,
    options_of,
    takes_images,
)

if TYPE_CHECKING:
    from torchmae.models.encoders import Backbone

logger = logging.getLogger(__name__)


class Verb(NamedTuple):
    """One thing a user can do.

    Attributes:
        config: its settings, a dataclass of `torchmae.settings` options, or where it is:
            "module:name".
        run: its function, from the config to what was made, or where it is.
        help: one line.
    """

    config: str | type[Any]
    run: str | Callable[[Any], Any]
    help: str


def task(name: str, config: str, help: str, run: str = "run:run") -> Verb:
    """A verb with a folder of its own in `torchmae/tasks/`."""
    return Verb(f"torchmae.tasks.{name}.config:{config}", f"torchmae.tasks.{name}.{run}", help)


# Nothing of a verb is imported before it is chosen. A verb of two words is the first one with other
# settings.
VERBS: dict[str, Verb] = {
    "check": task(
        "check", "Check", "look at images before training: duplicates, leakage, bad files"
    ),
    "plan": task(
        "pretrain.ahead", "Plan", "measure what a pre-training would take, before it is begun"
    ),
    "pretrain": task("pretrain", "Pretrain", "pre-train an encoder on unlabelled images"),
    "finetune": task("finetune", "Finetune", "make a classifier from a run and labelled images"),
    "refine": task("refine", "Refine", "train a run's last blocks to find images alike that are"),
    "segment": task(
        "dense.segment", "Segment", "make a segmenter from a run and images with masks"
    ),
    "detect": task(
        "dense.detect", "Detect", "make a detector from a run and images with boxes or masks"
    ),
    "probe": task("probe", "Probe", "linear probe: what a linear map makes of the frozen features"),
    "knn": task("knn", "Knn", "k-NN accuracy of frozen features, beside raw pixels"),
    "partial": task(
        "sweep", "Partial", "fine-tune more and more blocks: the paper's Figure 9", "run:partial"
    ),
    "compare": task(
        "sweep", "Compare", "a run against the same encoder from scratch, or several", "run:compare"
    ),
    "compare segment": task(
        "sweep.dense",
        "CompareSegment",
        "a run against the same encoder from scratch, as segmenters",
        "run:segmenters",
    ),
    "compare detect": task(
        "sweep.dense",
        "CompareDetect",
        "a run against the same encoder from scratch, as detectors",
        "run:detectors",
    ),
    "ablate": task("ablate", "Ablate", "many pre-trainings: the paper's ablations, or your own"),
    "evaluate": task("evaluate", "Evaluate", "how good a classifier, segmenter or detector is"),
    "predict": task(
        "predict", "Predict", "write what a model says of images: classes, masks, boxes"
    ),
    "reconstruct": task("reconstruct", "Reconstruct", "draw what a model makes of hidden patches"),
    "serve": task("serve", "Serve", "a page to play with: drop an image, paint a mask, look"),
    "look": task("look", "Look", "draw what an encoder makes of images, patch by patch"),
    "search": task("search", "Search", "the nearest images to others, and near-duplicates"),
    "map": task("map", "Map", "the images of a set as a map of who is near whom, in one page"),
    "embed": task("embed", "Embed", "write the features of images to a file"),
    "report": task("report", "Report", "the page of a run, or of several side by side"),
    "watch": task("watch", "Watch", "look at a run from another terminal until it ends"),
    "doctor": task("doctor", "Doctor", "what is wrong with this machine, or with a run"),
    "verify": task(
        "verify", "Verify", "compare every file of a run with what was written: damaged disks"
    ),
    "tokenizer": task(
        "tokenizer",
        "TrainTokenizer",
        "train a discrete VAE, for pretrain's target tokens:RUN",
    ),
    "pack": task(
        "pack", "Pack", "put image files into tar shards with an index, which open at once"
    ),
    "import": task("import_weights", "Import", "read weights of other libraries into a run folder"),
    "export": task(
        "export", "Export", "write a run's model for timm, transformers, torchvision, ONNX, ..."
    ),
    "bench": Verb(
        "torchmae.benchmarks.config:Bench",
        "torchmae.benchmarks.run:run",
        "measure speed: a step, decoding, resuming, starting",
    ),
}


def with_second_word(verb: str, words: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """The verb that a verb and what is behind it are, such as "compare segment", and the rest."""
    second = words[0] if words else None
    if not isinstance(second, str) or f"{verb} {second}" not in VERBS:
        return verb, words
    if runfolder.is_run(Path(second)):
        logger.warning(
            f"{second} says what is compared here, and is a run folder too: for the run say "
            f"./{second}"
        )
    return f"{verb} {second}", words[1:]


def load(place: Any) -> Any:
    """The object at "module:name"; anything else is the object itself."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def start(entry: Verb, config: Any) -> Any:
    """Calls a verb's function; files of runs are verified unless its config says otherwise."""
    with manifest.verification(flatten(config).get("verify", True)):
        return load(entry.run)(prepare(with_run_folders(config)))


def with_run_folders(config: Any) -> Any:
    """The config with a run folder in place of each encoder of timm that it names."""
    values = flatten(config)
    named = {
        name: values[name]
        for name, setting in options_of(type(config)).items()
        if setting.metadata.get("encoder") and "timm:" in repr(values[name])
    }

    def folder(place: str) -> str:
        from torchmae.interop.timm_runs import run_folder

        return str(run_folder(place)) if place.startswith("timm:") else place

    return changed(
        config,
        **{
            name: folder(value) if isinstance(value, str) else tuple(map(folder, value))
            for name, value in named.items()
        },
    )


class Run:
    """A run folder: what pretrain, finetune, probe, import_, compare and partial return. A path,
    for whatever takes one."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run | Path) and Path(other) == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    def __truediv__(self, name: str) -> Path:
        """A file of the run, such as `run / "curves.png"`."""
        return self.path / name

    @property
    def results(self) -> list[dict[str, Any]]:
        """What was measured on this run, in order: the records of results.json."""
        return runfolder.read_results(self.path)

    def encoder(self, verify: bool = True) -> "Backbone":
        """The encoder in eval mode on the CPU, as `torchmae.load` gives it."""
        from torchmae.interop.timm_runs import load_encoder

        return load_encoder(self.path, verify)


def function_name(verb: str) -> str:
    """The name in the library: "import" is a word of Python, "report" a package of torchmae, "map"
    a function of Python."""
    return f"{verb}_" if verb in ("import", "report", "map") else verb


def function(verb: str) -> Callable[..., Any]:
    """The function of the library for a verb: settings by name, as the flags; `help()` shows all of
    them. The second word of a verb is its first argument.

    It returns a `Run` where the verb makes a run folder, else the path of what it wrote, or what it
    measured.
    """
    config = load(VERBS[verb].config)
    name = function_name(verb)

    def call(*arguments: Any, **options: Any) -> Any:
        whole, rest = with_second_word(verb, arguments)
        entry = VERBS[whole]
        result = start(
            entry, from_python(load(entry.config), f"torchmae.{name}", tuple(rest), options)
        )
        made_run = isinstance(result, Path) and (
            runfolder.is_run(result) or runfolder.has_results(result)
        )
        return Run(result) if made_run else result

    call.__name__ = call.__qualname__ = name
    help = VERBS[verb].help
    others = [f", `mae {other}`" for other in VERBS if other.startswith(f"{verb} ")]
    call.__doc__ = (
        f"{help[0].upper()}{help[1:]}: `mae {verb}`{''.join(others)}.\n\n{describe(config)}"
    )
    call.__signature__ = signature(config)  # type: ignore[attr-defined]
    return call


def signature(config: type[Any]) -> inspect.Signature:
    """The settings of a config class as parameters, those without a flag first."""
    parameters = []
    for name, setting in options_of(config).items():
        if setting.metadata["hidden"]:
            continue
        kinds = inspect.Parameter
        kind = kinds.POSITIONAL_OR_KEYWORD if setting.positional else kinds.KEYWORD_ONLY
        default = kinds.empty if setting.default is REQUIRED else setting.default
        taken = Any if setting.metadata.get("images") else setting.type
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=taken))
    if takes_images(config):
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(DATA_ID, kind, default=None, annotation=str | None))
    return inspect.Signature(parameters)


def describe(config: type[Any]) -> str:
    """A line for each setting of a config class."""
    shown = [(name, o) for name, o in options_of(config).items() if not o.metadata["hidden"]]
    lines = [f"{name}: {setting.metadata['help']}" for name, setting in shown]
    if takes_images(config):
        lines.append(f"{DATA_ID}: {OF_DATA_ID}")
    return "Args:\n" + "\n".join(f"    {line}" for line in lines)


OF_DATA_ID = (
    "A name of your own for images that are in Python (Datasets, lists, arrays, DataFrames: see "
    "docs/python.md), by which a resumed run recognizes them."
)
