"""Checkpoints that survive a kill at any moment: each file is complete or not there. Also the
scores of validations, and the best weights.

    run/model.safetensors            the newest weights: a copy of the newest checkpoint's file, so
                                     that no write into one damages both (see torchmae/manifest.py)
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
from torch import Tensor, nn

from torchmae import manifest, runfolder
from torchmae.disk import copy, parse_json, sha256, sync, write_text
from torchmae.errors import NOT_FINITE, RunError, UserError
from torchmae.manifest import MANIFEST, Content
from torchmae.runfolder import LISTED, LOCK, MODEL, STATE, checkpoint_folder, checkpoints, step_of
from torchmae.train.distributed import World

logger = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
METADATA = "state.json"

KEEP = 2  # checkpoints: the second serves where the newest is damaged
COOLER = "With a new --out, try a lower --base-lr, --clip-grad 1 or --precision fp32."
DAMAGE = (OSError, ValueError, KeyError, TypeError, SafetensorError)  # what reading one raises


class Checkpoint(NamedTuple):
    """All that resuming needs: steps done, weights, optimizer tensors, metadata for JSON."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    metadata: dict[str, Any]


def save(run: Path, checkpoint: Checkpoint, kept: int | None = None) -> None:
    """Writes a checkpoint, then deletes older ones but the newest `KEEP`.

    Args:
        run: the run folder.
        checkpoint: what is written.
        kept: a step whose checkpoint is never deleted.

    Raises:
        RunError: it could not be written, e.g. because the disk is full, or (exit code 65) its
            weights are not finite. Earlier ones remain.
    """
    refuse_not_finite(checkpoint.model)
    final = checkpoint_folder(run, checkpoint.step)
    state = final.parent
    partial = state / ".partial"
    try:
        state.mkdir(exist_ok=True)  # no parents: a run folder deleted meanwhile is not made again
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_tensors(checkpoint.model, partial / MODEL)
        save_tensors(checkpoint.optimizer, partial / OPTIMIZER)
        write_text(partial / METADATA, json.dumps({"step": checkpoint.step, **checkpoint.metadata}))
        hashes = {file.name: sha256(file) for file in sorted(partial.iterdir())}
        write_text(partial / MANIFEST, json.dumps(hashes, indent=1))
        for file in partial.iterdir():
            sync(file)
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        sync(state)
        publish(final, run)
    except (OSError, SafetensorError) as error:  # safetensors raises the latter on a full disk
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"could not save a checkpoint in {state}: {reason}. Earlier checkpoints are untouched: "
            "make room, then the same command resumes from the newest"
        ) from error
    for old in checkpoints(run)[KEEP:]:
        if step_of(old) != kept:
            shutil.rmtree(old, ignore_errors=True)


def return_to(run: Path, step: int) -> None:
    """Deletes the checkpoints after that of a step, so that training goes on from it.

    Raises:
        UserError: it is not there, or damaged; nothing is deleted then.
    """
    folder = checkpoint_folder(run, step)
    try:
        check(folder)
    except DAMAGE as error:
        raise UserError(
            f"{run} can be lengthened from step {step:,} only, and that checkpoint is gone or "
            f"damaged ({error}): for a longer run use a new --out"
        ) from error
    partial = folder.parent / ".partial"
    for newer in (path for path in checkpoints(run) if step_of(path) > step):
        shutil.rmtree(partial, ignore_errors=True)
        os.rename(newer, partial)  # a kill leaves no half of a checkpoint under its name
        shutil.rmtree(partial)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a .safetensors file that is as readable as other new files."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path)  # makes a file that only its owner can read
    path.chmod(mode)


def refuse_not_finite(weights: dict[str, Tensor]) -> None:
    """A `RunError` with exit code 65 for weights of which some are not finite."""
    wrong = [name for name, value in weights.items() if not value.isfinite().all()]
    if wrong:
        raise RunError(
            f"the weights are not finite ({wrong[0]}, {len(wrong)} of {len(weights)} tensors), so "
            f"they are not saved; what was saved before is good. {COOLER}",
            NOT_FINITE,
        )


def verified(run: Path) -> Path | None:
    """The folder of the newest checkpoint that matches its hashes; None if nothing was saved yet.

    Newer ones, which are damaged, are renamed with a warning.

    Raises:
        UserError: there are checkpoints, and all are damaged. They stay as they are.
    """
    damaged: dict[Path, Exception] = {}
    for folder in checkpoints(run):
        try:
            check(folder)
        except DAMAGE as error:
            damaged[folder] = error
            continue
        for other, reason in damaged.items():
            aside = other.with_name(f"damaged-{other.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(other, aside)
            logger.warning(f"checkpoint {other} is damaged ({reason}); renamed to {aside.name}")
        return folder
    if not damaged:
        return None
    reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
    raise UserError(
        f"{run / STATE} has no checkpoint that is not damaged ({reasons}), so nothing can be "
        f"resumed. Restore one from a copy, or choose a new --out, or delete {run / STATE} and "
        f"{run / MODEL} to start again{whole_weights(run)}"
    )


def whole_weights(run: Path) -> str:
    """What to say of published weights that are good while all checkpoints are not."""
    try:
        if not manifest.listed(run):
            return ""
        manifest.check(run, MODEL)
    except (UserError, OSError):
        return ""
    return f". {run / MODEL} is good: the weights, for other commands and new runs"


def newest(run: Path) -> Checkpoint | None:
    """What `verified` finds, loaded.

    Its weights are then the run's `model.safetensors`, also where a kill came before `save` could
    publish them, or where that file was damaged.
    """
    folder = verified(run)
    if folder is None:
        return None
    found = read_checkpoint(folder)
    weights = manifest.content_of(folder / MODEL)
    listed = (manifest.listed(run) or {}).get(MODEL)
    shown = run / MODEL
    if listed != [weights] or not shown.exists() or manifest.content_of(shown) != weights:
        publish(folder, run)
    return found


def check(folder: Path) -> None:
    """Raises one of `DAMAGE` unless the files of a checkpoint match its hashes."""
    hashes = parse_json((folder / MANIFEST).read_text())
    if not isinstance(hashes, dict) or set(hashes) != {MODEL, OPTIMIZER, METADATA}:
        raise ValueError(f"{MANIFEST} does not list its files")
    wrong = [n for n, digest in hashes.items() if manifest.content_of(folder / n).sha256 != digest]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} changed after saving")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Loads a checkpoint's folder; raises one of `DAMAGE` if it is damaged."""
    check(folder)
    metadata = parse_json((folder / METADATA).read_text())
    step = metadata.pop("step")
    return Checkpoint(step, load_file(folder / MODEL), load_file(folder / OPTIMIZER), metadata)


def publish(folder: Path, run: Path) -> None:
    """Copies the weights of a checkpoint to the run's `model.safetensors`, atomically."""
    partial = run / f".{MODEL}.partial"
    copy(folder / MODEL, partial)
    digest = parse_json((folder / MANIFEST).read_text())[MODEL]
    known = {MODEL: Content(partial.stat().st_size, digest)}
    manifest.publish(run, {MODEL: partial}, LISTED, known)


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


def is_locked(run: Path) -> bool | None:
    """Whether another process trains in a run folder; None where the system does not tell.

    It asks for the lock and gives it back at once. Not for a process that trains there itself:
    closing the file would drop its own lock.
    """
    try:
        import fcntl

        with (run / LOCK).open() as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return True
            return False
    except FileNotFoundError:
        return False
    except (ImportError, OSError):  # Windows; a file system without locks
        return None


# What validations leave in a run folder.
MEASURED = (
    runfolder.BEST_SCORES,
    runfolder.BEST_MODEL,
    runfolder.LAST_SCORES,
    runfolder.RESULTS,
    runfolder.CLASSES,
    runfolder.MISTAKES,
    runfolder.WORST,
)


def read_scores(path: Path, key: str) -> dict[str, Any] | None:
    """What a validation wrote; None where there is nothing, or it is damaged: then the next
    validation writes it again.

    Args:
        path: `LAST_SCORES` or `BEST_SCORES` of a run folder.
        key: of the score that the best weights are chosen by.
    """
    try:
        found = parse_json(path.read_bytes())
        return {**found, "step": int(found["step"]), key: float(found[key])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def validated_step(out: Path, key: str) -> int | None:
    """The step that was validated last."""
    found = read_scores(out / runfolder.LAST_SCORES, key)
    return found["step"] if found else None


def keep_scores(
    out: Path, step: int, scores: dict[str, Any], key: str, model: nn.Module, world: World
) -> None:
    """Writes the scores of a step, and the weights if they are the best ones so far.

    Every process has to call this.

    Args:
        out: the run folder.
        step: optimizer steps done.
        scores: what JSON can hold.
        key: of the score that the best weights are chosen by; higher is better.
        model: whose weights they are.
        world: its processes bring sharded weights together.
    """
    best = out / runfolder.BEST_SCORES

    def is_best() -> bool:
        before = read_scores(best, key)
        return before is None or before[key] < scores[key]

    text = json.dumps({"step": step, **scores}, indent=1)
    weights: dict[str, Tensor] = {}
    if world.on_main(is_best):
        state = model.state_dict().items()
        weights = {name: world.gather(value).contiguous() for name, value in state}
    if world.is_main:
        write_text(out / runfolder.LAST_SCORES, text)
        if weights:
            partial = out / f".{runfolder.BEST_MODEL}.partial"
            refuse_not_finite(weights)
            save_tensors(weights, partial)
            manifest.publish(out, {runfolder.BEST_MODEL: partial}, LISTED)
            write_text(best, text)
