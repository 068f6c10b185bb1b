"""Settings as dataclasses: sizes as text, numbers in their range."""

import math
import re
from collections.abc import Sequence
from typing import Any

from torchmae.errors import UserError


def parse_size(text: str | int) -> tuple[int, int]:
    """`224` to (224, 224), `192x256` to (192, 256): height, width."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text).lower())
    if not match or not int(match[1]) or match[2] == "0":
        raise UserError(f"--image-size {text}: a side such as 224, or HEIGHTxWIDTH such as 192x256")
    return int(match[1]), int(match[2] or match[1])


def check_numbers(config: Any, positive: Sequence[str], not_negative: Sequence[str]) -> None:
    """Every number finite, and of the sign it must have."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be a finite number")
        if name in positive and value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be more than 0")
        if name in not_negative and value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must not be negative")


def size_text(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
