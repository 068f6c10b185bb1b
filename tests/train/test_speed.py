"""How long a training takes: in words, and measured without a trace."""

import pytest
import torch
from helpers.tasks import RandomBatches, Regression, SelfDistillation

from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.loop import fit
from torchmae.train.speed import (
    duration,
    enough,
    expected_duration,
    measure_seconds_per_step,
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
