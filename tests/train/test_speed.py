"""How long a training takes: in words, and measured without a trace."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.tasks import RandomBatches, Regression, SelfDistillation

from torchmae.errors import UserError
from torchmae.train import speed
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.loop import fit
from torchmae.train.speed import (
    Trial,
    counted,
    duration,
    energy_joules,
    enough,
    expected_duration,
    is_timed,
    measure_seconds_per_step,
    measured_facts,
)

WORLD = World(0, 1, torch.device("cpu"))


def plan(steps=4, **more):
    return TrainConfig(steps, 1, 1e-2, 0.05, (0.9, 0.95), None, "fp32", **more)


def test_what_is_enough():
    assert not enough(2, 60) and not enough(1000, 1.9)
    assert enough(3, 2) and enough(1000, 2)


def test_durations_in_words():
    said = {0.4: "0 s", 89: "89 s", 90: "2 min", 2040: "34 min", 5400: "1.5 h", 180_000: "2.1 days"}
    assert {seconds: duration(seconds) for seconds in said} == said


def test_the_expected_duration_in_words():
    assert expected_duration(1.7, 0, 1200, 78) == "about 34 min for 1,200 steps (45.9 images/s)"
    said = "about 17 min for the remaining 600 steps (45.9 images/s)"
    assert expected_duration(1.7, 600, 1200, 78) == said


def bits(task):
    return {name: value.numpy().tobytes() for name, value in task.model.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"ema": 0.9, "micro_batch_size": 4}])
@pytest.mark.parametrize("make", [Regression, SelfDistillation])
def test_measuring_leaves_no_trace(make, options, tmp_path):
    """Weights, BatchNorm's statistics, random numbers, batches: all as if nothing had happened."""
    finals = []
    for measured in (False, True):
        run = tmp_path / f"{measured}"
        run.mkdir()
        task, batches = make(), RandomBatches()
        before, state = bits(task), torch.get_rng_state()
        if measured:
            seconds = measure_seconds_per_step(task, batches, plan(**options), WORLD, steps=3)
            assert 0 < seconds < 10
            assert bits(task) == before and torch.equal(torch.get_rng_state(), state)
            assert all(p.grad is None for p in task.parameters())
        batches.made.clear()
        fit(task, batches, plan(**options), run, WORLD)
        assert batches.made == ([] if "workers" in options else list(range(4)))
        finals.append((run / "model.safetensors").read_bytes())
    assert finals[0] == finals[1]


def test_a_measurement_ends_when_it_knows_enough(monkeypatch):
    """By a clock on which a step takes a second, after two steps that do not count."""
    batches = RandomBatches()

    def now():
        return 100.0 * min(2, len(batches.made)) + len(batches.made)

    monkeypatch.setattr("torchmae.train.speed.time.monotonic", now)
    assert measure_seconds_per_step(Regression(), batches, plan(), WORLD) == 1.0
    assert batches.made == list(range(2 + 3))


def test_compiling_is_chosen_where_it_pays_in_the_first_half_of_the_training():
    trial = Trial(plain=0.074, compiled=0.061, compiling=40)  # 13 ms a step: 3,077 steps
    said = "measured: 61 ms a step against 74 ms, 40 s to compile, pays after 3,077 of {} steps"
    assert trial.choice(12_500) == (True, said.format("12,500"))
    assert trial.choice(6_154) == (True, said.format("6,154"))
    assert trial.choice(6_153) == (False, said.format("6,153"))
    # Less than 5 % is noise, however long the training is.
    said = "measured: 1.91 s a step against 2 s without"
    assert Trial(2.0, 1.91, 1.0).choice(10**9) == (False, said)
    assert not Trial(1.0, 1.2, 1.0).choice(10**9).value
    assert Trial(2.0, 1.89, 1.0).choice(10**9).value


@pytest.mark.parametrize(
    "steps, minutes, compile, timed",
    [
        (1000, None, None, True),
        (999, None, None, False),
        (10**9, None, False, False),
        (10**9, None, True, False),
        (3, 1, True, True),
        (3, 1, None, True),
    ],
)
def test_short_trainings_and_explicit_ones_are_not_timed(steps, minutes, compile, timed):
    assert is_timed(steps, minutes, compile) is timed


def facts(monkeypatch, task=None, least_seconds=0.0, minutes=None, **more):
    """Of a training of 1,000 steps, by real steps."""
    monkeypatch.setattr(speed, "LEAST_SECONDS", least_seconds)
    monkeypatch.setattr(speed, "WINDOW", (3, 0.0))
    return measured_facts(
        task or Regression(), RandomBatches(), plan(1000, **more), WORLD, minutes, None
    )


def test_a_trial_is_made_of_long_trainings_only_and_leaves_no_trace(monkeypatch, tmp_path):
    finals = []
    for tried in (False, True):
        run = tmp_path / f"{tried}"
        run.mkdir()
        task = Regression()
        before, state = bits(task), torch.get_rng_state()
        if tried:
            short = facts(monkeypatch, task, least_seconds=1800.0)["compile"]
            assert not short.value and short.reason.startswith("the training is short: ")
            # A step of microseconds: what compiling takes is not saved in 1,000 of them.
            found = facts(monkeypatch, task)
            assert found["compile"].reason.startswith("measured: ")
            assert 0 < found["seconds_per_step"] < 10
            assert bits(task) == before and torch.equal(torch.get_rng_state(), state)
        fit(task, RandomBatches(), plan(), run, WORLD)
        finals.append((run / "model.safetensors").read_bytes())
    assert finals[0] == finals[1]


def test_minutes_decide_how_long_a_training_is(monkeypatch):
    found = facts(monkeypatch, least_seconds=1800.0, minutes=29.9)["compile"]
    assert found == (False, "the training is short: 30 min without")
    assert "compile" not in measured_facts(Regression(), RandomBatches(), plan(), WORLD, 60, False)


def test_what_cannot_be_compiled_is_trained_without(monkeypatch, tmp_path):
    """With a compiler that makes nothing, and nothing that an earlier call has compiled."""
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "false"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = facts(monkeypatch)["compile"]
    assert not found.value and found.reason.startswith("torch.compile failed here (")


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = facts(monkeypatch)["compile"]
    assert found == (False, "no C++ compiler here (no-such-compiler)")
    with pytest.raises(UserError, match="there is no no-such-compiler: install one, or"):
        fit(Regression(), RandomBatches(), plan(compile=True), tmp_path, WORLD)


ANSWERS = r"""
#include <string.h>
static int ready, handle;
int nvmlInit_v2(void) { ready = 1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (!ready || strcmp(uuid, "GPU-12ab")) return 6;  /* NVML_ERROR_NOT_FOUND */
  *device = &handle;
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
  if (device != &handle) return 2;
  *millijoules = 5000000123456ULL;  /* more than 32 bits */
  return 0;
}
"""


def test_a_cpu_does_not_tell() -> None:
    assert energy_joules(torch.device("cpu")) is None


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler here")
def test_how_nvml_is_called(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(ANSWERS)
    library = str(tmp_path / "nvml.so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    assert counted(library, "12ab") == counted(library, "GPU-12ab") == 5000000123.456
    assert counted(library, "another") is None
