"""Copies are found as brute force finds them; leakage is named once for each image."""

import numpy as np
from helpers.looks import smooth

from torchmae.data.quality.duplicates import (
    LEAST_CORRELATION,
    MOST_BITS,
    Duplicates,
    Leak,
    close_pairs,
    components,
    find_duplicates,
    leaks,
    standardized,
)
from torchmae.data.quality.phash import phash, shrink, thumb


def test_the_pairs_are_those_of_brute_force() -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 1 << 63, 700, dtype=np.uint64)
    for k in range(300, 700):  # copies with 0 to 12 other bits
        bits = draw.choice(64, draw.integers(0, 13), replace=False).astype(np.uint64)
        hashes[k] = hashes[k - 300] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=0)
    thumbs = draw.integers(0, 256, (350, 256), dtype=np.uint8)
    looks = standardized(np.concatenate([thumbs, thumbs]))
    found = set(close_pairs(hashes, looks))
    wanted = set()
    for i in range(700):
        for k in range(i + 1, 700):
            near = (int(hashes[i]) ^ int(hashes[k])).bit_count() <= MOST_BITS
            if near and np.corrcoef(looks[i], looks[k])[0, 1] >= LEAST_CORRELATION:
                wanted.add((i, k))
    assert found == wanted
    unlimited = standardized(np.tile(thumbs[:1], (700, 1)))  # all look the same: hashes decide
    assert len(set(close_pairs(hashes, unlimited))) > 150


def test_blocks_do_not_matter(monkeypatch) -> None:
    hashes = np.arange(50, dtype=np.uint64)
    looks = standardized(np.tile(np.arange(256, dtype=np.uint8), (50, 1)))
    whole = set(close_pairs(hashes, looks))
    monkeypatch.setattr("torchmae.data.quality.duplicates.BLOCK", 7)
    assert set(close_pairs(hashes, looks)) == whole
    assert len(whole) == 50 * 49 // 2


def test_groups_are_what_pairs_link() -> None:
    assert components(7, [(5, 1), (1, 3), (6, 0)]) == [[0, 6], [1, 3, 5], [2], [4]]


def test_exact_and_near_groups() -> None:
    pictures = [smooth(0), smooth(1), smooth(0), smooth(0, 60, 45), smooth(2), smooth(1)]
    grey = [shrink(pixels) for pixels in pictures]
    digests = [b"%d%d" % (int(pixels.sum()), pixels.size) for pixels in pictures]
    found = find_duplicates(
        digests,
        np.array([phash(one) for one in grey], dtype=np.uint64),
        np.stack([thumb(one) for one in grey]),
        np.arange(6),
    )
    assert found == Duplicates([[0, 2], [1, 5]], [[0, 2, 3]])
    parts = ["val", "train", "train", "val", "test", "test"]
    assert leaks(found, parts, digests) == [Leak(0, 2, True), Leak(3, 2, False), Leak(5, 1, True)]
    assert leaks(found, [""] * 6, digests) == []
