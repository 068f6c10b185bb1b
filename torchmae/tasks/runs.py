"""The life of a run folder: made, described in config.json, recognised when the same command comes again."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import torchmae
from torchmae.data.scan import Scan, bad_budget, scan
from torchmae.data.sources import Source
from torchmae.errors import UserError
from torchmae.models.weights import read_config
from torchmae.train import checkpoint
from torchmae.train.distributed import World
from torchmae.train.log import note_bad_files


def prepare(out: Path, data: str, world: World) -> bool:
    """Makes the run folder; True if it holds a run to go on with. One that holds something else is not touched, and none is
    made inside the data: its pictures would be trained on next time."""

    def make() -> bool:
        folder = Path(data).expanduser()
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            better = Path("..") / "runs" / folder.resolve().name
            raise UserError(f"--out {out} lies inside the data ({data}): name a folder outside, such as --out {better}")
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: name a folder")
        if out.is_dir() and not (out / "config.json").exists():
            ours = (".lock", "bad-files.jsonl", ".config.json.partial")
            strange = [p.name for p in out.iterdir() if p.name not in ours]
            if strange:
                raise UserError(f"--out {out} holds other things ({strange[0]}, ...): name a new folder or a run")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out} cannot be made: {error.strerror or error}") from error
        if checkpoint.checkpoints(out):
            return True
        if (out / "model.safetensors").exists():
            raise UserError(
                f"{out} holds weights, but no checkpoint to go on from (state/ is gone): choose another --out"
            )
        return False  # nothing was trained there yet: the settings may still change

    return world.on_main(make)


def scan_and_report(
    source: Source,
    channels: int,
    out: Path,
    max_megapixels: float = 100.0,
    white: int = 65535,
    max_bad_percent: float = 1.0,
) -> Scan:
    """Scans the data; bad files are named once in bad-files.jsonl, too many of them are a `UserError`."""
    found = scan(source, channels, max_megapixels, white)
    (out / "bad-files.jsonl").unlink(missing_ok=True)
    note_bad_files(out, found.bad)
    if found.height == 0:  # no image had a size
        raise UserError(
            f"none of {found.images} images can be read; the first: {found.bad[0].name}: {found.bad[0].reason}. "
            f"All are listed in {out / 'bad-files.jsonl'}"
        )
    if len(found.bad) > bad_budget(found.images, max_bad_percent):
        examples = "; ".join(f"{name}: {reason}" for name, reason in found.bad[:3])
        raise UserError(
            f"{len(found.bad)} of {found.images} images cannot be read, more than --max-bad-percent {max_bad_percent:g} "
            f"and 20 files allow. {examples}. All are listed in {out / 'bad-files.jsonl'}"
        )
    return found


def command() -> str:
    """How to call `mae` again from the same shell: what was typed, where a plain `mae` is not this one."""
    typed, found = Path(sys.argv[0]), shutil.which("mae")
    if typed.name != "mae":
        return "python -m torchmae"
    return "mae" if found and Path(found).resolve() == typed.resolve() else shlex.quote(sys.argv[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def identity(source: Source) -> dict[str, Any]:
    """What a data set is recognised by."""
    return {"count": len(source), "fingerprint": source.fingerprint()}


def write_config(
    out: Path, verb: str, config: dict[str, Any], data: dict[str, Any] | None, model: dict[str, Any]
) -> None:
    """config.json: the settings fully resolved, the identity of the data, the model's own description."""
    package = Path(torchmae.__file__).parent
    commit = None
    if (package.parent / ".git").exists():
        with suppress(OSError):  # no git there
            answer = subprocess.run(["git", "-C", str(package), "rev-parse", "HEAD"], capture_output=True, text=True)
            commit = answer.stdout.strip() or None
    everything = {
        "torchmae": torchmae.__version__,
        "commit": commit,
        "verb": verb,
        "config": config,
        "data": data,
        "model": model,
    }
    checkpoint.write_text(out / "config.json", json.dumps(everything, indent=1))


def resume(
    out: Path, verb: str, asked: Mapping[str, Any], free: set[str], data: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that the run in `out` goes on with, and its model's description; `UserError` naming every difference.

    What is left open now (None) is as it was then; the settings in `free` may differ, since the weights do not hang on them.
    """
    stored = read_config(out)
    if stored.get("verb") != verb:
        raise UserError(f"{out} was made by mae {stored.get('verb')}, not by mae {verb}: choose another --out")
    before = {name: tuple(value) if isinstance(value, list) else value for name, value in stored["config"].items()}
    before = {**asked, **before}  # a setting that a later version brought is as it is now
    merged = {name: value if name in free and value is not None else before[name] for name, value in asked.items()}
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
