"""The settings of `mae watch`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.options import Range, argument, option


@dataclass(frozen=True)
class Watch:
    """Look at a run from another terminal: progress, curves, the verdict, until it ends.

    It reads files only, and never disturbs the training. Where the output is no terminal, each new
    line of the log is a line. Ctrl-C leaves; the training goes on.
    """

    GROUP: ClassVar[str] = "output"

    folder: str = argument("the folder of a run that is trained, finished or was killed", "RUN")
    once: bool = option(False, "Print what there is now, and end.")
    seconds: float = option(
        2.0, "Seconds between two looks.", within=Range(at_least=0.1, at_most=3600)
    )
