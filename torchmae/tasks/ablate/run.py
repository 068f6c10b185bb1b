"""`mae ablate`: many pre-trainings, each measured, to ablation.json, tables and pictures."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from torchmae import runfolder
from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import labelled_sets, open_pair
from torchmae.data.scan import scan_and_report
from torchmae.data.sources import open_source
from torchmae.data.sources.source import Source
from torchmae.errors import RunError, UserError
from torchmae.eval.baselines import FEATURES
from torchmae.models.heads import blocks_of
from torchmae.plugins import prepare
from torchmae.settings.defaults import Facts
from torchmae.settings.options import build, check_ranges, flatten
from torchmae.tasks.ablate.config import Ablate, parse_budget, parse_part
from torchmae.tasks.ablate.measure import (
    TRAININGS,
    check_measures,
    drop_weights,
    read_record,
    train_and_measure,
)
from torchmae.tasks.ablate.points import FEW_LABEL, TOKENIZER, Ablation, Training, part_of
from torchmae.tasks.ablate.results import write_results
from torchmae.tasks.ablate.studies import OWN_TOKENS
from torchmae.tasks.pretrain.config import Pretrain
from torchmae.tasks.pretrain.run import run as pretrain
from torchmae.tasks.tokenizer.run import run as tokenizer
from torchmae.train.checkpoint import lock
from torchmae.train.distributed import available_cores, find_device, machine_facts, start
from torchmae.train.speed import duration

logger = logging.getLogger(__name__)

LOCKS = "locks"
TRIAL_STEPS = 40


def run(config: Ablate) -> Path:
    """Trains and measures what is not finished yet, and writes the results of what is.

    Every training is a run folder: the same command resumes at any step. Its record is written when
    it is measured; then its weights are removed, unless `keep`.

    Returns:
        The folder of the ablation.

    Raises:
        RunError: a training failed; the others are finished.
    """
    out = Path(config.output.out or f"runs/{runfolder.name_of(config.source.data)}-ablation")
    ablation = planned(config, out)
    (out / TRAININGS).mkdir(exist_ok=True)
    part, parts = parse_part(config.ablation.part)
    units = ablation.units()[part - 1 :: parts]
    to_do = [[t for t in unit if read_record(out, t, config) is None] for unit in units]
    left = [unit for unit, ones in zip(units, to_do) if ones]
    if not config.ablation.keep:
        for unit in units:
            if unit not in left:
                drop_weights(out, unit)
    logger.info(plan_text(ablation, units, to_do))
    if left:
        if pre_trainings(to_do):
            logger.info(trial_text(ablation, to_do, out))
        if needs_tokenizer(left):
            train_tokenizer(ablation, out)
        work_side_by_side(left, config, out)
    failed = write_results(ablation, out)
    if failed:
        plural = "s" * (len(failed) > 1)
        raise RunError(f"{len(failed)} training{plural} failed; the first: {failed[0]}")
    return out


def planned(config: Ablate, out: Path) -> Ablation:
    """The ablation, with all that can be wrong with it found.

    Raises:
        UserError: what is asked for does not exist, or does not fit the images or each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("mae ablate starts its own processes (--jobs, --part): leave torchrun out")
    check_ranges(config)
    parse_budget(config.ablation.budget)
    parse_part(config.ablation.part)
    check_measures(config.measures.measure)
    if not config.ablation.study and not config.ablation.vary:
        raise UserError("nothing to vary: --study fig5 (or another, or all), or --vary SETTING ...")
    seeds = config.ablation.seeds
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: all different")
    measures, listing = config.measures, config.listing
    labelled_as = listing_as_run(listing, config.labelled_data, config.model.from_run or "none")
    labelled_sets(  # labels, and enough of each class
        config.labelled_data,
        measures.val,
        measures.val_fraction,
        measures.labels_per_class if FEW_LABEL in measures.measure else None,
        seeds[0],
        listing=labelled_as,
    )
    runfolder.refuse_inside(out, config.source.data)
    if out.is_dir() and any(out.iterdir()) and not (out / LOCKS).is_dir():
        raise UserError(f"--out {out} holds other things than an ablation: name a new folder")
    (out / LOCKS).mkdir(parents=True, exist_ok=True)
    source = open_images(config)
    labelled = open_pair(config.labelled_data, measures.val, listing=labelled_as)
    data = {
        "images": runfolder.identity(source),
        "labelled images": [runfolder.identity(part) for part in labelled if part is not None],
    }
    ablation = Ablation(config, facts_of(config, source, out), out, data)
    for name in measures.measure:
        blocks_of(part_of(name), ablation.depth)
    return ablation


def open_images(config: Ablate) -> Source:
    """The images to pre-train on."""
    parent = config.model.from_run or "none"
    decode = decode_as_run(parent, config.decode)
    decode = replace(decode, channels=config.decode.channels, dtype=config.decode.dtype)
    listing = listing_as_run(config.listing, config.source.data, parent)
    return open_source(config.source.data, decode, listing)


def facts_of(config: Ablate, source: Source, out: Path) -> Facts:
    """What is known of the images and the device."""
    parent = config.model.from_run or "none"
    found = scan_and_report(source, out, config.scan.max_bad_percent, config.model.scale)
    shape = {} if parent == "none" else runfolder.read_config(parent)["model"]["encoder"]
    with start(config.runtime.device) as world:
        return Facts(
            images=found.images,
            height=found.height,
            width=found.width,
            channels=source.channels,
            dtype=source.dtype,
            embed_dim=shape.get("embed_dim"),
            **machine_facts(world),
        )


def plan_text(
    ablation: Ablation, units: Sequence[list[Training]], to_do: Sequence[list[Training]]
) -> str:
    """What there is to do, in words; of every unit it is what is not measured."""
    seeds = ablation.config.ablation.seeds
    lines = [
        f"{experiment.study.title}: {' | '.join(point.label for point in experiment.points)}"
        for experiment in ablation.experiments
    ]
    every, rest = (len(pre_trainings(some)) for some in (units, to_do))
    beside = dict.fromkeys(t.subject for unit in units for t in unit if t.subject != FEATURES)
    part = f" (part {ablation.config.ablation.part})" if ablation.config.ablation.part else ""
    return "\n".join(
        [
            *lines,
            f"{every} trainings{part} with {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
            f"{every - rest} finished, {rest} to do",
            *([f"measured beside them: {', '.join(beside)}"] if beside else []),
        ]
    )


def pre_trainings(units: Sequence[list[Training]]) -> list[Training]:
    """What is pre-trained; baselines are not."""
    return [training for unit in units for training in unit if training.subject == FEATURES]


class Trial(NamedTuple):
    """What a short training of the default has shown."""

    images_per_s: float
    megabytes: float  # of a run folder with its checkpoints


def measured_trial(ablation: Ablation, out: Path) -> Trial:
    """Trains the default for a few steps."""
    base = ablation.base
    steps = TRIAL_STEPS * base["batch_size"] / ablation.facts.images
    settings = {**flatten(ablation.base_config), "epochs": steps, "warmup_epochs": 0.0}
    logger.info(f"{TRIAL_STEPS} steps of the default, to know how long all will take:")
    with TemporaryDirectory(prefix="trial-", dir=out) as name:
        place = Path(name) / "run"
        settings |= {"out": str(place), "log_every": TRIAL_STEPS // 4, "minutes": None}
        pretrain(build(Pretrain, settings), quiet=True)
        logged = runfolder.read_log(place)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return Trial(max(r["images_per_s"] for r in logged if "loss" in r), size / 1e6)


def needs_tokenizer(units: Sequence[list[Training]]) -> bool:
    """Whether a training predicts the tokens of the ablation's own tokenizer."""
    return any(training.changes.get("target") == OWN_TOKENS for unit in units for training in unit)


def trial_text(ablation: Ablation, to_do: Sequence[list[Training]], out: Path) -> str:
    """How long the trainings take and how much disk they need, measured on the device."""
    trial = measured_trial(ablation, out)
    config = ablation.config.ablation
    # A unit continues its trainings: its longest is all that is trained.
    longest = [left[-1] for unit in to_do if (left := pre_trainings([unit]))]
    epochs = sum(training.resolved["epochs"] * training.relative_flops for training in longest)
    seconds = epochs * ablation.facts.images / trial.images_per_s
    budget = parse_budget(config.budget)
    if budget is not None and budget[0] == "minutes":
        seconds = len(longest) * budget[1] * 60
    kept = len(longest) if config.keep else min(config.jobs, len(longest))
    return (
        f"about {duration(seconds)} of pre-training: {trial.images_per_s:.0f} images/s were "
        "measured with the default, other points count by their FLOPs; and the measures, whose "
        f"time is known after the first; {kept * trial.megabytes:.0f} MB of disk"
    )


def train_tokenizer(ablation: Ablation, out: Path) -> None:
    """The tokenizer whose tokens a study predicts; other parts of the ablation wait for it."""
    with waiting_lock(out / LOCKS / TOKENIZER):
        tokenizer(ablation.tokenizer())


@contextmanager
def waiting_lock(folder: Path) -> Iterator[None]:
    """A lock for which one waits."""
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(folder))
                break
            except UserError:
                time.sleep(2)
        yield


def work_side_by_side(units: Sequence[list[Training]], config: Ablate, out: Path) -> None:
    """Works on units in so many processes; each takes what no other has."""
    jobs = min(config.ablation.jobs, len(units))
    if jobs == 1:
        return work(units, config, out)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=job, args=(units, config, out, jobs, number))
        for number in range(jobs)
    ]
    with without_interrupts():
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RunError(
            f"a job ended with exit code {max(codes, key=lambda code: abs(code or 0))}; its output "
            f"is in {out}/job-*.log. The same command resumes"
        )
    return None


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that start meanwhile ignore Ctrl-C, which a terminal sends to all, outside of their
    trainings, which save: the one that started them stops them."""
    if threading.current_thread() is not threading.main_thread():  # it alone may say so
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def job(units: Sequence[list[Training]], config: Ablate, out: Path, jobs: int, number: int) -> None:
    """One of several processes: its share of the cores, and its output in a file."""
    torch.set_num_threads(max(1, available_cores() // jobs))
    # Between trainings, which save first, it ends without a traceback and cleans up.
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    package = logging.getLogger("torchmae")
    package.setLevel(logging.INFO)
    package.addHandler(logging.FileHandler(out / f"job-{number}.log"))
    try:
        work(units, prepare(config), out)
    except (RunError, UserError) as error:  # a line in its file, no traceback on the terminal
        package.error(str(error))
        sys.exit(error.exit_code)
    except Exception:
        if not stopped:
            raise
        sys.exit(128 + stopped[0])  # compiled code made an error of its own of the exit
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending


def end_with(parent: int) -> None:
    """Stops this process, which saves what it trains, once the process that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def work(units: Sequence[list[Training]], config: Ablate, out: Path) -> None:
    """Trains and measures every unit that no other process has."""
    device = find_device(config.runtime.device)
    began, done = time.monotonic(), 0
    for number, unit in enumerate(units, 1):
        place = out / LOCKS / unit[0].folder
        place.mkdir(exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(place))
            except UserError:
                continue  # another process has it
            for training in unit:
                if read_record(out, training, config) is None:
                    logger.info(f"[{number}/{len(units)}] {training.name}")
                    train_and_measure(training, config, out, device)
            if not config.ablation.keep:
                drop_weights(out, unit)
        done += 1
        rest = (len(units) - number) * (time.monotonic() - began) / done
        if rest:
            logger.info(f"  {duration(rest)} left")
