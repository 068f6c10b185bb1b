"""Several processes, by torchrun: the same run as with one; FSDP2; errors; kills; measuring."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.runs_on_disk import ENV, contents, flags, make_photos, steps_saved
from helpers.small import SMALL
from safetensors.torch import load_file

import torchmae
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.models.masking import noise
from torchmae.runfolder import read_results
from torchmae.train.distributed import World

LAUNCHER = "-m torch.distributed.run --standalone --nproc-per-node 2 -m torchmae"
TORCHRUN = [sys.executable, *LAUNCHER.split()]
RECIPE = dict(epochs=3, base_lr=0.02, precision="fp32", log_every=1, clip_grad=1.0)
OPTIONS = SMALL | dict(image_size=16) | RECIPE
STEPS = 9  # 3 epochs of 24 images, 8 a step


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("processes") / "photos")


@pytest.fixture(scope="module")
def one(photos, tmp_path_factory):
    """The run with one process. Its last two checkpoints are those of the last steps."""
    run = tmp_path_factory.mktemp("one") / "run"
    options = OPTIONS | {"out": str(run), "save_minutes": 1e-6}
    return torchmae.pretrain(str(photos), **options).path


def torchrun(photos, run, *more, **options):
    command = [*TORCHRUN, "pretrain", str(photos), *flags(OPTIONS | {"out": run} | options), *more]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)


def back_to_the_last_but_one(run, copy):
    """A copy of a run as if it had been killed one step before its end."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / f"state/step-{STEPS:08d}")
    assert steps_saved(copy) == STEPS - 1
    return copy


def assert_same_weights(run, one):
    ours, theirs = (load_file(r / "model.safetensors") for r in (run, one))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        a, b = ours[name], theirs[name]
        # Softmax is invariant to the keys' bias: its gradient is rounding noise, scaled by Adam.
        if name.endswith("qkv.bias"):
            a, b = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, msg=f"{name}: {{}}".format)


def assert_same_run(run, one):
    assert_same_weights(run, one)
    ours, theirs = (
        [json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()]
        for r in (run, one)
    )
    steps = list(range(1, STEPS + 1))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == steps
    for a, b in zip(ours, theirs):
        for name in ("loss", "grad_norm", "lr", "loss of patch mean", "loss of visible mean"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (a["step"], name)


@pytest.mark.parametrize("size", [2, 4])
def test_images_and_masks_are_those_of_one_process(photos, size):
    source, augment = open_source(str(photos)), RandomResizedCropFlip((16, 16), 5, (0.2, 1.0), True)
    alone = Batches(source, augment, 8, 5)
    together = [Batches(source, augment, 8, 5, rank, size) for rank in range(size)]
    for step in range(7):  # over two ends of epochs
        whole, parts = alone[step], [batches[step] for batches in together]
        for name in ("images", "epoch", "sample"):
            values = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(getattr(whole, name), values)
        masks = torch.cat([noise(5, part.epoch, part.sample, 4) for part in parts])
        assert torch.equal(noise(5, whole.epoch, whole.sample, 4), masks)


def test_two_killed_processes_resume_to_the_weights_of_one(one, photos, tmp_path):
    run = tmp_path / "run"
    command = [
        *TORCHRUN,
        "pretrain",
        str(photos),
        *flags(OPTIONS | {"out": run, "save_minutes": 1e-6}),
    ]
    process = subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    end = time.monotonic() + 90
    while steps_saved(run) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    kill_all(process)
    output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL and 3 <= steps_saved(run) < STEPS, output
    done = torchrun(photos, run)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("Done:") == 1, "only rank 0 logs"
    assert_same_run(run, one)


def test_a_process_that_does_not_come_is_named(photos, tmp_path):
    """It is stopped, as on a machine that hangs."""
    run, said = tmp_path / "run", tmp_path / "said.txt"
    options = OPTIONS | {"out": run, "epochs": 3000, "workers": 1, "cache": "none"}
    command = [*TORCHRUN, "pretrain", str(photos), *flags(options), "--timeout-minutes", "0.05"]
    with said.open("wb") as out:
        process = subprocess.Popen(
            command, env=ENV, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: (run / "log.jsonl").exists() and step_logged(run) > 4, process)
            os.kill(of_rank(process, 1), signal.SIGSTOP)
            wait_until(lambda: "gives no sign of life" in said.read_text(), process)
        finally:
            kill_all(process)
    (line,) = (line for line in said.read_text().splitlines() if line.startswith("mae:"))
    assert "another process did not come within 0.05 minutes" in line
    assert "process 1 gives no sign of life (last seen " in line and "--timeout-minutes" in line


def test_two_processes_that_cannot_read_wait_longer_than_a_step_may_and_hear_sigterm(
    photos, tmp_path
):
    data, run, said = tmp_path / "photos", tmp_path / "run", tmp_path / "said.txt"
    shutil.copytree(photos, data)
    options = OPTIONS | {"out": run, "epochs": 3000, "cache": "none", "workers": 0}
    command = [*TORCHRUN, "pretrain", str(data), *flags(options), "--timeout-minutes", "0.05"]
    with said.open("wb") as out:
        process = subprocess.Popen(command, env=ENV, stdout=out, stderr=out)
        try:
            wait_until(lambda: (run / "log.jsonl").exists() and step_logged(run) > 4, process)
            for file in (*data.glob("*.jpg"), *data.glob("nested/*.png")):
                file.unlink()
                os.mkfifo(file)
            wait_until(lambda: steps_saved(run), process)  # as nothing comes
            time.sleep(6)  # twice the limit
            os.kill(of_rank(process, 1), signal.SIGTERM)  # only one of them hears it
            wait_until(
                lambda: "and saved; the same command resumes it" in said.read_text(), process
            )
        finally:
            kill_all(process)
    assert "did not come" not in said.read_text() and steps_saved(run) == step_logged(run)


def step_logged(run):
    return (run / "log.jsonl").read_bytes().count(b"\n")


def wait_until(ready, process):
    end = time.monotonic() + 90
    while not ready():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def of_rank(process, rank):
    """The pid of a training process that torchrun started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    for pid in listed.stdout.split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(listed.stdout)


def kill_all(process):
    """SIGKILL to torchrun and to the processes it started, which are in sessions of their own."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True
    ).stdout.split()
    children = [
        int(pid) for pid, parent in zip(listed[::2], listed[1::2]) if int(parent) == process.pid
    ]
    for pid in (process.pid, *children):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def test_sharded_processes_agree_and_one_process_resumes_from_their_checkpoint(
    one, photos, tmp_path
):
    run = tmp_path / "run"
    done = torchrun(photos, run, "--fsdp", save_minutes=1e-6, micro_batch_size=2)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, one)
    assert (run / f"pictures/step-{STEPS:08d}.png").is_file()
    shapes = [
        {n: v.shape for n, v in load_file(r / "model.safetensors").items()} for r in (run, one)
    ]
    assert shapes[0] == shapes[1], "a checkpoint holds whole tensors, whatever the sharding"
    alone = back_to_the_last_but_one(run, tmp_path / "alone")
    torchmae.pretrain(str(photos), **(OPTIONS | {"out": str(alone)}))
    assert_same_run(alone, one)


def test_sharded_processes_resume_from_the_checkpoint_of_one(one, photos, tmp_path):
    run = back_to_the_last_but_one(one, tmp_path / "run")
    done = torchrun(photos, run, "--fsdp")
    assert done.returncode == 0, done.stderr
    assert_same_run(run, one)


def test_fsdp_with_one_process_changes_nothing():
    task = torch.nn.Linear(2, 2)
    assert World(0, 1, torch.device("cpu")).wrap(task, [task], fsdp=True) is task
    assert type(task) is torch.nn.Linear


def test_a_mistake_is_reported_once_and_nothing_hangs(tmp_path):
    done = torchrun(tmp_path / "nowhere", tmp_path / "run")
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("mae:")]
    assert len(errors) == 1 and "no such folder or file" in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_rank_0_finds_is_reported_once_too(one, photos, tmp_path):
    """Only rank 0 reads the run folder; it reports the error to the other ranks."""
    before = contents(one)
    done = torchrun(photos, one, mask_ratio=0.5)
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("mae:")]
    assert len(errors) == 1 and "mask_ratio was 0.75, is 0.5" in errors[0]
    assert contents(one) == before


def test_a_batch_that_cannot_be_shared_is_a_user_error(photos):
    from torchmae.errors import UserError

    with pytest.raises(
        UserError, match="batch size 9 cannot be shared equally by 2 processes: use 8 or 10"
    ):
        Batches(
            open_source(str(photos)),
            RandomResizedCropFlip((16, 16), 0, (0.2, 1.0), True),
            9,
            size=2,
        )


def test_two_processes_fine_tune_as_one(tmp_path):
    """With drop path, mixing, augmentation and EMA: no draw depends on ranks or micro-batches."""
    options = dict(
        **dict(image_size=16, patch_size=8, labels_per_class=4, batch_size=8, epochs=2),
        **dict(base_lr=0.02, workers=0, precision="fp32", device="cpu", ema=0.9, drop_path=0.5),
        **dict(mixup=0.8, cutmix=1.0, randaug_magnitude=9, random_erasing=0.5),
    )
    alone, together, sharded = (tmp_path / name for name in ("alone", "together", "sharded"))
    for command, out, more in (
        ([sys.executable, "-m", "torchmae"], alone, []),
        (TORCHRUN, together, ["--micro-batch-size", "2"]),
        (TORCHRUN, sharded, ["--fsdp"]),
    ):
        asked = ["finetune", "none", "digits?part=test", *flags(options | {"out": out}), *more]
        done = subprocess.run(
            [*command, *asked], env=ENV, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    for run in (together, sharded):
        assert_same_weights(run, alone)
        assert (run / "best.safetensors").exists()
    runs = (alone, together, sharded)
    last = [json.loads((run / "last.json").read_text()) for run in runs]
    assert len({(scores["top1"], scores["count"]) for scores in last}) == 1


def test_two_processes_run_several_trainings(tmp_path):
    """Every process takes part in all of them; only the main one writes and logs."""
    pretrained = torchmae.pretrain(
        "digits?part=test",
        **(OPTIONS | dict(out=str(tmp_path / "run"), epochs=1, batch_size=64, flip=False)),
    )
    few = dict(
        labels_per_class=2,
        batch_size=4,
        epochs=1,
        workers=0,
        device="cpu",
        precision="fp32",
        out=tmp_path / "p",
    )
    asked = ["partial", str(pretrained), "digits?part=test", *flags(few), "--train", "0", "1"]
    done = subprocess.run([*TORCHRUN, *asked], env=ENV, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    rows = read_results(tmp_path / "p", "partial")[0]["results"]["rows"]
    assert [row["settings"]["train"] for row in rows] == ["0", "1"]
    assert done.stdout.count("Accuracy of the last epoch") == 1


@pytest.mark.parametrize("cache", ["memory", "disk", "device"])
def test_two_processes_share_what_is_decoded(one, photos, tmp_path, cache):
    done = torchrun(photos, tmp_path / "run", cache=cache, workers=1)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", one)


MEASURE = """
import sys
from pathlib import Path
from helpers.tasks import RandomBatches, SelfDistillation
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import start
from torchmae.train.loop import fit
from torchmae.train.speed import measure_seconds_per_step

run, fsdp, measured = Path(sys.argv[1]), sys.argv[2] == "fsdp", sys.argv[3] == "measured"
plan = TrainConfig(4, 1, 1e-2, 0.05, (0.9, 0.95), None, "fp32", fsdp=fsdp)
with start("cpu") as world:
    task = SelfDistillation()
    if measured:
        seconds = measure_seconds_per_step(task, RandomBatches(), plan, world)
        (run / f"seconds-{world.rank}").write_text(repr(seconds))
    fit(task, RandomBatches(), plan, run, world)
"""


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_all_processes_agree_on_the_measured_time_which_leaves_no_trace(tmp_path, sharding):
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    tests = str(Path(__file__).parent)
    env = ENV | {"PYTHONPATH": os.pathsep.join([tests, ENV.get("PYTHONPATH", "")])}
    finals = []
    for name in ("plain", "measured"):
        (tmp_path / name).mkdir()
        command = [*TORCHRUN[:-2], str(script), str(tmp_path / name), sharding, name]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        finals.append((tmp_path / name / "model.safetensors").read_bytes())
    assert finals[0] == finals[1]
    one, other = ((tmp_path / f"measured/seconds-{rank}").read_text() for rank in range(2))
    assert one == other and 0 < float(one) < 10
