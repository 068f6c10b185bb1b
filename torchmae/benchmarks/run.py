"""`mae bench`: speed on this machine, a table on the screen and all rounds in a JSON file."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchmae.benchmarks.config import Bench, check, command, public, resolve
from torchmae.benchmarks.data import data
from torchmae.benchmarks.dense import dense
from torchmae.benchmarks.start import resume, startup
from torchmae.benchmarks.step import step, wall_clock
from torchmae.benchmarks.timing import machine, threads, versions
from torchmae.data.sources import open_source
from torchmae.disk import write_text
from torchmae.errors import RunError
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

# WHAT -> the function that measures it: settings and device to its part of the JSON file.
WHAT = {
    "step": step,
    "dense": dense,
    "wall-clock": wall_clock,
    "data": data,
    "resume": resume,
    "startup": startup,
}
PACKAGES = ("torch", "torchmae", "torchvision", "numpy", "pillow", "simplejpeg", "timm")
PEERS = ("transformers", "lightly", "vit-pytorch")


def run(config: Bench) -> Path:
    """Measures, logs tables, writes all numbers to `config.out` and returns that path.

    Raises:
        UserError: a setting is wrong.
        RunError: the file could not be written.
    """
    check(config)
    device = find_device(config.device)
    config = resolve(config, device)
    out = Path(config.out or "")
    if config.data is not None:  # a mistake is reported before anything is measured
        open_source(config.data)
    with threads(config.threads):
        here = machine(device)
        result: dict[str, Any] = {
            "command": command(public(config)),
            "machine": here,
            "versions": versions((*PACKAGES, *PEERS)),
            "settings": {
                name: value for name, value in asdict(public(config)).items() if name != "out"
            },
        }
        line = f"{here['device']}, {here['threads']} threads, load {here['load']}"
        if config.what in ("step", "dense", "wall-clock"):
            line += f"; {config.precision}, batch {config.batch_size}"
        line += ", compiled" if config.compile else ""
        line += f"; medians of {config.rounds} rounds" if config.measure else ""
        logger.info(line)
        result |= WHAT[config.what](config, device)
    try:
        write_text(out, json.dumps(result, indent=1))
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    logger.info(f"{out}: all rounds")
    return out
