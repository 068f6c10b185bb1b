"""Where else a training is written: TensorBoard, Weights & Biases, MLflow, by one interface.

Nothing is sent anywhere by itself: W&B is offline unless WANDB_MODE says otherwise, and MLflow
writes into a folder unless MLFLOW_TRACKING_URI names another place.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torchmae.disk import write_text
from torchmae.errors import UserError, library
from torchmae.runfolder import CONFIG, TRACKED, read_object

PROJECT = "torchmae"  # of W&B and MLflow, where the environment names no other


@runtime_checkable
class Tracker(Protocol):
    """One of them, open. Its methods may raise: no failure of theirs ends a training."""

    @property
    def id(self) -> str | None:
        """What it calls the run, so that a resumed training goes on there; None: it needs none."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, path: Path) -> None: ...
    def close(self, ended_well: bool) -> None: ...


class Opening(NamedTuple):
    """What a tracker needs to begin, or to go on.

    Attributes:
        run: the run folder.
        settings: those of config.json.
        start: steps done before.
        id: what it called the run; None: it is new there.
    """

    run: Path
    settings: Mapping[str, Any]
    start: int
    id: str | None

    @property
    def name(self) -> str:
        return self.run.resolve().name


class TensorBoard:
    """Events in the run folder; those after a resumed step are hidden by the new ones."""

    id = None

    def __init__(self, opening: Opening):
        writer = library("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # What has this step or a later one is hidden, and that of `start` is not written again.
        self.writer = writer(str(opening.run), purge_step=opening.start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.writer.add_image("pictures", pixels, step, dataformats="HWC")

    def close(self, ended_well: bool) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases; offline in the run folder's wandb/, for `wandb sync`."""

    def __init__(self, opening: Opening):
        self.wandb = library("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = self.wandb.init(
            mode=mode,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(opening.run)),
            name=opening.name,
            id=opening.id,
            resume=None if mode == "offline" else "allow",  # offline `wandb sync` joins by the id
            config=dict(opening.settings),
            settings=self.wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False
            ),
        )
        self.id = self.run.id
        # W&B's own steps only grow, and a resumed training goes back to its checkpoint.
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def picture(self, step: int, path: Path) -> None:
        self.run.log({"pictures": self.wandb.Image(str(path)), "step": step})

    def close(self, ended_well: bool) -> None:
        self.run.finish(exit_code=0 if ended_well else 1)


class MLflow:
    """A run of MLflow; in mlruns/ beside the run folder."""

    def __init__(self, opening: Opening):
        mlflow = library("mlflow", "mlflow")
        # It wants to be told that a folder, which needs no server and no database, is meant.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        place = os.environ.get("MLFLOW_TRACKING_URI")
        beside = (opening.run.resolve().parent / "mlruns").as_uri()
        self.entities = mlflow.entities
        self.client = mlflow.MlflowClient(tracking_uri=place or beside)
        self.id = self.known(opening.id) or self.begun(opening)
        self.client.update_run(self.id, status="RUNNING")

    def known(self, id: str | None) -> str | None:
        """The id, if there still is such a run."""
        with suppress(Exception):  # MlflowException, which needs the package
            return str(self.client.get_run(id).info.run_id) if id else None
        return None

    def begun(self, opening: Opening) -> str:
        """The id of a new run with the settings."""
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self.client.create_experiment(project)
        run = self.client.create_run(experiment, run_name=opening.name).info.run_id
        params = [self.entities.Param(k, str(v)[:500]) for k, v in opening.settings.items()]
        self.client.log_batch(run, params=params)
        return str(run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = self.entities.Metric
        metrics = [
            now(re.sub(r"[^\w\-./ :]", "_", name), float(value), int(1000 * time.time()), step)
            for name, value in values.items()
        ]
        self.client.log_batch(self.id, metrics=metrics)

    def picture(self, step: int, path: Path) -> None:
        self.client.log_artifact(self.id, str(path), "pictures")

    def close(self, ended_well: bool) -> None:
        self.client.set_terminated(self.id, status="FINISHED" if ended_well else "FAILED")


TRACKERS: dict[str, Callable[[Opening], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(names: tuple[str, ...], run: Path, start: int) -> dict[str, Tracker]:
    """The trackers of a training, by name. Their ids are stored in the run folder.

    Raises:
        UserError: one is not installed, or cannot be opened.
    """
    if not names:
        return {}
    known, settings = read_object(run / TRACKED), read_object(run / CONFIG).get("config") or {}
    trackers: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        opening = Opening(run, settings, start, known.get(name))
        try:
            trackers[name] = TRACKERS[name](opening)
        except UserError:
            raise
        except Exception as error:  # they raise whatever they like
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"--tracker {name} cannot be opened ({words[0]}): repair that, or leave it out"
            ) from error
    ids = {name: tracker.id for name, tracker in trackers.items() if tracker.id is not None}
    if ids != known:
        write_text(run / TRACKED, json.dumps({**known, **ids}, indent=1))
    return trackers
