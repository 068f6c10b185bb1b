"""MLflow: a folder unless MLFLOW_TRACKING_URI names another place."""

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torchmae.errors import library
from torchmae.train.trackers.tracker import PROJECT, Opening


class MLflow:
    """A run of MLflow; in mlruns/ beside the run folder."""

    def __init__(self, opening: Opening):
        # Before the import, which looks up the address of MLflow's makers otherwise.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
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
