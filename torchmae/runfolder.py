"""A run folder: the name of every file in it; reads and writes config, log and results.

    config.json            the settings, the identity of the data, how to build the model
    model.safetensors      the newest weights
    best.safetensors       mae finetune, segment, detect: the weights with the best validation
    manifest.json          size and SHA-256 of these three, which every later verb compares
    last.json, best.json   mae finetune, segment, detect: the scores of the last and best validation
    state/step-00001200/   a checkpoint (train/checkpoint.py owns what is in it)
    log.jsonl, curves.png  how training went
    report.html            all this in one page
    trackers.json          --tracker: what W&B and MLflow call the run
    data.json              what the scan before training found: sizes, mean and std
    bad-files.jsonl        the files that could not be read, with reasons
    pictures/              mae pretrain, mae tokenizer: reconstructions while training
    results.json           what evaluations measured
    classes.json           mae finetune, evaluate: which classes are taken for which, calibration
    confusion.png          mae evaluate: the confusion matrix
    mistakes.png           mae finetune, evaluate: the most confident mistakes
    layers.png             mae knn and mae probe --fast with --layer all: accuracy by block
    corruptions.png        mae evaluate --corrupt: accuracy by corruption and strength
    corrupted.png          the first image with each corruption
    worst.png              mae segment, mae detect, mae evaluate: the images with the lowest scores
    look/                  mae look: maps of the patches of images

Light: neither torch nor numpy is imported here.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torchmae import manifest
from torchmae.disk import parse_json, write_text
from torchmae.errors import UserError
from torchmae.settings.options import parse_ratio
from torchmae.version import __version__, commit, versions

CONFIG = "config.json"
MODEL = "model.safetensors"
BEST_MODEL = "best.safetensors"
LAST_SCORES = "last.json"
BEST_SCORES = "best.json"
STATE = "state"
LOG = "log.jsonl"
CURVES = "curves.png"
REPORT = "report.html"
TRACKED = "trackers.json"
DATA_SHEET = "data.json"
BAD_FILES = "bad-files.jsonl"
PICTURES = "pictures"
RESULTS = "results.json"
CLASSES = "classes.json"
CONFUSION = "confusion.png"
MISTAKES = "mistakes.png"
LAYERS = "layers.png"
CORRUPTIONS = "corruptions.png"
CORRUPTED = "corrupted.png"
WORST = "worst.png"
LOOK = "look"
LOCK = ".lock"
LISTED = (CONFIG, MODEL, BEST_MODEL)  # in the manifest: what the models of later verbs depend on


@runtime_checkable
class Identifiable(Protocol):
    """A data set as far as `identity` needs it; every `Source` is one."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str: ...

    def stamp(self) -> str | None: ...


def prepare(out: Path, data: str) -> bool:
    """Makes the run folder, on the main process only: call it through `World.on_main`.

    A folder that holds something else is not touched, and none is made inside the data: its
    pictures would be trained on next time.

    Returns:
        Whether there are checkpoints to resume from, good or damaged.

    Raises:
        UserError: `out` is inside the data, is a file, holds other things, cannot be made, or has
            lost its checkpoints.
    """
    refuse_inside(out, data)
    if out.is_dir() and not (out / CONFIG).exists():
        foreign = [p.name for p in out.iterdir() if p.name not in EARLY]
        if foreign:
            raise UserError(
                f"--out {out} holds other things ({foreign[0]}, ...): name a new folder or a run"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror or error}") from error
    state = out / STATE
    if os.path.lexists(state) and not (state.is_dir() and os.access(state, os.W_OK | os.X_OK)):
        raise UserError(
            f"{state} cannot be written (it is no folder, or another user's), and checkpoints go "
            "there: choose another --out"
        )
    if checkpoints(out):
        return True
    if (out / MODEL).exists():
        raise UserError(
            f"{out} holds weights, but no checkpoint to resume from ({STATE}/ is gone): "
            "choose another --out"
        )
    return False  # nothing was trained there yet: the settings may still change


# What a start that fails early leaves.
EARLY = {LOCK, BAD_FILES, DATA_SHEET, manifest.MANIFEST}
EARLY |= {f".{name}.partial" for name in (CONFIG, manifest.MANIFEST)}


def discard(out: Path, error: BaseException | None) -> None:
    """Removes a new run folder whose start was refused, unless the message names a file in it."""
    if not isinstance(error, UserError) or (out / CONFIG).exists() or str(out) in str(error):
        return
    with suppress(OSError):  # what holds something else stays
        for name in EARLY:
            (out / name).unlink(missing_ok=True)
        out.rmdir()


def refuse_inside(out: Path, data: str) -> None:
    """Raises UserError for an output folder that is a file, or lies inside the data."""
    folder = Path(data).expanduser()
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        better = Path("..") / "runs" / folder.resolve().name
        raise UserError(
            f"--out {out} lies inside the data ({data}): "
            f"name a folder outside, such as --out {better}"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")


# How the fingerprint of a set begins of which nothing can be known, such as a torch Dataset: it is
# that of one object in one process.
UNKNOWN = "unknown-"


def identity(source: Identifiable) -> dict[str, Any]:
    """What a data set is recognised by: its number of images, its fingerprint, and the name that
    the caller of the library gives it, if any."""
    data_id = getattr(source, "data_id", None)
    named = {} if data_id is None else {"data_id": data_id}
    return {"count": len(source), "fingerprint": source.fingerprint(), **named}


def stamped_identity(source: Identifiable) -> dict[str, Any]:
    """Its `identity`, and a stamp that tells whether its contents may have changed."""
    return {**identity(source), "stamp": source.stamp()}


def is_unknown(data: dict[str, Any]) -> bool:
    """Whether nothing is known of a data set, by its `identity`."""
    return str(data.get("fingerprint")).startswith(UNKNOWN)


def same_data(was: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two `identity`s, or several in one, are of the same data; their stamps may differ.

    Where nothing was known of the data, the name that it has now is taken for it.
    """
    names = was.get("data_id"), now.get("data_id")
    if None not in names and names[0] != names[1]:
        return False
    free = {"stamp", "data_id"}
    if is_unknown(was) and names[1] is not None:
        free |= {"fingerprint"}
    return all(
        same_data(was[name], now[name])
        if isinstance(was.get(name), dict) and isinstance(now.get(name), dict)
        else was.get(name) == now.get(name)
        for name in (was.keys() | now.keys()) - free
    )


def other_times(out: Path, data: dict[str, Any]) -> str | None:
    """A line where files have other times than when a run began, but names and sizes as then.

    Args:
        out: the run folder.
        data: the `identity` of the data now.
    """
    was = read_any_config(out)["data"]
    pairs = [(was, data), (was.get("val") or {}, data.get("val") or {})]
    if all(one.get("stamp") in (None, other.get("stamp")) for one, other in pairs):
        return None
    return (
        f"the files of the data have other times, or lie elsewhere, than when {out} began; their "
        "names and sizes are as then. If their contents have changed, what was trained on the "
        "old ones continues with the new ones: then use a new --out"
    )


def write_config(
    out: Path,
    verb: str,
    config: dict[str, Any],
    data: dict[str, Any] | None,
    model: dict[str, Any],
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Writes config.json.

    Args:
        out: the run folder.
        verb: which verb made the run: "pretrain", "finetune", "tokenizer" or "import".
        config: its settings, fully resolved.
        data: the `identity` of the data; None where there was none.
        model: what the model's own `config()` returns; its `build` takes it.
        reasons: why a setting that was left open has its value, by name.
    """
    content = {
        **versions(),
        "commit": commit(),
        "verb": verb,
        "config": config,
        "data": data,
        "model": model,
        "reasons": dict(reasons or {}),
    }
    partial = out / f".{CONFIG}.partial"
    partial.write_text(json.dumps(content, indent=1))
    manifest.publish(out, {CONFIG: partial}, adopt=LISTED)


def other_versions(run: Path) -> str | None:
    """A line where a run began with other versions than these; None where it did not."""
    began, now = read_any_config(run), versions()
    if all(began.get(name, version) == version for name, version in now.items()):
        return None
    one, other = (
        " and ".join(f"{name} {of.get(name, '(unknown)')}" for name in now) for of in (began, now)
    )
    return f"{run} began with {one}; now {other}: weights may differ in their last bits"


def read_config(run: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a run folder that has an encoder.

    Raises:
        UserError: as `read_any_config`, or it is the run of a tokenizer.
    """
    config = read_any_config(run)
    if kind_of(config) == "tokenizer":
        raise UserError(
            f"{run} holds a tokenizer, no encoder: it is for mae pretrain DATA --target "
            f"tokens:{run}"
        )
    return config


def read_any_config(run: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a run folder of any kind.

    Raises:
        UserError: it is no run folder, or config.json is not what was written (see `manifest`).
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        above = Path(run).parent
        inside = os.path.isfile(run) and (above / CONFIG).is_file()
        advice = (
            f"name its folder, {above}"
            if inside
            else "name a folder that mae pretrain, finetune or import made"
        )
        raise UserError(f"{run} is not a run folder (it has no {CONFIG}): {advice}")
    try:
        text = manifest.read(Path(run), CONFIG)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        config = parse_json(text)
        part = "tokenizer" if kind_of(config) == "tokenizer" else "encoder"
        assert isinstance(config["model"][part], dict)
        check_settings(config)
    except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:
        raise UserError(
            f"{path} does not describe a torchmae model ({type(error).__name__}: {error})"
        ) from error
    return config


def check_settings(config: dict[str, Any]) -> None:
    """Adds missing settings (a folder may only describe a model), and raises ValueError for types
    that no run has: what later verbs read of them must not fail deep inside."""
    settings = config.setdefault("config", {})
    if not isinstance(settings, dict):
        raise ValueError("its settings are none")
    for name in ("max_megapixels", "crop_pct", "noise"):
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"{name} {value!r} is no number")
    parse_ratio(settings.get("mask_ratio", 0))
    for name, texts in (
        ("plugin", settings.get("plugin")),
        ("classes", config["model"].get("classes")),
    ):
        if not all(isinstance(text, str) for text in texts or ()):
            raise ValueError(f"{name}: names are needed")


def kind_of(config: dict[str, Any]) -> str:
    """What a config.json describes: "mae" (encoder and decoder), "classifier", "segmenter",
    "detector", "encoder" or "tokenizer"."""
    model = config["model"]
    for kind in ("tokenizer", "segmenter", "detector"):
        if kind in model:
            return kind
    return "mae" if "decoder" in model else "classifier" if "classes" in model else "encoder"


def is_run(folder: Path) -> bool:
    """Whether training or importing made a folder: it has our config.json, or checkpoints."""
    try:
        config = parse_json((folder / CONFIG).read_text())
    except (OSError, ValueError):
        config = None
    return (isinstance(config, dict) and "torchmae" in config) or any(
        p.is_dir() for p in checkpoints(folder)
    )


def resume(
    out: Path, verb: str, requested: Mapping[str, Any], free: AbstractSet[str], data: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings to resume the run in `out` with, and its model's description.

    Args:
        out: the run folder.
        verb: the verb of this call.
        requested: the settings of this call; what is None there is as it was.
        free: names of the settings that may differ, since the weights do not depend on them.
        data: the `identity` of the data now.

    Raises:
        UserError: another verb made the run, or settings or data differ; every difference is named.
    """
    # A setting that the run's older version did not have is as it is requested now.
    before = {**requested, **stored_settings(out, verb)}
    stored = read_any_config(out)
    merged = {
        name: value if name in free and value is not None else before[name]
        for name, value in requested.items()
    }
    wrong = [
        f"{name} was {before[name]}, is {value}"
        for name, value in requested.items()
        if name not in free and value is not None and value != before[name]
    ]
    was = stored["data"]
    if was["count"] != data["count"]:
        wrong.append(f"the data had {was['count']} images, has {data['count']}")
    elif not same_data(was, data):
        wrong.append(
            f"the data has {data['count']} images as before, but not the same ones "
            f"({what_differs(was, data)})"
        )
    if wrong:
        raise UserError(
            f"{out} is another run: {'; '.join(wrong)}. "
            "Repeat its command to resume it, or choose another --out"
        )
    return merged, stored["model"]


def what_differs(was: dict[str, Any], now: dict[str, Any]) -> str:
    """By what data is not the same as before, and what to do where it is."""
    names = was.get("data_id"), now.get("data_id")
    if None not in names and names[0] != names[1]:
        return f"data_id was '{names[0]}', is '{names[1]}'"
    if is_unknown(now):
        given = f"data_id='{names[0]}'" if names[0] else "data_id='a name of your own'"
        return f"a Dataset in Python has no fingerprint; that it is the same says {given}"
    return "names, sizes or labels differ"


def stored_settings(run: str | os.PathLike[str], verb: str | None = None) -> dict[str, Any]:
    """The settings that a run was made with, by name; lists of config.json are tuples again.

    Empty where config.json only describes a model.

    Raises:
        UserError: it is no run folder, or (where a verb is given) another verb made it.
    """
    stored = read_any_config(run)
    if verb is not None and stored.get("verb") != verb:
        raise UserError(
            f"{run} was made by mae {stored.get('verb')}, not by mae {verb}: choose another --out"
        )
    settings = dict(stored.get("config", {}))
    if "white" in settings:  # a run of when all pixels became 8 bits
        settings.setdefault("dtype", "uint8")
    return {n: tuple(value) if isinstance(value, list) else value for n, value in settings.items()}


def name_of(data: str) -> str:
    """A short name of the data for the run folder: the last part of its path without suffix."""
    if "*" in data:  # a pattern: the folder before it
        data = os.path.dirname(data.partition("*")[0]) or "."
    name = Path(data.partition("?")[0].rstrip("/")).name or Path(data).resolve().name
    stem = name if Path(data).is_dir() else name.rpartition(":")[2].split(".")[0]
    return re.sub(r"[^\w.]+", "-", stem or Path(data).resolve().name).strip("-.") or "run"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / STATE / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The folders of finished checkpoints, newest first; other names beside them are ignored."""
    found = (run / STATE).glob("step-*")
    own = [path for path in found if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(own, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))


def last_step(run: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    return max(map(step_of, checkpoints(run)), default=0)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl."""
    return [record for record in read_lines(run / LOG) if isinstance(record.get("step"), int)]


def read_bad_files(run: Path) -> list[dict[str, str]]:
    """The lines of bad-files.jsonl: "file" and "reason"; none where there is no such file."""
    lines = read_lines(run / BAD_FILES)
    return [line for line in lines if {"file", "reason"} <= line.keys()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; what a kill truncated or a disk damaged is skipped."""
    records = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(ValueError):  # JSON's and UTF-8's errors are ValueErrors
            record = parse_json(line.decode())
            if isinstance(record, dict):
                records.append(record)
    return records


def note_bad_files(run: Path, files: Iterable[tuple[str, str]]) -> list[str]:
    """Adds files that could not be read to bad-files.jsonl, each once in the life of the run.

    Args:
        run: the run folder.
        files: pairs of name and reason.

    Returns:
        The names that were not in it before.
    """
    path = run / BAD_FILES
    known = {entry["file"] for entry in read_bad_files(run)}
    new = {name: reason for name, reason in files if name not in known}
    if new or not path.exists():
        with path.open("a+b") as out:
            if out.tell() and (path.read_bytes()[-1:] != b"\n"):
                out.write(b"\n")  # after a line that a kill truncated
            for name, reason in new.items():
                out.write(f"{json.dumps({'file': name, 'reason': reason})}\n".encode())
    return list(new)


def add_result(
    run: Path, verb: str, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> Path:
    """Adds what an evaluation measured to results.json; the only writer of that file.

    The file is `{"results": [record, ...]}`, oldest first, where a record is
    `{"verb": "knn", "torchmae": "0.1.0", "settings": {...}, "results": {...}}`. A record of the
    same verb with the same settings is replaced: it is the same measurement, made again.

    Args:
        run: the run folder.
        verb: the verb that measured; "finetune" for its validation.
        settings: what the results depend on; empty where that is config.json.
        results: what was measured, by name; anything that JSON can hold.

    Returns:
        The path of results.json.
    """
    record = {
        "verb": verb,
        "torchmae": __version__,
        "settings": dict(settings),
        "results": dict(results),
    }
    record = json.loads(json.dumps(record))  # as it is read back: tuples are lists
    same = ("verb", "settings")
    others = [r for r in read_results(run) if any(r[name] != record[name] for name in same)]
    write_text(run / RESULTS, json.dumps({"results": [*others, record]}, indent=1))
    return run / RESULTS


def read_results(run: Path, verb: str | None = None) -> list[dict[str, Any]]:
    """The records of results.json (see `add_result`) of one verb or of all, oldest first.

    Raises:
        UserError: the file is not what `add_result` writes.
    """
    path = run / RESULTS
    if not path.exists():
        return []
    try:
        records = parse_json(path.read_text())["results"]
        return [record for record in records if record["verb"] == verb or verb is None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a file of results ({type(error).__name__}: {error}): fix or remove it"
        ) from error


def add_classes(run: Path, verb: str, detail: Mapping[str, Any]) -> None:
    """Puts what a verb knows of single classes into classes.json, in place of what it knew."""
    found = {**read_object(run / CLASSES), verb: detail}
    write_text(run / CLASSES, json.dumps(found))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object beside the others of a run; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        found = parse_json(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def has_results(run: Path) -> bool:
    """Whether a folder holds results, as those of compare and partial do."""
    return (run / RESULTS).is_file()


def last_validation(run: Path, verb: str = "finetune") -> dict[str, Any]:
    """The scores of a finished training's last weights: of a fine-tuning "top1", "low", "high",
    "count", ..."""
    last: dict[str, Any] = read_results(run, verb)[-1]["results"]["last"]
    return last
