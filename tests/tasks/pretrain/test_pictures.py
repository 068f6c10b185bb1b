"""The first pictures of a training: read where a stalled read is named."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.sources import plant, png

from torchmae.data import workers
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import CenterCropResize, RandomResizedCropFlip
from torchmae.data.workers import Loading
from torchmae.tasks.pretrain.pictures import First


def test_a_read_that_never_ends_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "STALL_SECONDS", 0.1)
    batches = Batches(
        open_source(str(plant(tmp_path, "a.png", "b.png", "c.png"))),
        RandomResizedCropFlip((4, 4)),
        batch_size=3,
    )
    first = First(batches, [0, 2, 1], CenterCropResize((4, 4)))
    expected = [first[place] for place in range(3)]
    (tmp_path / "c.png").unlink()
    os.mkfifo(tmp_path / "c.png")
    read: list[tuple[int, torch.Tensor]] = []
    thread = threading.Thread(target=lambda: read.extend(Loading(first, range(3), workers=0)))
    with caplog.at_level(logging.WARNING, logger="torchmae"):
        thread.start()
        while "being read: c.png" not in caplog.text:
            time.sleep(0.05)
        (tmp_path / "c.png").write_bytes(png(5))
        thread.join(60)
    assert [index for index, _ in read] == [0, 2, 1]
    assert all(torch.equal(one[1], other[1]) for one, other in zip(read, expected))
