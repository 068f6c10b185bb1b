"""One training of an ablation: the encoder is pre-trained and measured, and its record written."""

import json
import logging
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from torchmae import runfolder
from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import labelled_sets
from torchmae.disk import parse_json, write_text
from torchmae.errors import NOT_FINITE, RunError, UserError
from torchmae.eval.baselines import FEATURES
from torchmae.eval.probes.measures import MEASURES, frozen_guesses
from torchmae.settings.options import build, changeable, changed
from torchmae.tasks.ablate.config import Ablate
from torchmae.tasks.ablate.points import FEW_LABEL, FINETUNE, Training, part_of
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.pretrain.config import Pretrain
from torchmae.tasks.pretrain.run import run as pretrain

logger = logging.getLogger(__name__)

POINTS, TRAININGS = "points", "trainings"  # folders of the ablation
# Of a training's settings, those that do not decide what is measured.
FREE = changeable(Pretrain) | {"target"}  # a tokenizer's folder; its name tells the target


def record_of(out: Path, training: Training) -> Path:
    """The file with what was measured on a training."""
    return out / POINTS / f"{training.name}.json"


def read_record(out: Path, training: Training, config: Ablate) -> dict[str, Any] | None:
    """What was measured on a training, if all of it was, or that it failed.

    Raises:
        UserError: it was measured with other settings or on other labelled images.
    """
    path = record_of(out, training)
    if not path.exists():
        return None
    record = parse_json(path.read_text())
    now = described(training, config)
    for what in ("data", "settings", "measured_on"):
        before = record[what]
        for name, value in json.loads(json.dumps(now[what])).items():
            if what == "data" and before.get(name) != value:
                raise UserError(f"{path} was made with other {name}: use another --out")
            if before.get(name) != value:
                raise UserError(
                    f"{path} was made with {name} {before.get(name)}, not {value}: use another "
                    "--out, or the settings of before"
                )
    done = "failed" in record or set(training.measures) <= set(record["measures"])
    return record if done else None


def described(training: Training, config: Ablate) -> dict[str, Any]:
    """The settings that decide what is measured."""
    measures = config.measures
    free = FREE
    if training.resolved.get("minutes") is not None:
        free |= {"epochs", "warmup_epochs"}  # decided by the speed, when it begins
    return {
        "name": training.name,
        "seed": training.seed,
        "changes": dict(training.changes),
        "data": dict(training.data),
        "settings": {n: v for n, v in training.resolved.items() if n not in free},
        "measured_on": {
            "val_fraction": measures.val_fraction,
            "labels_per_class": measures.labels_per_class,
            "finetune_epochs": measures.finetune_epochs,
        },
    }


def train_and_measure(training: Training, config: Ablate, out: Path, device: torch.device) -> None:
    """Pre-trains, measures what is not measured yet, and writes the record; resumes what was
    stopped anywhere. Of a baseline the run's description suffices.

    A training whose loss is not finite gets a record that says so.
    """
    run, path = out / TRAININGS / training.folder, record_of(out, training)
    record, trains = described(training, config), training.subject == FEATURES
    before = parse_json(path.read_text())["measures"] if path.exists() else {}
    missing = training._replace(measures=tuple(m for m in training.measures if m not in before))
    if trains and is_longer(run, training):
        shutil.rmtree(run)  # its weights of this length are gone: they are made again
    try:
        if trains or not runfolder.is_run(run):
            pretrain(changed(training.config, out=str(run)), quiet=True)
        began = time.monotonic()
        measures = {**before, **frozen(missing, config, run, device)}
        measures |= finetuned(missing, config, run)
        record |= cost_of(run) if trains else {}
        record |= {"measures": measures, "minutes_to_measure": (time.monotonic() - began) / 60}
    except RunError as error:
        if error.exit_code != NOT_FINITE:  # stopped, or a full disk: not what was to be found out
            raise
        record |= {"measures": {}, "failed": str(error)}
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(record, indent=1))


def is_longer(run: Path, training: Training) -> bool:
    """Whether a run that several lengths share is longer already than a training of it."""
    if not runfolder.checkpoints(run):
        return False
    return bool(runfolder.stored_settings(run)["epochs"] > training.resolved["epochs"])


def frozen(
    training: Training, config: Ablate, run: Path, device: torch.device
) -> dict[str, dict[str, float]]:
    """Accuracies of the probes on frozen features, and the validation images they are of."""
    names = [name for name in training.measures if name in MEASURES]
    if not names:
        return {}
    measures = config.measures
    which = (config.labelled_data, measures.val, measures.val_fraction, None, training.seed)
    listing = listing_as_run(config.listing, config.labelled_data, str(run))
    sets = labelled_sets(*which, listing=listing)
    ids, guesses = frozen_guesses(str(run), sets, training.seed, names, device, training.subject)
    truth = sets.val_labels[ids]
    return {
        name: {"accuracy": float((found == truth).double().mean()), "images": len(truth)}
        for name, found in guesses.items()
    }


def finetuned(training: Training, config: Ablate, run: Path) -> dict[str, dict[str, float]]:
    """Accuracies of fine-tunings, each in a folder of its own beside the run."""
    measures, runtime = config.measures, config.runtime
    found = {}
    for name in training.measures:
        if name in MEASURES:
            continue
        settings = {
            **start_of(training, config, run),
            "data": config.labelled_data,
            "val": measures.val,
            "val_fraction": measures.val_fraction,
            "labels_per_class": measures.labels_per_class if name == FEW_LABEL else None,
            "epochs": measures.finetune_epochs,
            "seed": training.seed,
            "device": runtime.device,
            "workers": runtime.workers,
            "out": str(finetune_folder(run, training, name)),
            "train": part_of(name),
        }
        scores = runfolder.last_validation(finetune(build(Finetune, settings), quiet=True))
        found[name] = {"accuracy": scores["top1"], "images": scores["count"]}
    return found


def start_of(training: Training, config: Ablate, run: Path) -> dict[str, Any]:
    """Where a fine-tuning starts: from the run, or from scratch, with its architecture and view."""
    listing = listing_as_run(config.listing, config.labelled_data, str(run))
    images = listing.settings(config.listing)
    if training.subject == FEATURES:
        return {"run": str(run), **images}
    decode = decode_as_run(str(run))
    return {
        "run": "none",
        "model": str(run),
        "channels": runfolder.read_config(run)["model"]["encoder"]["channels"],
        **decode.stored(),
        **images,
    }


def finetune_folder(run: Path, training: Training, measure: str) -> Path:
    """A training that continues another has its own fine-tunings."""
    return run.with_name(f"{training.name}-{measure}")


def check_measures(names: Sequence[str]) -> None:
    """Raises UserError for a measure that there is not."""
    known = (*MEASURES, FEW_LABEL, FINETUNE)
    for name in names:
        if name not in known and not name.startswith(f"{FINETUNE}-"):
            raise UserError(
                f"--measure {name}: some of {', '.join(known)}, or {FINETUNE}-PART with a part as "
                "of mae partial, such as finetune-0.5"
            )


def cost_of(run: Path) -> dict[str, Any]:
    """What a training took and how it ended, from its log: of all its steps, however often it was
    resumed."""
    records = [record for record in runfolder.read_log(run) if "loss" in record]
    last = records[-1]
    speed = statistics.median(record["images_per_s"] for record in records)
    return {
        "loss": last["loss"],
        "images_per_s": speed,
        "images_seen": last["images_seen"],
        "flops": last["flops"],
        "minutes": last["images_seen"] / speed / 60,
        "peak_memory_mb": last["peak_memory_mb"],
    }


def drop_weights(out: Path, unit: Sequence[Training]) -> None:
    """Removes the weights of finished trainings; logs, curves and pictures stay."""
    run = out / TRAININGS / unit[0].folder
    shutil.rmtree(run / runfolder.STATE, ignore_errors=True)
    with suppress(OSError):
        (run / runfolder.MODEL).unlink(missing_ok=True)
    for training in unit:
        for measure in training.measures:
            shutil.rmtree(finetune_folder(run, training, measure), ignore_errors=True)
