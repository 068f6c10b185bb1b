"""No output ends a training: full disks, readers that are gone."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tasks import RandomBatches, Regression

from torchmae.data.sources.source import BadFile
from torchmae.runfolder import read_log
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.log import Log, peak_memory_mb, restart_peak_memory
from torchmae.train.loop import fit
from torchmae.train.trainer import keep_freed_memory

WORLD = World(0, 1, torch.device("cpu"))


def plan(**more):
    return TrainConfig(6, 2, 1e-2, 0.05, (0.9, 0.95), None, "fp32", log_every=1, **more)


def full():
    return Path("/dev/full").open("wb", buffering=0)


def test_a_full_disk_is_said_once_and_no_line_is_lost_when_there_is_room_again(tmp_path, capfd):
    with Log(tmp_path, plan(), 0, 4, WORLD) as log:
        log.write({"step": 1, "accuracy": 0.5})
        disk, log.file = log.file, full()
        log.write({"step": 2, "accuracy": 0.5})
        log.write({"step": 3, "accuracy": 0.5})
        assert [record["step"] for record in read_log(tmp_path)] == [1]
        log.file.close()
        log.file = disk
        log.write({"step": 4, "accuracy": 0.5})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert capfd.readouterr().out.count("log.jsonl cannot be written (No space left") == 1


def test_lines_that_are_lost_are_counted(tmp_path, capfd):
    with Log(tmp_path, plan(), 0, 4, WORLD) as log:
        log.file.close()
        log.file = full()
        log.write({"step": 1, "accuracy": 0.5})
    assert "1 line of " in capfd.readouterr().out


class FullDisk:
    """An evaluator without room for what it draws; and one with."""

    def __call__(self, step):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"picture")
        yield "never", 1.0


def test_a_training_ends_well_where_nothing_can_be_written(tmp_path, capfd):
    (tmp_path / "bad-files.jsonl").mkdir()

    class Bad(RandomBatches):
        def __getitem__(self, step):
            bad = [BadFile("a.jpg", "damaged")]
            return super().__getitem__(step)._replace(bad=bad, changed=["b.jpg"])

    fit(Regression(), Bad(), plan(evaluate_steps=2.0), tmp_path, WORLD, [FullDisk()])
    out = capfd.readouterr().out
    assert out.count("bad-files.jsonl cannot be written") == 1
    assert out.count("what was evaluated cannot be written (No space left on device)") == 1
    assert out.count("bad file, replaced by another image: a.jpg") == 1
    assert out.count("b.jpg changed since training started") == 1
    assert (tmp_path / "state/step-00000006").is_dir()


def test_many_changed_files_are_counted_not_listed(tmp_path, capfd):
    with Log(tmp_path, plan(), 0, 4, WORLD) as log:
        for _ in range(2):
            log.changed_files([f"{i}.jpg" for i in range(250)])
    said = [line for line in capfd.readouterr().out.splitlines() if "changed since" in line]
    assert [line.split()[1] for line in said] == ["0.jpg", "1.jpg", "2.jpg", "10", "100"]


def test_peak_memory_starts_anew():
    """Also where trainings of this process have told it to keep what is freed."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no switch for it")
    large = torch.ones(100_000_000)
    before = peak_memory_mb(WORLD.device)
    del large
    keep_freed_memory(False)
    restart_peak_memory(WORLD.device)
    assert peak_memory_mb(WORLD.device) < before - 300
