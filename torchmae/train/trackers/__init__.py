"""Where else a training is written: TensorBoard, Weights & Biases, MLflow, by one interface.

Nothing is sent anywhere by itself.
"""

import json
from collections.abc import Callable
from pathlib import Path

from torchmae.disk import write_text
from torchmae.errors import UserError
from torchmae.runfolder import CONFIG, TRACKED, read_object
from torchmae.train.trackers.mlflow import MLflow
from torchmae.train.trackers.tensorboard import TensorBoard
from torchmae.train.trackers.tracker import Opening, Tracker
from torchmae.train.trackers.wandb import WandB

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
