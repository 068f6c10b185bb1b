"""Images that are copies of others: the same pixels, or nearly the same look; also across parts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64

# Hashes that differ in at most 7 of their 64 bits agree in one of their 8 bytes at least, so that
# only images with a byte in common are compared.
MOST_BITS = 7
# Correlation of two thumbnails: of pairs with close hashes, this tells copies from relatives.
LEAST_CORRELATION = 0.985
# Of copies in half the size or as JPEG of quality 30: at least so much in 99 % of 700 photos. Of
# slices of one patient: less in 79 of 93 pairs (measured).
CERTAIN = 0.998
BLOCK = 512  # rows that are compared at a time

Groups = list[list[int]]


class Duplicates(NamedTuple):
    """Groups of images, by their numbers, in the order of the set.

    `exact`: those of a group have the same pixels. `near`: those of a group are linked by pairs
    that look the same, and do not all have the same pixels.
    """

    exact: Groups
    near: Groups


class Leak(NamedTuple):
    """An image of a part, and the one of a part before it that is most like it.

    `likeness` is the correlation of their thumbnails, 1 where they have the same pixels.
    """

    image: int
    copy: int
    exact: bool
    likeness: float

    @property
    def certain(self) -> bool:
        """Whether it is a copy, and not only alike as two frames of a video are."""
        return self.likeness >= CERTAIN


def find_duplicates(
    digests: Sequence[bytes],
    hashes: UInt64[np.ndarray, " N"],
    thumbs: UInt8[np.ndarray, "N P"],
    ids: Int64[np.ndarray, " M"],
) -> Duplicates:
    """Groups of copies among some images.

    Args:
        digests: of the pixels of each image.
        hashes: of each image, see `phash`.
        thumbs: of each image, see `thumb`.
        ids: the images that are compared; blank ones all look the same and are left out.
    """
    return grouped(digests, ids, lambda some: close_pairs(hashes[some], standardized(thumbs[some])))


def grouped(
    digests: Sequence[bytes],
    ids: Int64[np.ndarray, " M"],
    pairs: Callable[[Int64[np.ndarray, " K"]], Iterable[tuple[int, int]]],
) -> Duplicates:
    """Groups of copies among some images, by a measure of likeness.

    Args:
        digests: of the pixels of each image.
        ids: the images that are compared.
        pairs: of K images with different pixels the pairs that are alike, by their places.
    """
    same: dict[bytes, list[int]] = defaultdict(list)
    for i in ids.tolist():
        same[digests[i]].append(i)
    firsts = np.array([group[0] for group in same.values()], dtype=np.int64)
    linked = components(len(firsts), pairs(firsts))
    members = list(same.values())
    near = [sorted(i for k in group for i in members[k]) for group in linked if len(group) > 1]
    return Duplicates([group for group in members if len(group) > 1], near)


def close_pairs(
    hashes: UInt64[np.ndarray, " K"], looks: Float32[np.ndarray, "K P"]
) -> Iterator[tuple[int, int]]:
    """Pairs of images whose hashes and thumbnails are close; some of them more than once."""
    for byte in range(8):
        keys = (hashes >> np.uint64(8 * byte)) & np.uint64(255)
        order = np.argsort(keys, kind="stable")
        ends = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, ends):
            for first in range(0, len(bucket), BLOCK):
                rows, rest = bucket[first : first + BLOCK], bucket[first:]
                differ = np.bitwise_count(hashes[rows, None] ^ hashes[None, rest])
                one, other = np.nonzero(differ <= MOST_BITS)
                later = other > one
                left, right = rows[one[later]], rest[other[later]]
                alike = np.einsum("kp,kp->k", looks[left], looks[right]) >= LEAST_CORRELATION
                yield from zip(left[alike].tolist(), right[alike].tolist())


def similar_pairs(features: Float32[np.ndarray, "K F"], least: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows of length one whose product is at least so large, found in blocks."""
    for first in range(0, len(features), BLOCK):
        block = features[first : first + BLOCK] @ features[first:].T
        one, other = np.nonzero(block >= least)
        later = other > one
        yield from zip((first + one[later]).tolist(), (first + other[later]).tolist())


def standardized(thumbs: UInt8[np.ndarray, "K P"]) -> Float32[np.ndarray, "K P"]:
    """Thumbnails whose products are correlations: without mean, of length one."""
    rows = thumbs - thumbs.mean(axis=1, keepdims=True, dtype=np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


def components(count: int, pairs: Iterable[tuple[int, int]]) -> Groups:
    """What the pairs link, each in order (union-find)."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(count):
        groups[root(i)].append(i)
    return list(groups.values())


def leaks(
    found: Duplicates,
    parts: Sequence[str],
    digests: Sequence[bytes],
    thumbs: UInt8[np.ndarray, "N P"],
) -> list[Leak]:
    """The images that have a copy in a part before theirs ("train" before all others), each once.

    Args:
        found: the groups of all parts together.
        parts: of each image.
        digests: of the pixels of each image.
        thumbs: of each image.
    """
    order = {part: k for k, part in enumerate(sorted(set(parts), key=rank))}
    leaked: dict[int, Leak] = {}
    for group in [*found.exact, *found.near]:
        looks = standardized(thumbs[group])
        for k, i in enumerate(group):
            before = [n for n, j in enumerate(group) if order[parts[j]] < order[parts[i]]]
            if not before or i in leaked:  # exact groups come first
                continue
            likeness = looks[before] @ looks[k]
            same = [n for n in before if digests[group[n]] == digests[i]]
            best = same[0] if same else before[int(likeness.argmax())]
            leaked[i] = Leak(i, group[best], bool(same), 1.0 if same else float(likeness.max()))
    return sorted(leaked.values())


def rank(part: str) -> tuple[bool, str]:
    """Sorts parts: what is trained on first."""
    return not part.lower().startswith(("train", "unlab")), part
