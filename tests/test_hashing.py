"""The hash behind all random choices of a run: the same bits everywhere, and well distributed."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmae import hashing
from torchmae.hashing import WORD, hash32, mix, uniform

KEYS = st.integers(min_value=0, max_value=2**62)


def z_of_chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic as a z-score; the normal approximation holds for many cells."""
    expected = counts.sum() / counts.size
    assert expected > 5
    freedom = counts.size - 1
    return (((counts - expected) ** 2).sum() / expected - freedom) / (2 * freedom) ** 0.5


@pytest.fixture(autouse=True)
def no_overflow():
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


@settings(max_examples=200, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=5))
def test_ints_arrays_and_tensors_give_the_same_bits(keys):
    expected = hash32(*keys)
    assert isinstance(expected, int) and 0 <= expected <= WORD
    assert int(hash32(*(np.int64(key) for key in keys))) == expected
    assert hash32(*(np.array([key, key]) for key in keys)).tolist() == [expected] * 2
    assert hash32(*(torch.tensor([key, key]) for key in keys)).tolist() == [expected] * 2
    # Mixed, as the library calls it: seed and stream as ints, arrays for the rest.
    assert int(hash32(*keys[:-1], np.int64(keys[-1]))) == expected
    assert hash32(*keys[:-1], torch.tensor(keys[-1])).item() == expected
    assert hash32(np.array([keys[0]]), *keys[1:]).dtype == np.int64


@settings(max_examples=200, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=3))
def test_uniform_is_the_same_number_everywhere(keys):
    expected = uniform(*keys)
    assert 0 <= expected < 1
    assert uniform(*(np.int64(key) for key in keys)) == expected
    assert uniform(*(torch.tensor(key) for key in keys)).item() == expected


def unmix(word):
    """The inverse of `mix`: xorshifts undo themselves, odd factors have inverses mod 2**32."""
    word ^= word >> 15 ^ word >> 30
    word = word * pow(0x735A2D97, -1, 2**32) & WORD
    word ^= word >> 15 ^ word >> 30
    word = word * pow(0x21F0AAAD, -1, 2**32) & WORD
    return word ^ word >> 16


@pytest.mark.parametrize("word", [WORD, WORD - 1, WORD - 127])
def test_uniform_never_reaches_one(word):
    """In float32, torch's result of a division, these words / 2**32 are 1.0: a crop outside."""
    key = unmix(word) ^ hash32()
    assert hash32(key) == word
    assert (torch.tensor(word) / 2**32).item() == 1.0
    assert 0.9999999 < uniform(torch.tensor(key)).item() == uniform(key) < 1


def test_uniform_moments():
    draws = uniform(3, torch.arange(2**18)).double()
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean().item() - 1 / 2) < 4 / (12 * len(draws)) ** 0.5
    assert abs(draws.square().mean().item() - 1 / 3) < 4 * (4 / 45 / len(draws)) ** 0.5


def test_broadcasting():
    epoch, sample = np.arange(3)[:, None], np.arange(5)[None]
    table = hash32(1, hashing.CROP, epoch, sample)
    assert table.shape == (3, 5)
    assert table[2, 4] == hash32(1, hashing.CROP, 2, 4)


def test_mix_is_a_bijection():
    words = mix(np.arange(2**31 - 2**19, 2**31 + 2**19, dtype=np.int64))
    assert words.min() >= 0 and words.max() <= WORD
    assert len(np.unique(words)) == 2**20
    inputs = [*range(2000), *range(2**31 - 1000, 2**31 + 1000), *range(2**32 - 2000, 2**32)]
    assert [unmix(mix(word)) for word in inputs] == inputs


def test_one_key_collides_only_beyond_32_bits():
    assert len(np.unique(hash32(9, np.arange(2**18)))) == 2**18
    # Keys that differ only in their upper half differ, too.
    assert len({hash32(5 + (high << 32)) for high in range(1000)}) == 1000


@pytest.mark.parametrize("bit", [0, 1, 7, 15, 16, 24, 31, 32, 40, 61])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_avalanche(bit, position):
    """One flipped bit of any key flips each bit of the word half of the time."""
    count = 4000
    keys = [np.arange(count) + 11, np.arange(count) * 3, np.arange(count) * 7 + 1]
    before = hash32(*keys)
    keys[position] = keys[position] ^ (1 << bit)
    flipped = (before ^ hash32(*keys))[:, None] >> np.arange(32) & 1
    assert abs(flipped.mean() - 0.5) < 0.01
    assert np.abs(flipped.mean(axis=0) - 0.5).max() < 0.05


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_uniform_bytes(shift):
    """Every byte of the word is uniform over consecutive samples, epochs and seeds."""
    run = np.arange(2**17)
    for words in (
        hash32(0, 2, 0, run),
        hash32(0, 2, run, 0),
        hash32(run, 2, 0, 0),
        hash32(0, 2, 0, 5, run),
    ):
        assert abs(z_of_chi_square(np.bincount(words >> shift & 255, minlength=256))) < 4.5


@pytest.mark.parametrize("name", ["streams", "samples", "epochs", "seeds", "swapped"])
def test_pairs_are_independent(name):
    """The joint table of two words' nibbles is flat: streams, samples, seeds are independent."""
    run = np.arange(2**17)
    first = hash32(3, 1, 0, run)
    second = {
        "streams": hash32(3, 2, 0, run),
        "samples": hash32(3, 1, 0, run + 1),
        "epochs": hash32(3, 1, 1, run),
        "seeds": hash32(4, 1, 0, run),
        "swapped": hash32(3, 1, run, 0),
    }[name]
    if name == "swapped":  # at run = 0 they are the same
        first, second = first[1:], second[1:]
    for shift in (0, 14, 28):
        cells = (first >> shift & 15) * 16 + (second >> shift & 15)
        assert abs(z_of_chi_square(np.bincount(cells, minlength=256))) < 4.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / len(run) ** 0.5


def test_order_of_keys_and_their_number_matter():
    keys = [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,), (2,)]
    assert len({hash32(*key) for key in keys}) == len(keys)


def test_streams_differ():
    streams = [value for name, value in vars(hashing).items() if name.isupper() and name != "WORD"]
    assert sorted(streams) == list(range(20))


def test_golden_values():
    """Changing the hash changes every run that was made with it."""
    mixed = [0, 2261973619, 3770504306, 2578835075]
    assert [mix(word) for word in (0, 1, 2**31, 2**32 - 1)] == mixed
    keys = [(), (0,), (0, 0), (1, 2, 3), (2**32,), (2**62, 7)]
    words = [461845907, 3471147654, 3124714641, 864792404, 4064405151, 1488359060]
    assert [hash32(*key) for key in keys] == words
