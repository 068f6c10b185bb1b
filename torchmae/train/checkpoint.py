"""Checkpoints that survive a kill at any moment: each file is complete or not there.

    run/model.safetensors            the newest weights, a hard link to the newest checkpoint's file
    run/state/step-00001200/         model.safetensors, optimizer.safetensors, state.json and
                                     manifest.json (SHA-256 of the others)

A checkpoint is written under a temporary name, synced, renamed, and its parent synced. Only
safetensors and JSON: no pickle.
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

from torchmae.disk import parse_json, sha256, sync, write_text
from torchmae.errors import RunError, UserError
from torchmae.runfolder import LOCK, MODEL, checkpoint_folder, checkpoints

logger = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
METADATA = "state.json"
MANIFEST = "manifest.json"

KEEP = 2  # checkpoints: the second serves where the newest is damaged


class Checkpoint(NamedTuple):
    """All that resuming needs: steps done, weights, optimizer tensors, metadata for JSON."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    metadata: dict[str, Any]


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, then deletes the oldest ones but `KEEP`.

    Raises:
        RunError: it could not be written, e.g. because the disk is full. Earlier ones remain.
    """
    final = checkpoint_folder(run, checkpoint.step)
    state = final.parent
    partial = state / ".partial"
    try:
        state.mkdir(exist_ok=True)  # no parents: a run folder deleted meanwhile is not made again
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(checkpoint.model, partial / MODEL)
        save_file(checkpoint.optimizer, partial / OPTIMIZER)
        write_text(partial / METADATA, json.dumps({"step": checkpoint.step, **checkpoint.metadata}))
        hashes = {file.name: sha256(file) for file in sorted(partial.iterdir())}
        write_text(partial / MANIFEST, json.dumps(hashes, indent=1))
        for file in partial.iterdir():
            # safetensors makes files that only their owner can read.
            shutil.copymode(partial / METADATA, file)
            sync(file)
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        sync(state)
        publish(final / MODEL, run / MODEL)
    except (OSError, SafetensorError) as error:  # safetensors raises the latter on a full disk
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"could not save a checkpoint in {state}: {reason}. Earlier checkpoints are untouched: "
            "make room, then the same command resumes from the newest"
        ) from error
    for old in checkpoints(run)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that matches its hashes; damaged ones are renamed with a warning.

    Its weights are then the run's `model.safetensors`, also where a kill came before `save` could
    publish them.
    """
    for folder in checkpoints(run):
        try:
            found = read_checkpoint(folder)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damaged = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(damaged, ignore_errors=True)
            os.rename(folder, damaged)
            logger.warning(f"checkpoint {folder} is damaged ({error}); renamed to {damaged.name}")
            continue
        shown = run / MODEL
        if not shown.exists() or not shown.samefile(folder / MODEL):
            publish(folder / MODEL, shown)
        return found
    return None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Loads a checkpoint's folder; OSError, ValueError, KeyError or SafetensorError if damaged."""
    manifest = parse_json((folder / MANIFEST).read_text())
    if not isinstance(manifest, dict) or set(manifest) != {MODEL, OPTIMIZER, METADATA}:
        raise ValueError(f"{MANIFEST} does not list its files")
    wrong = [name for name, digest in manifest.items() if sha256(folder / name) != digest]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} changed after saving")
    metadata = parse_json((folder / METADATA).read_text())
    step = metadata.pop("step")
    return Checkpoint(step, load_file(folder / MODEL), load_file(folder / OPTIMIZER), metadata)


def publish(source: Path, target: Path) -> None:
    """Gives a finished file a second name, atomically; a copy where hard links are missing."""
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
    """Refuses a second training in the same run folder with a `UserError`.

    The operating system drops the lock when the process ends, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        file = (run / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"{run / LOCK} cannot be opened ({error.strerror or error}), so that two trainings in "
            "one folder would not be noticed: is it another user's run? Choose another --out"
        ) from error
    with file:
        try:
            # lockf's locks belong to this process: unlike flock's, workers do not inherit them.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"another process is training in {run}: wait for it, or choose another --out"
            ) from error
        yield
