"""What becomes of pixel values before mean and std: nothing, a window, a root or a logarithm.

For pixels of more than 8 bits and for floats, whose tails may be heavy. Values are typed `Any`:
this module imports neither numpy nor torch, so that settings can be checked without them.
"""

import math
from typing import Any, NamedTuple

from torchmae.errors import UserError, choose

PERCENTILES = (0.5, 99.5)  # as nnU-Net clips CT (Isensee et al. 2021, Nature Methods 18)

SCALES = {
    "none": "values as they are",
    "percentile": "a window of the data's own percentiles 0.5 to 99.5, for each channel",
    "window": "values cut to LOW HIGH",
    "sqrt": "the root of their size, with their sign",
    "log": "log(1 + size), with their sign",
}


class Scaling(NamedTuple):
    """What an encoder does with pixel values that are not of 8 bits.

    `kind` is a name in `SCALES`; a percentile has become a window. `low` and `high` are the ends of
    a window, for each channel.
    """

    kind: str = "none"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def config(self) -> dict[str, Any]:
        """As JSON."""
        ends = {"low": list(self.low), "high": list(self.high)} if self.low else {}
        return {"kind": self.kind, **ends}

    def words(self) -> str:
        """Such as "window 0 to 3000"."""
        if not self.low:
            return self.kind
        ends = zip(self.low, self.high)
        return f"window {', '.join(f'{a:g} to {b:g}' for a, b in dict.fromkeys(ends))}"


def scaling_of(described: Any, channels: int) -> Scaling:
    """From `Scaling.config` or a Scaling; `UserError` unless it fits so many channels."""
    made = described
    if isinstance(described, dict):
        ends = [tuple(map(float, described.get(name, ()))) for name in ("low", "high")]
        made = Scaling(str(described.get("kind")), *ends)
    choose(SCALES, made.kind, "scale")
    count = channels if made.kind == "window" else 0
    if len(made.low) != count or len(made.high) != count:
        raise UserError(f"scale {made.kind} with ends {made.low} and {made.high}: {count} each")
    return made


def scale_again(described: Any, channels: int, dtype: str) -> tuple[Any, ...]:
    """The value of --scale with which an encoder sees other images as it saw its own, where that is
    possible: those of its channels, and not of 8 bits.

    Args:
        described: its scaling, or `Scaling.config` of it; None for none.
        channels: of the images.
        dtype: of their pixels.
    """
    if not described or dtype == "uint8":
        return ("none",)
    try:
        return scaling_of(described, channels)
    except UserError:  # a window of other channels
        return ("none",)


def check_scale(words: tuple[str, ...]) -> None:
    """Raises UserError for words of --scale that mean nothing."""
    kind, *ends = words or ("",)
    choose(SCALES, kind, "--scale")
    try:
        numbers = [float(end) for end in ends]
    except ValueError:
        numbers = [math.nan]
    right = len(numbers) == 2 and numbers[0] < numbers[1] if kind == "window" else not numbers
    if not right or not all(map(math.isfinite, numbers)):
        raise UserError(
            f"--scale {' '.join(words)}: one of {', '.join(SCALES)}, and window with its two ends, "
            "lowest first, as in --scale window -1000 400"
        )


def scaled(values: Any, kind: str, window: Any) -> Any:
    """Values, a float tensor [..., C, H, W], as `normalize` centers them; NaN stays NaN.

    Args:
        values: of pixels.
        kind: a name in `SCALES`.
        window: with "window" a tensor [2, C, 1, 1], its ends.
    """
    if kind == "window":
        return values.clamp(window[0], window[1])
    if kind == "sqrt":
        return values.abs().sqrt().copysign(values)
    return values.abs().log1p().copysign(values) if kind == "log" else values
