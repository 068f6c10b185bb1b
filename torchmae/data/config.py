"""How encoded images become pixels, as settings. Importable without torch or numpy."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.runfolder import read_config
from torchmae.settings.options import POSITIVE, check_ranges, option


@dataclass(frozen=True)
class DecodeOptions:
    """How encoded images become uint8 pixels. A source owns one (`Source.decode`).

    Args:
        max_megapixels: larger images are refused, from the header, before anything is decoded.
        white: the value of white in images of more than 8 bits, which are scaled by 255 / white.
        channels: of the decoded images: 1, 3, or None for what the source stores.
    """

    GROUP: ClassVar[str] = "data"

    max_megapixels: float = option(
        100.0, "Larger images are refused before they are decoded.", within=POSITIVE
    )
    white: int = option(
        65535,
        "The value of white in images of more than 8 bits (4095 for 12-bit data).",
        within=POSITIVE,
    )
    channels: int | None = option(
        None,
        "3 for colour, 1 for grey.",
        within=POSITIVE,
        otherwise="what the data has; 3 for image files",
    )

    def check(self) -> None:
        """Raises `UserError` for a value that no image could be decoded with."""
        check_ranges(self)


def decode_as_run(run: str, max_megapixels: float | None, white: int | None) -> DecodeOptions:
    """How a later verb decodes images: as those that a run was trained on, unless told otherwise.

    Args:
        run: a run folder; "none" for no run.
        max_megapixels: what was requested; None for the run's.
        white: likewise.
    """
    known = {} if run == "none" else read_config(run)["config"]
    default = DecodeOptions()
    return DecodeOptions(
        max_megapixels or known.get("max_megapixels") or default.max_megapixels,
        white or known.get("white") or default.white,
    )
