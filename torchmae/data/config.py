"""How images are decoded, as one value that a source owns. Imported without torch and numpy."""

import math
from dataclasses import dataclass

from torchmae.errors import UserError


@dataclass(frozen=True)
class DecodeOptions:
    """How encoded images become uint8 pixels. A source owns one (`Source.decode`).

    Args:
        max_megapixels: larger images are refused, from the header, before anything is decoded.
        white: the value of white in images of more than 8 bits, which are scaled by 255 / white.
        channels: of the decoded images: 1, 3, or None for what the source stores.
    """

    max_megapixels: float = 100.0
    white: int = 65535
    channels: int | None = None

    def check(self) -> None:
        """Raises `UserError` for a value that no image could be decoded with."""
        for name, value in vars(self).items():
            if value is None or 0 < value < math.inf:
                continue
            allowed = "a finite number" if math.isnan(value) or value > 0 else "more than 0"
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {allowed}")
