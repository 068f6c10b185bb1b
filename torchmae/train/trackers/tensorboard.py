"""TensorBoard: events in the run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmae.errors import library
from torchmae.train.trackers.tracker import Opening


class TensorBoard:
    """Events in the run folder; those after a resumed step are hidden by the new ones."""

    id = None

    def __init__(self, opening: Opening):
        library("tensorboard", "tensorboard")  # torch's own error does not say how to install it
        from torch.utils.tensorboard import SummaryWriter

        # What has this step or a later one is hidden, and that of `start` is not written again.
        self.writer: Any = SummaryWriter(str(opening.run), purge_step=opening.start + 1)

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
