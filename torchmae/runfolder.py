"""A run folder: the names of its files, its config.json, log and results. Light: no torch."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchmae.data.sources.source import Source
from torchmae.disk import write_text
from torchmae.errors import UserError
from torchmae.train.distributed import World
from torchmae.version import __version__, commit


def prepare(out: Path, data: str, world: World) -> bool:
    """Makes the run folder; True if it holds a run to go on with. One that holds something else is not touched, and none is
    made inside the data: its pictures would be trained on next time."""

    def make() -> bool:
        folder = Path(data).expanduser()
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            better = Path("..") / "runs" / folder.resolve().name
            raise UserError(
                f"--out {out} lies inside the data ({data}): name a folder outside, such as --out {better}"
            )
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: name a folder")
        if out.is_dir() and not (out / "config.json").exists():
            ours = (".lock", "bad-files.jsonl", ".config.json.partial")
            strange = [p.name for p in out.iterdir() if p.name not in ours]
            if strange:
                raise UserError(
                    f"--out {out} holds other things ({strange[0]}, ...): name a new folder or a run"
                )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out} cannot be made: {error.strerror or error}") from error
        if checkpoints(out):
            return True
        if (out / "model.safetensors").exists():
            raise UserError(
                f"{out} holds weights, but no checkpoint to go on from (state/ is gone): choose another --out"
            )
        return False  # nothing was trained there yet: the settings may still change

    return world.on_main(make)


def identity(source: Source) -> dict[str, Any]:
    """What a data set is recognised by."""
    return {"count": len(source), "fingerprint": source.fingerprint()}


def write_config(
    out: Path, verb: str, config: dict[str, Any], data: dict[str, Any] | None, model: dict[str, Any]
) -> None:
    """config.json: the settings fully resolved, the identity of the data, the model's own description."""
    everything = {
        "torchmae": __version__,
        "commit": commit(),
        "verb": verb,
        "config": config,
        "data": data,
        "model": model,
    }
    write_text(out / "config.json", json.dumps(everything, indent=1))


def resume(
    out: Path, verb: str, asked: Mapping[str, Any], free: set[str], data: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that the run in `out` goes on with, and its model's description; `UserError` naming every difference.

    What is left open now (None) is as it was then; the settings in `free` may differ, since the weights do not hang on them.
    """
    stored = read_config(out)
    if stored.get("verb") != verb:
        raise UserError(
            f"{out} was made by mae {stored.get('verb')}, not by mae {verb}: choose another --out"
        )
    before = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored["config"].items()
    }
    before = {**asked, **before}  # a setting that a later version brought is as it is now
    merged = {
        name: value if name in free and value is not None else before[name]
        for name, value in asked.items()
    }
    wrong = [
        f"{name} was {before[name]}, is {value}"
        for name, value in asked.items()
        if name not in free and value is not None and value != before[name]
    ]
    was = stored["data"]
    if was["count"] != data["count"]:
        wrong.append(f"the data had {was['count']} images, has {data['count']}")
    elif was != data:
        wrong.append(
            f"the data has {data['count']} images as before, but not the same ones (names, sizes or labels differ)"
        )
    if wrong:
        raise UserError(
            f"{out} is another run: {'; '.join(wrong)}. Repeat its command to go on, or choose another --out"
        )
    return merged, stored["model"]


def name_of(data: str) -> str:
    """A short name of the data for the run folder: the last part of its path, without its ending."""
    name = Path(data.partition("?")[0].rstrip("/")).name or Path(data).resolve().name
    stem = name if Path(data).is_dir() else name.rpartition(":")[2].split(".")[0]
    return re.sub(r"[^\w.]+", "-", stem or Path(data).resolve().name).strip("-.") or "run"


def add_result(run: Path, name: str, result: dict[str, Any]) -> Path:
    """Adds an evaluation to the run's `results.json`, after those that are there."""
    path = run / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(name, []).append(result)
    write_text(path, json.dumps(results, indent=1))
    return path


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl."""
    return read_lines(run / "log.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; one that a kill cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def note_bad_files(run: Path, files: Iterable[tuple[str, str]]) -> list[str]:
    """Adds files that could not be read to bad-files.jsonl, each once in the life of the run; gives the new names."""
    path = run / "bad-files.jsonl"
    known = {entry["file"] for entry in read_lines(path)}
    new = {name: reason for name, reason in files if name not in known}
    if new or not path.exists():
        with path.open("a") as out:
            out.writelines(
                json.dumps({"file": name, "reason": reason}) + "\n" for name, reason in new.items()
            )
    return list(new)


def checkpoints(run: Path) -> list[Path]:
    """The folders of finished checkpoints, newest first."""
    return sorted((run / "state").glob("step-*"), reverse=True)


def last_step(run: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    return max((int(folder.name.removeprefix("step-")) for folder in checkpoints(run)), default=0)


def read_config(run: str | os.PathLike[str]) -> dict[str, Any]:
    """`config.json` of a run folder; `UserError` if it is not one."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run} is not a run folder (it has no config.json): give a folder that mae pretrain, finetune or import made"
        )
    try:
        config = json.loads(path.read_text())
        assert isinstance(config["model"]["encoder"], dict)
    except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:
        raise UserError(
            f"{path} does not describe a torchmae model ({type(error).__name__}: {error})"
        ) from error
    return config


def kind_of(config: dict[str, Any]) -> str:
    """What a run folder's `config.json` describes: "mae" (encoder and decoder), "classifier" or "encoder"."""
    model = config["model"]
    return "mae" if "decoder" in model else "classifier" if "classes" in model else "encoder"


def is_run(folder: Path) -> bool:
    """Whether a folder is what training or importing made: it has our config.json, or checkpoints."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = None
    return (isinstance(config, dict) and "torchmae" in config) or any(
        p.is_dir() for p in folder.glob("state/step-*")
    )
