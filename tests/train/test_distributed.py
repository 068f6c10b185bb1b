"""Worlds of several processes, started by torchrun."""

import subprocess
import sys

from helpers.runs_on_disk import ENV

TWO_WORLDS = """
import os, time
from torchmae.train.distributed import start

for number in range(2):
    if number and os.environ["RANK"] == "1":
        time.sleep(3)  # the other process is first
    with start("cpu") as world:
        assert world.any_rank(world.rank == 1) == (True,)
"""


def test_a_second_world_does_not_connect_to_sockets_of_the_first(tmp_path):
    """The processes of `mae compare` open one World for each training, at different moments."""
    (tmp_path / "worlds.py").write_text(TWO_WORLDS)
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    command = [sys.executable, *launcher, str(tmp_path / "worlds.py")]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
