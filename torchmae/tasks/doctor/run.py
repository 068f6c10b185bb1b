"""`mae doctor`: a line for each thing that could be wrong."""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from torchmae.errors import RunError, UserError, printable
from torchmae.runfolder import is_run
from torchmae.settings.groups import SplitListingOptions
from torchmae.tasks.doctor.config import Doctor
from torchmae.tasks.doctor.line import WRONG, Line
from torchmae.tasks.doctor.machine import machine
from torchmae.tasks.doctor.patient import patient
from torchmae.tasks.doctor.training import training
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


def run(config: Doctor) -> list[dict[str, str]]:
    """Looks, and says each line as soon as it is known.

    Returns:
        "name", "state" ("ok", "note" or "WRONG") and "about" of each line.

    Raises:
        UserError: RUN is no run folder.
        RunError: something is wrong; after all was looked at.
    """
    device = find_device(config.runtime.device)
    if config.run is None:
        if config.data is not None or config.listing != SplitListingOptions():
            raise UserError(
                "--data and which images of it are taken are for mae doctor RUN: name the run, or "
                "leave them out"
            )
        lines: Iterator[Line] = chain(machine(device, Path()), training(device))
    else:
        folder = Path(config.run)
        if not is_run(folder):
            raise UserError(
                f"{folder} is not a run folder: name one that mae pretrain, finetune or import "
                "made, or none to look at this machine"
            )
        lines = patient(folder, config.data, config.listing, device)
    said = []
    for line in lines:
        logger.info(f"{line.name:>10}  {line.state:<5}  {printable(line.about)}")
        said.append(line._asdict())
    wrong = [one["name"] for one in said if one["state"] == WRONG]
    if wrong:
        times = Counter(wrong)  # several lines may be about one thing
        names = ", ".join(f"{name} ({n} lines)" if n > 1 else name for name, n in times.items())
        raise RunError(f"{len(wrong)} of {len(said)} lines are WRONG: {names}")
    return said
