"""95 % intervals: of an accuracy, and of the mean of paired differences."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Two differences may be equal by chance, and their interval is 13 times their spread.
LEAST_SEEDS = 3
Z = 1.959964  # the 97.5 % quantile of the normal distribution


class Difference(NamedTuple):
    """A mean, such as that of paired differences, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> str:
        """Where the interval is: "above" zero, "below" it, or "unclear"."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "unclear"


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], step: float = 0.0
) -> Difference:
    """The mean of `ours - theirs`, pair by pair, with its 95 % interval by Student's t.

    Args:
        ours: at least two values.
        theirs: the partner of each, in the same order.
        step: the values are multiples of it, such as an accuracy's of 1 / images. Differences that
            happen to be equal are then not known better than to a step, whose rounding has a std
            of step / sqrt(12): the interval is never of zero width.
    """
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], step)


def mean_interval(values: Sequence[float], step: float = 0.0) -> Difference:
    """The mean of at least two values, multiples of `step` as in `paired_difference`, with its 95 %
    interval by Student's t."""
    mean = statistics.mean(values)
    std = max(statistics.stdev(values), step / math.sqrt(12))
    half = t_quantile(len(values) - 1) * std / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half)


# The 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution with so many degrees of freedom."""
    if degrees <= len(T_QUANTILES):
        return T_QUANTILES[degrees - 1]
    # Cornish-Fisher expansion around the normal distribution: three digits from 11 degrees on.
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + (Z**3 + Z) / (4 * degrees) + second / degrees**2 + third / degrees**3


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion: `right` of `count`, within 0..1, around it."""
    share = right / count
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = (
        Z
        / (1 + Z * Z / count)
        * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    )
    # At 0 and 1 an end is the proportion itself, which rounding may miss.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


FEW = 100  # images, below which accuracies say little
FEW_DRAWN = 20  # images, below which the bootstrap is too sure of itself


def few_to_draw_from(count: int) -> str | None:
    """What to say where a bootstrap has so few images that it is too sure of itself; else None."""
    if count >= FEW_DRAWN:
        return None
    images = f"{count} image{'s' * (count != 1)}"
    return f"note: only {images} to measure on: an interval from so few is too narrow"


def few_images(count: int) -> str | None:
    """What to say where so few images are measured on that accuracies are coarse; else None."""
    if count >= FEW:
        return None
    points = 100 * Z * 0.5 / math.sqrt(count)  # half the interval at an accuracy of 50 %
    return (
        f"note: only {count} image{'s' * (count != 1)} to measure on: an accuracy of 50 % is known "
        f"to ± {points:.0f} points. Measure on {FEW} or more if you can"
    )
