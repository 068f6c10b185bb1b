"""Randomness as a pure function of integers: a counter-based hash in place of stateful generators.

Every random choice of a run (order, crop, flip, mask) is `hash32(seed, stream, epoch, sample, counter)`. The number of
workers or processes, or a resume, cannot change it. The same code runs on Python ints, numpy arrays and torch tensors on
any device (int64, integer operations only, no product over 2**63), so that all of them give the same bits.
"""

from typing import Any

WORD = 0xFFFFFFFF

# Streams keep the uses of one (seed, epoch, sample) independent of each other.
ORDER, CROP, MASK, BLOCK, REPLACE, SPLIT, AUGMENT, MIX, DROP = range(9)


def mix(x: Any) -> Any:
    """A bijection of 32-bit words with good avalanche (multiplicative xorshift, constants below 2**31)."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & WORD
    return x ^ (x >> 15)


def hash32(*keys: Any) -> Any:
    """A 32-bit word in [0, 2**32) for non-negative integer keys (ints, or int64 arrays or tensors that broadcast)."""
    word: Any = 0x1B873593
    for key in keys:
        word = mix(word ^ ((key ^ (key >> 32) * 0x5BD1E995) & WORD))
    return word


def uniform(*keys: Any) -> Any:
    """A float in [0, 1) for the keys: the hash's upper 24 bits, which float32 (torch's default) and float64 hold exactly."""
    return (hash32(*keys) >> 8) / 16777216.0
