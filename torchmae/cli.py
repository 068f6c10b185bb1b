"""The command `mae`: a verb and its flags to the function that does it; mistakes in a line or two, no traceback."""

import importlib
import io
import os
import sys
from contextlib import redirect_stderr
from dataclasses import MISSING, fields
from typing import Any

from torchmae.console import show_messages
from torchmae.errors import RunError, UserError, choose
from torchmae.version import __version__

# verb: (its config class, its function, one line of help). Nothing is imported before a verb is chosen.
VERBS = {
    "pretrain": (
        "torchmae.tasks.pretrain.config:Pretrain",
        "torchmae.tasks.pretrain.run:run",
        "pre-train an encoder on unlabelled images",
    ),
    "finetune": (
        "torchmae.tasks.finetune.config:Finetune",
        "torchmae.tasks.finetune.run:run",
        "make a classifier from a run and labelled images",
    ),
    "probe": (
        "torchmae.tasks.probe.config:Probe",
        "torchmae.tasks.probe.run:run",
        "linear probe: what a linear map makes of the frozen features",
    ),
    "partial": (
        "torchmae.tasks.sweep.config:Partial",
        "torchmae.tasks.sweep.run:partial",
        "fine-tune more and more blocks: Figure 9 of the paper on your data",
    ),
    "compare": (
        "torchmae.tasks.sweep.config:Compare",
        "torchmae.tasks.sweep.run:compare",
        "a run against the same encoder from scratch, over several seeds",
    ),
    "evaluate": (
        "torchmae.tasks.evaluate.config:Evaluate",
        "torchmae.tasks.evaluate.run:run",
        "accuracy, calibration and confusion of a classifier",
    ),
    "predict": (
        "torchmae.tasks.predict.config:Predict",
        "torchmae.tasks.predict.run:run",
        "write the classes of images to a file",
    ),
    "reconstruct": (
        "torchmae.tasks.reconstruct.config:Reconstruct",
        "torchmae.tasks.reconstruct.run:run",
        "draw what a model makes of hidden patches",
    ),
    "knn": (
        "torchmae.tasks.knn.config:Knn",
        "torchmae.tasks.knn.run:run",
        "k-NN accuracy of frozen features, beside raw pixels",
    ),
    "embed": (
        "torchmae.tasks.embed.config:Embed",
        "torchmae.tasks.embed.run:run",
        "write the features of images to a file",
    ),
    "pack": (
        "torchmae.tasks.pack.config:Pack",
        "torchmae.tasks.pack.run:run",
        "put image files into tar shards with an index, which open at once",
    ),
    "import": (
        "torchmae.tasks.import_weights.config:Import",
        "torchmae.tasks.import_weights.run:run",
        "pull weights of other libraries into a run folder",
    ),
    "bench": (
        "torchmae.bench.config:Bench",
        "torchmae.bench.run:run",
        "measure speed: a step, decoding, resuming, starting",
    ),
    "export": (
        "torchmae.tasks.export.config:Export",
        "torchmae.tasks.export.run:run",
        "write a run's model for timm, transformers, torchvision, ONNX, ...",
    ),
}

EXAMPLES = """examples:
  mae pretrain photos/                         a run folder from any folder of images
  mae reconstruct runs/photos cat.jpg          what the model sees in 25 % of a picture
  mae knn runs/photos labelled/         how good are the features?
  mae finetune runs/photos labelled/           a classifier from a few labels
  mae embed runs/photos photos/ --out f.npz    features for your own use

mae VERB --help lists the flags of a verb; --debug shows the traceback of an error."""


def usage() -> str:
    rows = [f"  {verb:<13}{line}" for verb, (_, _, line) in VERBS.items()]
    return "\n".join(
        ["usage: mae VERB ...", "", "Masked Autoencoders in PyTorch.", "", *rows, "", EXAMPLES]
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; the exit code: 0, 2 for a mistake of the user, 1 for a failed run (65: a broken loss), 130, 143."""
    # Before torch is loaded: threads that wait for work must not burn the cores that loading images needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # file names can be anything: what cannot be printed is shown as \\x..
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        print(f"torchmae {__version__}")
        return 0
    try:
        config, function, _ = choose(VERBS, given[0], "verb")
        settings = parse(load(config), given[0], given[1:])
        show_messages()
        load(function)(settings)
        return 0
    except (UserError, RunError) as error:
        if debug:
            raise
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or not isinstance(
            error, UserError
        ):  # a user's mistake is the same in every process
            text = str(
                error
            ).strip()  # a loading process hands on its error with a traceback around it
            text = text.splitlines()[-1] if "DataLoader worker" in text else text
            print(f"mae: {f'process {rank}: ' if rank else ''}{text}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mae: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        print(
            f"mae: failed: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr
        )
        return 1


def load(place: str) -> Any:
    """The object at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def parse(config: type[Any], verb: str, arguments: list[str]) -> Any:
    """The verb's config from its flags; `--preset NAME` sets what the flags then change. tyro's boxes become a line."""
    import tyro

    default: Any = None
    for i, argument in enumerate(arguments):
        if argument.startswith("--preset"):
            name = argument.partition("=")[2] or (
                arguments[i + 1] if i + 1 < len(arguments) else ""
            )
            default = preset(name, config)
            arguments = arguments[:i] + arguments[i + (1 if "=" in argument else 2) :]
            break
    boxes = io.StringIO()
    try:
        with redirect_stderr(boxes):
            given = tyro.cli(
                config,
                prog=f"mae {verb}",
                args=arguments,
                default=default,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as error:
        if not error.code:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in boxes.getvalue().splitlines()]
        said = [line for line in lines if line and "full helptext" not in line]
        if "Got errors:" in said:  # tyro tells of each type that it tried
            said = said[: said.index("Got errors:")]
        if said and said[1:2] == [f"Missing from mae {verb}:"]:
            raise UserError(
                f"{said[2]} is missing: mae {verb} --help says what goes there"
            ) from None
        text = " ".join(said[1:4]).replace("{None}|", "").rstrip(". ")
        raise UserError(f"{text}. mae {verb} --help lists the flags") from None
    for field in fields(config):
        if (
            field.default is MISSING and getattr(given, field.name) == ""
        ):  # a preset leaves it to be named
            raise UserError(
                f"{field.name.upper()} is missing: mae {verb} --help says what goes there"
            )
    return given


def preset(name: str, config: type[Any]) -> Any:
    """The preset of that name, if it is one for this verb."""
    from torchmae.presets import PRESETS

    found = {key: make for key, make in PRESETS.items() if make.__annotations__["return"] is config}
    if name not in found and name in PRESETS:
        owner = PRESETS[name].__annotations__["return"].__name__.lower()
        raise UserError(f"preset {name} is one of mae {owner}")
    if not found:
        raise UserError("this verb has no presets; mae pretrain and mae finetune have")
    return choose(found, name, "preset")()
