"""Random numbers as a pure function of integers: a counter-based hash, no stateful generator.

Every random choice of a run (order, crop, flip, mask) is `hash32(seed, stream, epoch, sample, ..)`,
so neither the number of workers or processes nor a resume changes it. The same code runs on Python
ints, numpy arrays and torch tensors on any device, with the same bits. Typed `Any`: one call mixes
keys of these kinds, and this module imports neither numpy nor torch.
"""

from typing import Any

WORD = 0xFFFFFFFF

# The second key, so that crop, mask and others of one (seed, epoch, sample) are independent.
# Never renumber: the numbers are part of every run that was made.
ORDER, CROP, MASK, BLOCK, REPLACE, SPLIT, AUGMENT, MIX, DROP, JITTER = range(10)
GUMBEL, NOISE, CORRUPT, PLACE, PHOTOMETRIC, PROPOSAL, SHAPE = range(10, 17)
PREDICT, GREEN, RATIO = range(17, 20)


def mix(x: Any) -> Any:
    """A bijection of 32-bit words with good avalanche: multiplicative xorshift.

    Args:
        x: An int, or an int64 array or tensor, in [0, 2**32).

    Returns:
        The same type and shape, in [0, 2**32).
    """
    # Factors below 2**31: products of a 32-bit word stay below 2**63, so int64 never overflows.
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & WORD
    return x ^ (x >> 15)


def hash32(*keys: Any) -> Any:
    """A 32-bit word from any number of keys; their order matters.

    Args:
        keys: Integers in [0, 2**63): ints, or int64 arrays or tensors that broadcast.

    Returns:
        In [0, 2**32): an int if all keys are, else int64 of the broadcast shape.
    """
    word: Any = 0x1B873593
    for key in keys:
        folded = (key ^ (key >> 32) * 0x5BD1E995) & WORD  # 64 to 32 bits
        word = mix(word ^ folded)
    return word


def uniform(*keys: Any) -> Any:
    """A float in [0, 1) from the same keys as `hash32`.

    Returns:
        A float, a float64 array, or a tensor of torch's default dtype.
    """
    # 24 bits are exact in float32 and float64, so all kinds agree and 1.0 is never reached.
    return (hash32(*keys) >> 8) / 16777216.0
