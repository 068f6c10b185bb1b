"""Copies are found as brute force finds them; leakage is named once for each image."""

import numpy as np
from helpers.looks import smooth

from torchmae.data.quality.duplicates import (
    CERTAIN,
    LEAST_CORRELATION,
    MOST_BITS,
    Duplicates,
    Leak,
    close_pairs,
    components,
    find_duplicates,
    leaks,
    similar_pairs,
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


def test_similar_pairs_are_those_of_the_whole_matrix(monkeypatch) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = {(i, j) for i in range(60) for j in range(i + 1, 60) if rows[i] @ rows[j] >= 0.8}
    assert len(wanted) > 10
    for block in (7, 512):
        monkeypatch.setattr("torchmae.data.quality.duplicates.BLOCK", block)
        assert set(similar_pairs(rows, 0.8)) == wanted


def test_groups_are_what_pairs_link() -> None:
    assert components(7, [(5, 1), (1, 3), (6, 0)]) == [[0, 6], [1, 3, 5], [2], [4]]


def test_exact_and_near_groups() -> None:
    pictures = [smooth(0), smooth(1), smooth(0), smooth(0, 60, 45), smooth(2), smooth(1)]
    grey = [shrink(pixels) for pixels in pictures]
    digests = [b"%d%d" % (int(pixels.sum()), pixels.size) for pixels in pictures]
    hashes = np.array([phash(one) for one in grey], dtype=np.uint64)
    thumbs = np.stack([thumb(one) for one in grey])
    found = find_duplicates(digests, hashes, thumbs, np.arange(6))
    assert found == Duplicates([[0, 2], [1, 5]], [[0, 2, 3]])
    parts = ["val", "train", "train", "val", "test", "test"]
    leaked = leaks(found, parts, digests, thumbs)
    assert [leak[:3] for leak in leaked] == [(0, 2, True), (3, 2, False), (5, 1, True)]
    assert leaked[0].certain and leaked[2].certain and 0.985 < leaked[1].likeness < 1
    assert leaks(found, [""] * 6, digests, thumbs) == []


def test_a_leak_names_the_most_alike_image_and_is_a_copy_only_if_nearly_equal() -> None:
    """A chain: 0 is like 1, 1 is like 2; the last is the validation image."""
    rows = np.random.default_rng(0).normal(128, 30, (3, 256))
    chain = np.stack([rows[0], rows[0] + rows[1] / 12, rows[0] + rows[1] / 6])
    thumbs = chain.clip(0, 255).astype(np.uint8)
    found = Duplicates([], [[0, 1, 2]])
    (leak,) = leaks(found, ["train", "train", "val"], [b"a", b"b", b"c"], thumbs)
    assert (leak.image, leak.copy, leak.exact) == (2, 1, False)
    expected = np.corrcoef(thumbs[1].astype(float), thumbs[2].astype(float))[0, 1]
    assert abs(leak.likeness - expected) < 1e-5 and leak.certain == (expected >= CERTAIN)
    assert not Leak(2, 1, False, 0.99).certain
