"""The settings of `mae verify`."""

from dataclasses import dataclass

from torchmae.settings.options import argument


@dataclass(frozen=True)
class Verify:
    """Read every file of a run and compare it with what was written.

    Exit code 0: all are good; 1: at least one is damaged.
    """

    folder: str = argument("a run folder", "RUN")
