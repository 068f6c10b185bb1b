"""What signals do to a process that trains."""

import os
import signal
import time

import pytest
import torch

from torchmae.train import watch
from torchmae.train.distributed import World
from torchmae.train.watch import Interrupted, watching

WORLD = World(0, 1, torch.device("cpu"))
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted_said_and_ends_nothing(number, capfd):
    before = [signal.getsignal(one) for one in HANDLED]
    with watching(WORLD) as heard:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as when a terminal closes
        assert heard.number == number and not heard.save
        time.sleep(4 * watch.LOOK_SECONDS)
    assert capfd.readouterr().out.count(f"{number.name}: finishing the step, then saving") == 1
    assert [signal.getsignal(one) for one in HANDLED] == before


def test_a_second_ctrl_c_acts_at_once(monkeypatch):
    monkeypatch.setattr(watch, "SAME_SECONDS", 0.01)
    with watching(WORLD) as heard:
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.number == signal.SIGINT
        time.sleep(0.05)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigusr1_asks_for_a_checkpoint_and_nohup_holds():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watching(WORLD) as heard:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard.save and heard.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_what_may_be_interrupted_is():
    with watching(WORLD) as heard:
        with heard.interruptible(False):
            os.kill(os.getpid(), signal.SIGUSR1)
        with heard.interruptible(True), pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard.number == signal.SIGTERM and not heard.may_interrupt
