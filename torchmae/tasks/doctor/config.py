"""The settings of `mae doctor`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.groups import DeviceOptions, SplitListingOptions
from torchmae.settings.options import argument, option


@dataclass(frozen=True)
class Doctor:
    """Look for what is wrong with this machine or, with RUN, with a run.

    Exit code 0: nothing; 1: at least one thing.
    """

    GROUP: ClassVar[str] = "data"

    run: str | None = argument("a run folder; without it the machine", "RUN", default=None)
    data: str | None = option(
        None,
        "With RUN: the images, where they have moved.",
        metavar="DATA",
        otherwise="those of the run",
        images=True,
    )
    listing: SplitListingOptions = SplitListingOptions()
    runtime: DeviceOptions = DeviceOptions()
