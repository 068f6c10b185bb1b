"""Weights & Biases: offline unless WANDB_MODE says otherwise."""

import os
from collections.abc import Mapping
from pathlib import Path

from torchmae.errors import library
from torchmae.train.trackers.tracker import PROJECT, Opening


class WandB:
    """A run of Weights & Biases; offline in the run folder's wandb/, for `wandb sync`."""

    def __init__(self, opening: Opening):
        # Before the import: offline too, its process reports errors and metrics of its own.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
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
