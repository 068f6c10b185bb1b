"""The settings of `mae report`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.options import argument, option


@dataclass(frozen=True)
class Report:
    """Make the page of a run again, or put several runs side by side.

    A training refreshes its own report.html with each picture and at its end.
    """

    GROUP: ClassVar[str] = "output"

    runs: tuple[str, ...] = argument(
        "run folders; also those of mae compare, partial and ablate, one at a time", "RUN"
    )
    out: str | None = option(
        None,
        "The page, an .html file.",
        otherwise="report.html in the run; of several runs report.html here",
    )
