"""The run folder of a training: locked while it is open; which runs become longer, from where."""

import json
import logging
from dataclasses import dataclass, field

import pytest
import torch

from torchmae import runfolder
from torchmae.errors import UserError
from torchmae.settings.groups import RuntimeOptions, SourceOptions
from torchmae.settings.options import changed, flatten, option
from torchmae.train import checkpoint
from torchmae.train.checkpoint import Checkpoint
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.resuming import resume, run_folder

WORLD = World(0, 1, torch.device("cpu"))
DATA = {"count": 24, "fingerprint": "f", "stamp": "noon"}


@dataclass(frozen=True)
class Optim:
    epochs: float | None = option(None, "Epochs.")
    seed: int = option(0, "Seed.")


@dataclass(frozen=True)
class Verb:
    """The settings of a verb that knows neither models nor images."""

    source: SourceOptions = field(default_factory=lambda: SourceOptions("photos"))
    optim: Optim = field(default_factory=Optim)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


def run_of(tmp_path, *steps, epochs=10.0):
    runfolder.write_config(
        tmp_path, "verb", flatten(changed(Verb(), epochs=epochs)), DATA, {"encoder": {}}
    )
    for step in steps:
        saved = Checkpoint(step, {"a": torch.full((3,), float(step))}, {}, {})
        checkpoint.save(tmp_path, saved, kept=steps[0])
    return tmp_path


def plan(**more):
    return TrainConfig(10, 2, 1e-2, 0.0, (0.9, 0.95), None, "fp32", **more)


def settings(run, plan, epochs=20.0, data=DATA, **more):
    config = changed(Verb(), epochs=epochs, **more)
    return resume(config, "verb", data, plan, run, WORLD)[0]


def stored_epochs(run):
    return json.loads((run / "config.json").read_text())["config"]["epochs"]


def test_an_open_folder_is_locked_and_says_whether_it_holds_checkpoints(tmp_path):
    with run_folder(tmp_path / "run", "photos", WORLD) as resuming:
        assert not resuming and (tmp_path / "run" / ".lock").exists()
    run = run_of(tmp_path / "run", 3, 6)
    newest = runfolder.checkpoint_folder(run, 6) / "state.json"
    newest.write_text(newest.read_text() + " ")
    with run_folder(run, "photos", WORLD) as resuming:
        assert resuming and runfolder.last_step(run) == 3, "a damaged checkpoint is put aside"


def test_as_it_was_it_is_resumed_with_what_may_differ(tmp_path):
    run = run_of(tmp_path, 4)
    found = settings(run, plan(), epochs=None, cache="memory", workers=3)
    assert (found["epochs"], found["workers"], found["cache"]) == (10.0, 3, "memory")
    with pytest.raises(UserError, match="seed was 0, is 1"):
        settings(run, plan(), epochs=None, seed=1)


@pytest.mark.parametrize(
    "schedule, done, start", [("cosine", 2, 2), ("wsd", 5, 5), ("wsd", 8, 8), ("wsd", 10, 8)]
)
def test_a_run_whose_steps_are_those_of_a_longer_one_is_lengthened(tmp_path, schedule, done, start):
    run = run_of(tmp_path, *sorted({min(8, done), done}))
    assert settings(run, plan(schedule=schedule))["epochs"] == stored_epochs(run) == 20.0
    assert runfolder.last_step(run) == start


@pytest.mark.parametrize(
    "of, done, words",
    [
        (plan(), 5, "epochs was 10.0, is 20.0"),
        (plan(), 10, "is finished"),
        (None, 1, "epochs was 10.0, is 20.0"),
    ],
    ids=["half a cosine", "a whole cosine", "never"],
)
def test_another_run_is_not(tmp_path, of, done, words):
    run = run_of(tmp_path, done)
    with pytest.raises(UserError, match=words):
        settings(run, of)
    assert stored_epochs(run) == 10.0


def test_other_images_never_cost_a_checkpoint(tmp_path):
    run = run_of(tmp_path, 8, 10)
    with pytest.raises(UserError, match="not the same ones"):
        settings(run, plan(schedule="wsd"), data=DATA | {"fingerprint": "g"})
    assert runfolder.last_step(run) == 10 and stored_epochs(run) == 10.0


@pytest.mark.parametrize("done, words", [(4, ["other times", "began with"]), (10, ["other times"])])
def test_other_times_are_said_and_other_versions_while_there_is_something_to_compute(
    tmp_path, caplog, done, words
):
    run = run_of(tmp_path, done)
    config = run / "config.json"
    (run / "manifest.json").unlink()
    config.write_text(config.read_text().replace('"torch": "', '"torch": "0.'))
    with caplog.at_level(logging.WARNING, "torchmae"):
        settings(run, plan(), epochs=None, data=DATA | {"stamp": "midnight"})
    assert len(caplog.messages) == len(words)
    assert all(word in message for word, message in zip(words, caplog.messages))
