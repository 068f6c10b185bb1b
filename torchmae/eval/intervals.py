"""95 % intervals: of a share, and of paired differences."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Difference(NamedTuple):
    """Of paired figures: the mean of their differences and its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The 95 % interval of the mean of the paired differences."""
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, half = (
        statistics.mean(pairs),
        t_quantile(len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs)),
    )
    return Difference(mean, mean - half, mean + half)


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: half its width holds 95 %."""
    exact = (
        12.706,
        4.303,
        3.182,
        2.776,
        2.571,
        2.447,
        2.365,
        2.306,
        2.262,
        2.228,
    )  # 1 to 10 degrees of freedom
    if degrees <= len(exact):
        return exact[degrees - 1]
    z = 1.959964  # Cornish-Fisher's expansion around the normal distribution: three digits from 11 degrees on
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (z**3 + z) / (4 * degrees) + second / degrees**2 + third / degrees**3


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return max(0.0, centre - half), min(1.0, centre + half)
