"""`mae bench resume` and `mae bench startup`: the time from a command to its first step."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from torchmae.benchmarks.config import Bench, models
from torchmae.benchmarks.step import LR, build, case_of
from torchmae.benchmarks.timing import (
    Candidate,
    benchmark_interleaved,
    interleave,
    speed_beside,
    spread,
)
from torchmae.errors import RunError
from torchmae.models.weights import seeded
from torchmae.runfolder import LOG, STATE
from torchmae.tasks.pack import run as pack
from torchmae.tasks.pack.config import Pack
from torchmae.train import checkpoint
from torchmae.train.checkpoint import Checkpoint, newest

logger = logging.getLogger(__name__)

BLOCK = 1 << 24  # bytes of a plain copy at a time
# Of the packed set that is made where no DATA is named.
IMAGES = 256
SIDE = 96  # px
LIMIT = 600  # seconds for a first step


def resume(config: Bench, device: torch.device) -> dict[str, Any]:
    """A checkpoint of each model saved and loaded, beside a plain file of as many bytes."""
    place = Path(config.out or ".").resolve().parent
    result = {}
    for name in models(config.model):
        try:
            with tempfile.TemporaryDirectory(prefix="mae-bench-", dir=place) as folder:
                result[name] = resumed(config, name, device, Path(folder))
        except OSError as error:
            raise RunError(
                f"could not write beside {config.out}: {error.strerror or error}"
            ) from error
        logger.info("\n".join(resume_table(name, result[name])))
    return {"models": result}


def resumed(config: Bench, name: str, device: torch.device, folder: Path) -> dict[str, Any]:
    with seeded(0):
        case = case_of(config, device)
        trainer = case.trainer(build(config, name))
        trainer(case.batch(), LR)  # moments that are numbers

    def save() -> None:
        checkpoint.save(folder, Checkpoint(1, *trainer.state()))

    def load() -> None:
        saved = newest(folder)
        assert saved is not None
        trainer.load(saved.model, saved.optimizer, saved.metadata)

    save()
    size = sum(file.stat().st_size for file in (folder / STATE).rglob("*") if file.is_file())
    plain = folder / "plain"
    block = os.urandom(BLOCK)

    def write() -> None:
        with plain.open("wb") as file:
            for at in range(0, size, BLOCK):
                file.write(block[: size - at])
            file.flush()
            os.fsync(file.fileno())

    def read() -> None:
        with plain.open("rb") as file:
            while file.read(BLOCK):
                pass

    steps = {"save": save, "load": load, "plain write": write, "plain read": read}
    seconds = benchmark_interleaved(
        [Candidate(what, step, 0.0) for what, step in steps.items()], config.rounds, device
    )
    rows = [
        {
            "name": what,
            "s": median(own),
            "s_per_gb": median(own) / (size / 1e9),
            "speed": speed_beside(own, seconds[plainly]) if what != plainly else None,
            "seconds": own,
        }
        for (what, own), plainly in zip(seconds.items(), ("plain write", "plain read") * 2)
    ]
    return {"gb": size / 1e9, "rows": rows}


def resume_table(name: str, result: dict[str, Any]) -> Iterator[str]:
    yield f"\n{name}: weights and moments, {result['gb']:.3f} GB"
    yield f"{'':<14}{'seconds':>10}{'s per GB':>10}   speed beside a plain file (least to most)"
    for row in result["rows"]:
        speed = spread(row["speed"]) if row["speed"] else "1"
        yield f"{row['name']:<14}{row['s']:>10.3g}{row['s_per_gb']:>10.3g}   {speed}"
    yield "Saving waits for the disk (fsync) and hashes; loading reads from the page cache."


def startup(config: Bench, device: torch.device) -> dict[str, Any]:
    """Real commands in their own processes: --help, and a training until its first log record."""
    environment = {
        **os.environ,
        **({"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}),
    }
    with tempfile.TemporaryDirectory(prefix="mae-bench-") as name:
        folder = Path(name)
        data = config.data or make_packed_set(folder)

        def whole(*words: str) -> float:
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *words], env=environment, capture_output=True, check=True
            )
            return time.perf_counter() - began

        measures = {
            "python -c pass": partial(whole, "-c", "pass"),
            "import torch": partial(whole, "-c", "import torch"),
            "mae --help": partial(whole, "-m", "torchmae", "--help"),
            "first step": partial(first_step, data, device, folder, environment),
        }
        seconds = interleave(measures, config.rounds)
    parts = zip(seconds["import torch"], seconds["python -c pass"], seconds["first step"])
    shares = [(torch_ - empty) / first for torch_, empty, first in parts]
    rows = [{"name": what, "s": median(own), "seconds": own} for what, own in seconds.items()]
    result = {"rows": rows, "import_torch_share": {"median": median(shares), "shares": shares}}
    what = "DATA" if config.data else f"a packed set of {IMAGES} images"
    logger.info("\n".join(startup_table(result, what)))
    return {"startup": result}


def make_packed_set(folder: Path) -> str:
    """A packed set of different images: noise and waves. Returns its folder."""
    random, (rows, columns) = np.random.default_rng(0), np.mgrid[0:SIDE, 0:SIDE]
    (folder / "files").mkdir()
    for i in range(IMAGES):
        wave = np.sin(rows / random.uniform(2, 20) + columns / random.uniform(2, 20))[..., None]
        pixels = 128 + 60 * wave * random.uniform(0, 1, 3) + random.normal(0, 8, (SIDE, SIDE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / "files" / f"{i:04d}.jpg", quality=92
        )
    with redirect_stdout(StringIO()):
        pack.run(Pack(data=str(folder / "files"), out=str(folder / "packed")))
    return str(folder / "packed")


def first_step(data: str, device: torch.device, folder: Path, environment: dict[str, str]) -> float:
    """Seconds from the start of `mae pretrain` until its first record in log.jsonl.

    Without a cached scan of the data, and with nothing left in the user's cache.

    Raises:
        RunError: it ended before, or took longer than `LIMIT`.
    """
    run = folder / "run"
    cache = folder / "cache"
    for place in (run, cache):
        shutil.rmtree(place, ignore_errors=True)
    environment = {**environment, "XDG_CACHE_HOME": str(cache)}
    flags: dict[str, object] = dict(
        model="vit_micro", image_size=64, epochs=100, workers=1, log_every=1
    )
    words = [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
    command = [
        sys.executable,
        "-m",
        "torchmae",
        "pretrain",
        data,
        "--out",
        str(run),
        "--device",
        str(device),
        *words,
    ]
    log = run / LOG
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        try:
            while not (log.exists() and log.stat().st_size):
                if process.poll() is not None or time.perf_counter() - began > LIMIT:
                    said.seek(0)
                    lines = said.read().decode(errors="replace").strip().splitlines()
                    last = lines[-1] if lines else "no message"
                    raise RunError(f"mae pretrain did not reach its first step: {last}")
                time.sleep(0.005)
            seconds = time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    assert json.loads(log.read_text().splitlines()[0])["step"] == 1
    return seconds


def startup_table(result: dict[str, Any], what: str) -> Iterator[str]:
    yield f"\n{'':<20}{'seconds':>10}   (least to most)"
    for row in result["rows"]:
        least = min(row["seconds"])
        most = max(row["seconds"])
        yield f"{row['name']:<20}{row['s']:>10.3g}   ({least:.3g} to {most:.3g})"
    share = result["import_torch_share"]["median"]
    first = f"First step: mae pretrain of vit_micro at 64 px on {what}"
    yield f"{first}; {share:.0%} of it is import torch."
