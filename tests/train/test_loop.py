"""fit(): what is logged, a loss that breaks, signals, what follows the weights; by real runs."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers.runs_on_disk import ENV, flags, make_photos
from helpers.tasks import (
    GOOD,
    GRADIENT,
    INF,
    NAN,
    RandomBatches,
    Regression,
    SelfDistillation,
    make_batch,
)
from safetensors.torch import load_file

import torchmae
from torchmae import cli
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import RunError
from torchmae.models import masking
from torchmae.models.mae import training_flops
from torchmae.models.weights import load_mae
from torchmae.report.curves import draw_curves, panels
from torchmae.runfolder import last_step
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.loop import Agenda, Due, Meter, finished_line, fit
from torchmae.train.optim import lr_at, peak_lr
from torchmae.train.watch import Heard

OPTIONS = dict(
    **dict(
        model="vit_micro",
        image_size=32,
        patch_size=8,
        decoder_dim=32,
        decoder_depth=1,
        batch_size=8,
    ),
    **dict(epochs=14, base_lr=0.02, precision="fp32", device="cpu", workers=0, log_every=1),
)
STEPS = 42  # 14 epochs of 24 images, 8 a step


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("loop") / "photos")


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The uninterrupted run."""
    return torchmae.pretrain(
        str(photos), out=str(tmp_path_factory.mktemp("whole") / "run"), **OPTIONS
    ).path


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_log_has_a_line_a_step_with_all_fields(whole):
    lines = records(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert set(line) == {
            *(
                "step",
                "images_seen",
                "flops",
                "loss",
                "grad_norm",
                "images_per_s",
                "wait",
                "skipped",
                "lr",
                "peak_memory_mb",
            ),
            *("loss of patch mean", "loss of visible mean"),
        }
        assert all(math.isfinite(value) for value in line.values())
        assert line["images_seen"] == 8 * line["step"]
        assert line["flops"] == line["images_seen"] * training_flops(load_mae(whole))
        assert line["skipped"] == 0 and 0 <= line["wait"] <= 1 and line["images_per_s"] > 0
        assert 50 < line["peak_memory_mb"] < 50_000  # MB, whatever the system counts in
        assert line["lr"] == pytest.approx(lr_at(line["step"] - 1, STEPS, 2, peak_lr(0.02, 8)))


def test_it_learns(whole):
    losses = [line["loss"] for line in records(whole)]
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])


def test_the_run_folder_is_whole(whole):
    names = {p.name for p in whole.iterdir()}
    assert names == {
        *(
            "config.json",
            "model.safetensors",
            "state",
            "manifest.json",
            "log.jsonl",
            "pictures",
            "curves.png",
            "report.html",
            "bad-files.jsonl",
            "data.json",
            ".lock",
        ),
    }
    assert (whole / f"pictures/step-{STEPS:08d}.png").is_file()
    assert torchmae.load(whole)(torch.zeros(2, 3, 32, 32)).shape[:2] == (2, 1 + 16)


def test_a_logged_loss_is_the_mean_of_the_steps_since_the_last_line(whole, photos, tmp_path):
    run = torchmae.pretrain(str(photos), out=str(tmp_path / "run"), **(OPTIONS | {"log_every": 18}))
    lines, every = records(run), [line["loss"] for line in records(whole)]
    assert [line["step"] for line in lines] == [18, 36, 42]
    for line, (begin, end) in zip(lines, ((0, 18), (18, 36), (36, 42))):
        assert line["loss"] == pytest.approx(np.mean(every[begin:end]), rel=1e-6)
    assert lines[-1]["loss of patch mean"] == records(whole)[-1]["loss of patch mean"]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_trivial_predictors_are_right_by_brute_force(whole, photos):
    stored = json.loads((whole / "config.json").read_text())
    encoder = stored["model"]["encoder"]
    batches = Batches(
        open_source(photos), RandomResizedCropFlip((32, 32), 0, (0.2, 1.0), True), 8, 0
    )
    step = 30
    batch = batches[step]
    mask = masking.random(masking.noise(0, batch.epoch, batch.sample, 16), (4, 4), 0.75)
    images = batch.images.numpy().astype(np.float64) / 255
    of_patch, of_visible = [], []
    for i in range(8):
        normal = (images[i] - np.reshape(encoder["mean"], (3, 1, 1))) / np.reshape(
            encoder["std"], (3, 1, 1)
        )
        targets = []
        for patch in range(16):
            top, left = patch // 4 * 8, patch % 4 * 8
            values = normal[:, top : top + 8, left : left + 8].transpose(1, 2, 0).flatten()
            targets.append((values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6))
        visible = np.mean([targets[j] for j in mask.keep[i].tolist()], axis=0)
        for j in mask.hide[i].tolist():
            of_patch.append(np.mean((targets[j] - targets[j].mean()) ** 2))
            of_visible.append(np.mean((targets[j] - visible) ** 2))
    line = records(whole)[step]  # the line of step 31, which is the batch of index 30
    assert line["step"] == step + 1
    assert line["loss of patch mean"] == pytest.approx(np.mean(of_patch), rel=1e-4)
    assert line["loss of visible mean"] == pytest.approx(np.mean(of_visible), rel=1e-4)


def test_a_loss_that_breaks_stops_the_run_with_65_and_leaves_a_good_checkpoint(
    photos, tmp_path, capfd
):
    """For real: the learning rate is absurd, so that the loss overflows."""
    run = tmp_path / "run"
    absurd = OPTIONS | {"base_lr": 1e25, "save_minutes": 1e-6, "out": run}
    assert cli.main(["pretrain", str(photos), *flags(absurd)]) == 65
    out, err = capfd.readouterr()
    lines = records(run)
    bad = [line["step"] for line in lines if line["skipped"]]
    assert len(bad) == 5 and bad == list(range(bad[0], bad[0] + 5)) and lines[-1]["step"] == bad[-1]
    assert all(line["loss"] is None for line in lines if line["skipped"])
    assert all(f"step not applied: {step}\n" in out for step in bad)
    assert err.startswith(
        "mae: the loss was not finite for 5 steps in a row, up to step " + str(bad[-1])
    )
    assert "--base-lr" in err and "Traceback" not in err and len(err.splitlines()) == 1
    weights = load_file(run / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    before = {p: p.read_bytes() for p in run.rglob("*.safetensors")}
    with pytest.raises(RunError) as caught:  # the same command resumes it, and it breaks again
        torchmae.pretrain(str(photos), **(absurd | {"out": str(run)}))
    assert caught.value.exit_code == 65
    assert all(
        torch.isfinite(value).all() for value in load_file(run / "model.safetensors").values()
    )
    assert {p.name for p in before} == {p.name for p in run.rglob("*.safetensors")}


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_resumed_run_has_the_same_weights(
    whole, photos, tmp_path, number, code
):
    run = tmp_path / "run"
    options = OPTIONS | {"workers": 1, "save_minutes": 0.001, "out": run}
    command = [sys.executable, "-m", "torchmae", "pretrain", str(photos), *flags(options)]
    process = subprocess.Popen(
        command,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while not list((run / "state").glob("step-*")) and time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal: to the workers too
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == code, err
    stopped = json.loads((max((run / "state").glob("step-*")) / "state.json").read_text())["step"]
    assert 0 < stopped < STEPS
    assert f"stopped at step {stopped} of {STEPS} and saved; the same command resumes it" in err
    assert "Traceback" not in out + err
    torchmae.pretrain(str(photos), **(OPTIONS | {"out": str(run)}))
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    drop = ("images_per_s", "wait", "peak_memory_mb")
    ours, theirs = (
        [{k: v for k, v in r.items() if k not in drop} for r in records(r)] for r in (run, whole)
    )
    assert ours == theirs


def test_no_panel_of_the_curves_is_empty():
    """A classifier's last record holds no loss, and its panel was once empty."""
    trained, measured = (
        {"step": 1, "loss": 2.0, "loss of patch mean": 3.0, "lr": 1.0, "grad_norm": 1.0},
        {"step": 1, "accuracy": 0.5},
    )
    assert panels([trained]) == {
        "loss": ["loss", "loss of patch mean"],
        "learning rate": ["lr"],
        "gradient norm": ["grad_norm"],
        "images per second": ["images_per_s"],
    }
    both = panels([trained, measured])
    assert (
        both["loss"] == ["loss", "loss of patch mean"]
        and both["accuracy"] == ["accuracy"]
        and len(both) == 4
    )
    more = panels([{"step": 0, "accuracy": 0.1, "rank": 3.0}, trained])
    assert more["accuracy"] == ["accuracy"] and more["rank"] == ["rank"]
    assert more["gradient norm"] == ["grad_norm"] and len(more) == 6


def test_much_waiting_for_data_is_reported_once_after_three_records():
    meter = Meter(0, 4)

    def reading(wait: float) -> bool:
        meter.add(torch.tensor([1.0, 1.0]))
        meter.began, meter.waited = time.monotonic() - 1, wait
        assert meter.read()[0]["wait"] == pytest.approx(wait, abs=0.05)
        return meter.is_slow()

    assert [reading(wait) for wait in (0.5, 0.5, 0.02, 0.5, 0.5)] == [False] * 5
    assert [reading(wait) for wait in (0.5, 0.5, 0.02, 0.5, 0.5, 0.5)] == [True] + [False] * 5


def small_plan(steps=6, **more):
    return TrainConfig(steps, 2, 1e-2, 0.05, (0.9, 0.95), None, "fp32", **more)


WORLD = World(0, 1, torch.device("cpu"))


def state_bits(run):
    files = ("model.safetensors", "optimizer.safetensors")
    newest = max((run / "state").glob("step-*"))
    return [(newest / name).read_bytes() for name in files]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_an_ema_teacher_ends_with_the_same_bits_when_resumed(tmp_path, ema):
    """The process dies in its fourth step, with three saved; another one resumes."""
    plan = small_plan(save_minutes=1e-6, ema=ema)
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    fit(SelfDistillation(), RandomBatches(), plan, tmp_path / "whole", WORLD)
    with pytest.raises(KeyboardInterrupt):
        fit(SelfDistillation(), RandomBatches(broken_at=3), plan, tmp_path / "resumed", WORLD)
    assert last_step(tmp_path / "resumed") == 3
    batches, task = RandomBatches(), SelfDistillation(seed=9)
    fit(task, batches, plan, tmp_path / "resumed", WORLD)
    assert batches.made == [3, 4, 5]
    assert state_bits(tmp_path / "resumed") == state_bits(tmp_path / "whole")
    first = SelfDistillation().model.state_dict()["teacher.0.weight"]
    assert not torch.equal(task.model["teacher"][0].weight, first), "the teacher must follow"


LATE = (GOOD, GOOD, GOOD, GOOD, NAN, NAN)


class Kinds(RandomBatches):
    """Batches of these kinds, one a step."""

    def __init__(self, *kinds):
        super().__init__()
        self.kinds = kinds

    def __getitem__(self, step):
        return make_batch(kind=self.kinds[step], seed=step)


@pytest.mark.parametrize(
    "kinds",
    [(NAN, NAN, NAN), (GOOD, GOOD, NAN), (GOOD, INF), (GRADIENT,), (GRADIENT, GRADIENT), LATE],
)
def test_a_short_training_that_ends_badly_is_not_published(tmp_path, kinds):
    """Fewer steps than the five in a row that stop a longer one."""
    with pytest.raises(RunError, match="the loss was not finite for . steps in a row") as error:
        fit(Regression(), Kinds(*kinds), small_plan(len(kinds)), tmp_path, WORLD)
    assert error.value.exit_code == 65
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "kinds", [(GOOD, NAN, GOOD), (GOOD, GOOD, GRADIENT), (GOOD, GOOD, GOOD, GOOD, GOOD, NAN)]
)
def test_a_skipped_step_does_not_end_a_short_training(tmp_path, kinds):
    fit(Regression(), Kinds(*kinds), small_plan(len(kinds)), tmp_path, WORLD)
    assert (tmp_path / "model.safetensors").exists()


def test_weights_that_are_not_finite_end_a_training_with_65_and_are_not_saved(tmp_path):
    """BatchNorm's statistics follow a batch whose step is skipped."""

    class Broken(Regression):
        def after_step(self, step):
            if step == 1:
                self.model[1].bias[0] = torch.nan

    with pytest.raises(RunError, match=r"not finite \(1.bias, 1 of 6 tensors\)") as error:
        fit(Broken(), RandomBatches(), small_plan(2), tmp_path, WORLD)
    assert error.value.exit_code == 65
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    """Stopped between two records, with a skipped step behind the first one, three times over."""
    kinds = [GOOD] * 5 + [NAN] + [GOOD] * 6
    plan = small_plan(12, log_every=5, save_minutes=1e-6)

    class Stopping(Kinds):
        def __getitem__(self, step):
            if step == self.stop:
                raise KeyboardInterrupt
            return super().__getitem__(step)

    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    fit(Regression(), Kinds(*kinds), plan, tmp_path / "whole", WORLD)
    for stop in (3, 7, 8, 12):
        batches = Stopping(*kinds)
        batches.stop = stop
        try:
            seed = 0 if stop == 3 else stop  # but for the first one, weights are those saved
            fit(Regression(seed), batches, plan, tmp_path / "resumed", WORLD)
        except KeyboardInterrupt:
            continue
    drop = ("images_per_s", "wait", "peak_memory_mb")
    ours, theirs = (
        [{k: v for k, v in r.items() if k not in drop} for r in records(tmp_path / name)]
        for name in ("resumed", "whole")
    )
    assert [line["step"] for line in ours] == [5, 10, 12]
    assert ours == theirs


def test_after_step_is_called_after_every_step_without_gradients(tmp_path):
    class Watched(Regression):
        calls: ClassVar[list] = []

        def after_step(self, step):
            weights = self.model[0].weight.detach().clone()
            self.calls.append((step, torch.is_grad_enabled(), weights))

    class Spoiled(RandomBatches):
        def __getitem__(self, step):
            return make_batch(kind=NAN if step == 1 else GOOD, seed=step)

    fit(Watched(), Spoiled(), small_plan(3), tmp_path, WORLD)
    steps, grads, weights = zip(*Watched.calls)
    assert steps == (0, 1, 2) and grads == (False,) * 3
    assert torch.equal(weights[0], weights[1]), "the second was skipped"
    assert not torch.equal(weights[1], weights[2])


def test_the_duration_is_logged_early_and_once(tmp_path, monkeypatch, caplog):
    """By a clock on which a step takes a second, and with a log record at the end only."""
    batches = RandomBatches()
    monkeypatch.setattr("torchmae.train.log.time.monotonic", lambda: float(len(batches.made)))
    seen = []

    class Watched(Regression):
        def after_step(self, step):
            seen.append((step, [r.message for r in caplog.records if "about" in r.message]))

    plan = small_plan(60, log_every=1000, save_minutes=1e9, evaluate_minutes=1e9)
    with caplog.at_level("INFO", logger="torchmae"):
        fit(Watched(), batches, plan, tmp_path, WORLD)
    said = ["about 60 s for 60 steps (12.0 images/s)"]
    assert [messages for _, messages in seen] == [[]] * 5 + [said] * 55
    assert [r.message for r in caplog.records if "about" in r.message] == said


def test_a_finished_run_says_how_to_train_longer():
    line = finished_line(small_plan(1200), Path("runs/my photos"))
    assert line == (
        "runs/my photos is finished (1,200 steps). Its learning rate has fallen to 0; "
        "for a longer run use a new --out with --from 'runs/my photos'."
    )
    assert finished_line(small_plan(9, min_lr=1e-6), Path("r"), flag="").endswith(
        "has fallen to 1e-06; for a longer run use a new --out."
    )
    constant = finished_line(small_plan(9, min_lr=1e-2), Path("r"))
    assert constant == "r is finished (9 steps). The same command with more --epochs continues it."


def test_what_is_due(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("torchmae.train.loop.time.monotonic", lambda: clock[0])
    agenda = Agenda(small_plan(save_minutes=1, evaluate_minutes=2), WORLD)
    assert agenda.due(1, Heard()) == Due(save=False, evaluate=False, stop=False)
    clock[0] = 61
    assert agenda.due(1, Heard()) == Due(save=True, evaluate=False, stop=False)
    agenda.saved_at = 61
    assert agenda.due(2, Heard()) == Due(save=False, evaluate=False, stop=False)
    clock[0] = 121
    assert agenda.due(2, Heard()) == Due(save=False, evaluate=True, stop=False)
    assert agenda.due(2, Heard(15)) == Due(save=True, evaluate=False, stop=True)
    assert agenda.due(6, Heard(15)) == Due(save=True, evaluate=True, stop=False), "it is done"
    by_step = Agenda(small_plan(evaluate_steps=1.5), WORLD)
    due = [done for done in range(1, 6) if by_step.due(done, Heard()).evaluate]
    assert due == [2, 3, 5]


def test_a_signal_ends_an_evaluation_and_saves(tmp_path):
    """One that would take an hour, or reads from a disk that is gone."""

    def forever(step):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)
        yield "never", 1.0

    with pytest.raises(RunError, match="stopped at step 2 of 6 and saved") as caught:
        fit(
            Regression(),
            RandomBatches(),
            small_plan(evaluate_steps=2.0, ema=0.9),
            tmp_path,
            WORLD,
            [forever],
        )
    assert caught.value.exit_code == 143
    (tmp_path / "alone").mkdir()
    fit(Regression(), RandomBatches(), small_plan(evaluate_steps=2.0, ema=0.9), tmp_path, WORLD)
    fit(Regression(), RandomBatches(), small_plan(ema=0.9), tmp_path / "alone", WORLD)
    ends = [
        run / "state/step-00000006/optimizer.safetensors" for run in (tmp_path, tmp_path / "alone")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_curves_that_cannot_be_drawn_are_said(whole, tmp_path, capfd):
    shutil.copy(whole / "log.jsonl", tmp_path)
    (tmp_path / "curves.png").mkdir()
    assert draw_curves(tmp_path) is None
    assert "could not draw" in capfd.readouterr().out
