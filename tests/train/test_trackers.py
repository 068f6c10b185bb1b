"""Trackers with their real packages: what was logged is read back, a resumed run goes on, nothing
is sent."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from helpers.tasks import RandomBatches, Regression
from PIL import Image

from torchmae import errors
from torchmae.settings.groups import TRACKERS as WORDS
from torchmae.settings.groups import OutputOptions
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.log import Log
from torchmae.train.loop import fit
from torchmae.train.trackers import TRACKERS, open_trackers

WORLD = World(0, 1, torch.device("cpu"))


class Draws:
    """An evaluator with a score and a picture."""

    def __init__(self, run: Path):
        self.folder = run / "pictures"
        self.folder.mkdir(exist_ok=True)

    def __call__(self, step: int):
        Image.new("RGB", (8, 6), (step, 0, 0)).save(self.folder / f"step-{step:08d}.png")
        yield "k-NN accuracy (%)", float(step)


def train(run: Path, steps: int, *trackers: str) -> None:
    plan = TrainConfig(
        steps,
        1,
        1e-2,
        0.05,
        (0.9, 0.95),
        None,
        "fp32",
        log_every=1,
        trackers=trackers,
        evaluate_steps=2.0,
    )
    fit(Regression(), RandomBatches(), plan, run, WORLD, [Draws(run)])


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps that was resumed up to step 6, with all trackers that are installed."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    run = tmp_path_factory.mktemp("tracked") / "own"
    run.mkdir()
    settings = {"data": "photos", "epochs": 3, "text": "x" * 9000}
    (run / "config.json").write_text(json.dumps({"config": settings}))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_API_KEY", "0" * 40)  # one who has logged in is not asked either
        for steps in (4, 6):
            train(run, steps, "tensorboard", "wandb", "mlflow")
    return run


def test_the_table_and_its_words_have_the_same_names() -> None:
    assert list(TRACKERS) == list(WORDS)


def test_tensorboard(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("pictures")] == [2, 4, 6]


def test_mlflow(tracked: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tracked.parent / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("torchmae").experiment_id])
    assert run.info.run_id == json.loads((tracked / "trackers.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("own", "FINISHED")
    assert run.data.params["epochs"] == "3" and len(run.data.params["text"]) == 500
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4, 5, 6]
    scores = client.get_metric_history(run.info.run_id, "k-NN accuracy ___")
    assert {metric.step: metric.value for metric in scores} == {2: 2.0, 4: 4.0, 6: 6.0}
    pictures = client.list_artifacts(run.info.run_id, "pictures")
    assert [Path(p.path).name for p in pictures] == [f"step-0000000{k}.png" for k in (2, 4, 6)]


def records_of(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, which is a log of LevelDB: after 7 bytes of its own, blocks of
    32 kB with parts of records, each behind checksum, length and kind (1 whole, 2 to 4 parts)."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def test_wandb_is_offline_and_one_run(tracked: Path) -> None:
    """The files that `wandb sync` reads: two parts of one id, with every step once."""
    from wandb.proto.wandb_internal_pb2 import Record

    id = json.loads((tracked / "trackers.json").read_text())["wandb"]
    parts = sorted((tracked / "wandb").glob(f"offline-run-*-{id}/run-{id}.wandb"))
    assert len(parts) == 2
    assert not list((tracked / "wandb").glob("run-*")), "none of a run that is sent"
    steps, pictures, settings = [], [], {}
    for part in parts:
        for data in records_of(part):
            record = Record()
            record.ParseFromString(data)
            for item in record.run.config.update:
                settings[item.key] = item.value_json
            items = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            if "loss" in items:
                steps.append(int(items["step"]))
            if any(name.startswith("pictures") for name in items):
                pictures.append(int(items["step"]))
    assert steps == [1, 2, 3, 4, 5, 6] and pictures == [2, 4, 6]
    assert settings["epochs"] == "3"


NOSY = """
import atexit, socket, sys
from pathlib import Path

asked, true = [], socket.getaddrinfo
def spy(host, *rest, **more):
    if host not in (None, "localhost", "127.0.0.1", "::1", b"localhost"):
        asked.append(str(host))
        raise socket.gaierror(-3, "no network")
    return true(host, *rest, **more)
socket.getaddrinfo = spy
# Registered first, so it runs last: what they still send as Python ends counts too.
atexit.register(lambda: print("asked:", sorted(set(asked)), flush=True))

from torchmae.train.trackers import open_trackers

trackers = open_trackers(("wandb", "mlflow"), Path(sys.argv[1]), 0)
for tracker in trackers.values():
    tracker.scalars(1, {"loss": 1.0})
    tracker.close(True)
"""


def test_no_name_of_another_machine_is_looked_up(tmp_path: Path) -> None:
    """In a process of its own, where the packages cannot see that they are tested."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    run = tmp_path / "own"
    run.mkdir()
    hide = ("CI", "PYTEST_", "MLFLOW_", "WANDB_", "DO_NOT_TRACK", "GITHUB_ACTIONS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hide)}
    done = subprocess.run(
        [sys.executable, "-c", NOSY, str(run)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "asked: []" in done.stdout, done.stdout


def test_one_that_fails_is_said_once_and_ends_no_training(tmp_path: Path, capfd) -> None:
    pytest.importorskip("tensorboard")
    plan = TrainConfig(
        6, 2, 1e-2, 0.05, (0.9, 0.95), None, "fp32", log_every=1, trackers=("tensorboard",)
    )
    with Log(tmp_path, plan, 0, 4, WORLD) as log:

        def fails(*_):
            raise OSError(28, "No space left on device")

        log.trackers["tensorboard"].writer.add_scalar = fails
        for step in range(1, 4):
            log.write({"step": step, "accuracy": 0.5})
    assert capfd.readouterr().out.count("what tensorboard keeps cannot be written (No space") == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_one_that_cannot_be_opened_is_a_mistake(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(errors.UserError, match="--tracker mlflow cannot be opened"):
        open_trackers(("mlflow",), tmp_path, 0)


def test_an_unknown_one_and_one_that_is_not_installed(monkeypatch) -> None:
    with pytest.raises(errors.UserError, match="Did you mean wandb"):
        OutputOptions(tracker=("wandbb",)).check()
    for missing in (None, ModuleSpec("mlflow", None)):  # a folder of that name has no origin
        monkeypatch.setattr("torchmae.settings.groups.find_spec", lambda name, found=missing: found)
        with pytest.raises(errors.UserError, match=r'pip install "torchmae\[mlflow\]"'):
            OutputOptions(tracker=("mlflow",)).check()
