"""The run folder on disk: checkpoints that survive a kill at any moment, and files that are whole or not there.

    run/model.safetensors            the newest weights (a second name of the newest checkpoint's file)
    run/state/step-00001200/         model.safetensors, optimizer.safetensors, state.json, manifest.json (SHA-256)

A checkpoint is written under a temporary name, synced, renamed, and its parent synced. Only safetensors and JSON: no pickle.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from torchmae.disk import sha256, sync, write_text
from torchmae.errors import RunError, UserError
from torchmae.runfolder import checkpoints

logger = logging.getLogger(__name__)

KEEP = 2


FILES = {"model.safetensors", "optimizer.safetensors", "state.json"}  # what a manifest must list


class Checkpoint(NamedTuple):
    """All that a training needs to go on: the number of steps done, weights, optimizer tensors, a few numbers."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    metadata: dict[str, Any]


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; the older ones but one are deleted only after it stands. A full disk is a `RunError`."""
    state = run / "state"
    final, partial = state / f"step-{checkpoint.step:08d}", state / ".partial"
    try:
        state.mkdir(exist_ok=True)  # a run folder that was deleted meanwhile is not made again
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(checkpoint.model, partial / "model.safetensors")
        save_file(checkpoint.optimizer, partial / "optimizer.safetensors")
        write_text(
            partial / "state.json", json.dumps({"step": checkpoint.step, **checkpoint.metadata})
        )
        hashes = {file.name: sha256(file) for file in sorted(partial.iterdir())}
        write_text(partial / "manifest.json", json.dumps(hashes, indent=1))
        for file in partial.iterdir():
            shutil.copymode(
                partial / "state.json", file
            )  # safetensors makes its files for their owner only
            sync(file)
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        sync(state)
        publish(final / "model.safetensors", run / "model.safetensors")
    except (
        OSError,
        SafetensorError,
    ) as error:  # the latter is what safetensors makes of a full disk
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"could not save a checkpoint in {state}: {reason}. Earlier checkpoints are untouched: make "
            "room, and the same command goes on from the newest"
        ) from error
    for old in checkpoints(run)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint whose files match their hashes; a damaged one is set aside, with one warning each.

    The run shows the weights of this one then, also if a kill came before `save` could publish them.
    """
    for folder in checkpoints(run):
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if not isinstance(manifest, dict) or set(manifest) != FILES:
                raise ValueError("manifest.json does not list its files")
            wrong = [name for name, digest in manifest.items() if sha256(folder / name) != digest]
            if wrong:
                raise ValueError(f"{', '.join(wrong)} changed after saving")
            metadata = json.loads((folder / "state.json").read_text())
            model, optimizer = (
                load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")
            )
            found = Checkpoint(metadata.pop("step"), model, optimizer, metadata)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damaged = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(damaged, ignore_errors=True)
            os.rename(folder, damaged)
            logger.warning(f"checkpoint {folder} is damaged ({error}); set aside as {damaged.name}")
            continue
        shown = run / "model.safetensors"
        if not shown.exists() or not shown.samefile(folder / "model.safetensors"):
            publish(folder / "model.safetensors", shown)
        return found
    return None


def publish(source: Path, target: Path) -> None:
    """Gives a finished file a second name, atomically; a copy where the file system has no hard links."""
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
        sync(partial)
    os.replace(partial, target)
    sync(target.parent)


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keeps a second training out of the same run folder; the lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (run / ".lock").open("w") as file:
        try:
            fcntl.lockf(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # of this process only: workers do not inherit it
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"another process is training in {run}: wait for it, or choose another --out"
            ) from error
        yield
