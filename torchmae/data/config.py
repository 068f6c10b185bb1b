"""How encoded images become pixels, as settings. Importable without torch or numpy."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.settings.options import POSITIVE, option


@dataclass(frozen=True)
class DecodeOptions:
    """What a set of images is decoded with; owned by its source."""

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
