"""What is chosen for settings that were left open, in words."""

import pytest

from torchmae.settings.defaults import Facts, enough_workers


@pytest.mark.parametrize(
    "cores,processes,words",
    [
        (2, 1, "2 cores for 1 training process"),
        (16, 8, "16 cores for 8 training processes"),
        (1, 1, "1 core for 1 training process"),
    ],
)
def test_cores_and_processes_are_counted_in_proper_words(
    cores: int, processes: int, words: str
) -> None:
    facts = Facts(100, 32, 32, 3, cores=cores, local_processes=processes)
    assert enough_workers(facts, {}).reason == words
