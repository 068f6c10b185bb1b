"""The settings of `mae check`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.data.config import DecodeOptions
from torchmae.errors import UserError
from torchmae.settings.groups import DeviceOptions, LabelledListingOptions
from torchmae.settings.options import Range, argument, check_ranges, option


@dataclass(frozen=True)
class Check:
    """Look at a data set before anything is trained on it: bad files, duplicates, leakage between
    its parts, blank images, classes."""

    GROUP: ClassVar[str] = "data"

    data: str = argument(
        "images, as for mae pretrain; labels are used if it has any", "DATA", images=True
    )
    val: str | None = option(
        None,
        "Images to validate on, which must not have copies in DATA.",
        metavar="DATA",
        otherwise="train/, val/, test/ of DATA are its parts",
        images=True,
    )
    out: str = option("check.html", "The page.")
    write_list: str | None = option(
        None,
        "A .txt (or .csv with classes) of the images to keep, for mae pretrain: without bad and "
        "blank ones, one of each group of copies, of several parts the one that is held out.",
        metavar="FILE",
        otherwise="none",
    )
    run: str | None = option(
        None,
        "Find near-duplicates by the features of this run, which also know cropped copies.",
        metavar="RUN",
        otherwise="by a hash of what images look like",
    )
    count: int = option(
        24, "Images on the sheet, chosen by the hash.", within=Range(at_least=0, at_most=200)
    )
    seed: int = option(
        0, "Seed of what is chosen to be looked at.", within=Range(at_least=0, below=1 << 62)
    )
    listing: LabelledListingOptions = LabelledListingOptions()
    decode: DecodeOptions = DecodeOptions()
    runtime: DeviceOptions = DeviceOptions()

    def check(self) -> None:
        """Raises UserError for values that are not possible."""
        check_ranges(self)
        if self.write_list is not None and not self.write_list.endswith((".txt", ".csv")):
            raise UserError(
                f"--write-list {self.write_list}: the name of a .txt (paths) or .csv (paths, "
                "classes)"
            )
        if not self.out.endswith(".html"):
            raise UserError(f"--out {self.out}: name a file that ends in .html, such as check.html")
