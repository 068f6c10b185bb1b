"""Loading: stalled reads are named and can be left, killed workers are started again."""

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.sources import plant

from torchmae.data import workers as loading
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import RunError

WAIT = 20.0


@pytest.fixture
def data(tmp_path):
    root = plant(tmp_path / "set", *(f"{i}.png" for i in range(8)))
    return root, Batches(open_source(root), RandomResizedCropFlip((8, 8)), 4, seed=3)


def become_fifos(root):
    for path in root.iterdir():
        path.unlink()
        os.mkfifo(path)


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.sample, other.sample)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_read_that_never_ends_is_named_and_can_be_left(data, workers, monkeypatch, caplog):
    root, batches = data
    monkeypatch.setattr(loading, "STALL_SECONDS", 0.3)
    become_fifos(root)  # nobody writes into them, as if a file server were gone
    steps = iter(batches.loader(0, 9, workers))
    named = batches.source.name(int(batches.places(0)[1][0]))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="torchmae"):
        while named not in caplog.text and time.monotonic() - began < WAIT:
            assert not steps.wait(0.1)
    assert "waiting for data since" in caplog.text and named in caplog.text
    children = steps.maker.children
    assert len(children) == workers
    steps.close()
    for child in children:
        child.join(WAIT)
        assert child.exitcode is not None, "a worker that reads for ever must end too"


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_come_late_are_the_same(data, workers, monkeypatch, caplog):
    root, batches = data
    want = batches[0]
    monkeypatch.setattr(loading, "STALL_SECONDS", 0.1)
    late = root / batches.source.name(int(batches.places(0)[1][2]))
    content = late.read_bytes()
    late.unlink()
    os.mkfifo(late)
    steps = iter(batches.loader(0, 1, workers))
    with caplog.at_level(logging.INFO, logger="torchmae"):
        while late.name not in caplog.text:
            assert not steps.wait(0.1)
        late.write_bytes(content)  # its reader gets it now
        assert same(next(steps), want)
    assert "data came after" in caplog.text


def test_killed_workers_are_started_again_with_the_same_batches(data, caplog):
    _, batches = data
    steps = iter(batches.loader(0, 12, 2))
    found = [next(steps) for _ in range(3)]
    for child in steps.maker.children:
        os.kill(child.pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING, logger="torchmae"):
        found += steps
    assert "killed by SIGKILL" in caplog.text and "started again" in caplog.text
    assert len(found) == 12
    assert all(same(batch, batches[step]) for step, batch in enumerate(found))


class Deadly(Batches):
    """Kills the process that makes its third batch, as the system does where memory runs out."""

    def __getitem__(self, step):
        if step == 2:
            with loading.reading(5):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(step)


def test_workers_that_die_again_and_again_end_in_one_line(data, caplog, monkeypatch):
    _, batches = data
    monkeypatch.setattr(loading, "MAX_DEATHS", 2)  # torch takes 5 s to notice each
    steps = iter(Deadly(batches.source, batches.transform, 4, 3).loader(0, 9, 1))
    found = []
    with pytest.raises(RunError) as caught:
        found.extend(steps)  # a death may take along what was made, but not handed over
    assert len(found) <= 2 and all(same(one, batches[i]) for i, one in enumerate(found))
    text = str(caught.value)
    assert "killed by SIGKILL while it read 5.png, 2 times in a row" in text
    assert "memory ran out" in text and "\n" not in text
    assert caplog.text.count("started again") == 1


def test_an_error_of_the_data_is_not_taken_for_a_death(data):
    class Wrong(Batches):
        def __getitem__(self, step):
            raise KeyError("wrong")

    _, batches = data
    steps = iter(Wrong(batches.source, batches.transform, 4, 3).loader(0, 9, 1))
    for _ in range(2):  # and it remains
        with pytest.raises(KeyError, match="wrong"):
            next(steps)


def test_loading_draws_nothing_from_torchs_generator(data):
    before = torch.get_rng_state()
    assert len(list(data[1].loader(0, 3, 1))) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_an_array_that_is_cut_short_is_a_bad_image_not_a_bus_error(tmp_path):
    """In a process of its own: reading mapped memory that is gone kills it."""
    code = """
import os, sys
import numpy as np
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
path = sys.argv[1]
np.save(path, np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8))
batches = Batches(open_source(path), RandomResizedCropFlip((8, 8)), 64)
os.truncate(path, 20_000)  # six of them are left
for workers in (0, 1):
    (batch,) = batches.loader(0, 1, workers)
    reasons = sorted({bad.reason for bad in batch.bad})
    print(len(batch.images), reasons, len(set(batch.sample.tolist())))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 2 * "64 ['the file is shorter than when it was opened'] 6\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_changes_under_way_is_named(data, workers):
    root, batches = data
    assert not batches[0].changed
    one, other = (batches.source.name(int(i)) for i in batches.places(0)[1][:2])
    content = bytearray((root / one).read_bytes())
    content[-1] ^= 1  # behind the image: of the same size, and readable
    (root / one).write_bytes(content)
    (root / other).chmod(0o600)  # its bytes are the same, but this cannot be told by times
    (batch,) = batches.loader(0, 1, workers)
    assert set(batch.changed) == {one, other} and not batch.bad


def test_arrays_and_tars_that_change_are_named_too(tmp_path):
    from helpers.sources import BUILDERS

    for kind in ("tar", "array"):
        source = open_source(BUILDERS[kind](tmp_path / kind, 3))
        assert not source.is_changed(1)
    np.save(tmp_path / "x.npy", np.zeros((3, 20, 20, 3), np.uint8))
    source = open_source(tmp_path / "x.npy")
    assert not source.is_changed(1)
    np.save(tmp_path / "x.npy", np.ones((3, 20, 20, 3), np.uint8))
    assert source.is_changed(1)
