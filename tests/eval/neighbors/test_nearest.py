"""Nearest rows and groups against brute force in numpy; bounded blocks change nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from torchmae.eval.neighbors import nearest as module
from torchmae.eval.neighbors.nearest import (
    Space,
    approximate,
    blocks_of,
    close_blocks,
    exact,
    found_blocks,
    groups,
)

CPU = torch.device("cpu")


def unit(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "QUERIES", 7)


def test_features_are_standardized_and_of_unit_length(small_blocks: None) -> None:
    rows = torch.randn(50, 4) * torch.tensor([1.0, 10.0, 0.1, 0.0]) + 3
    other = torch.randn(3, 4)
    space = Space(rows)
    a = rows.double().numpy()
    std = a.std(0, ddof=1)
    std[3] = 1
    by_hand = [(x - a.mean(0)) / std for x in (a, other.double().numpy())]
    by_hand = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in by_hand]
    np.testing.assert_allclose(space.place(other), by_hand[1], atol=1e-5)
    placed = space.place(rows)
    assert placed is rows  # in its own memory
    np.testing.assert_allclose(placed, by_hand[0], atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_nearest_are_those_of_brute_force(small_blocks: None, k: int) -> None:
    rows, queries = unit(77), unit(20, seed=1)
    distances, numbers = exact(rows, CPU)(queries, k)
    by_hand = 1 - queries.double().numpy() @ rows.double().numpy().T
    order = by_hand.argsort(1, kind="stable")[:, :k]
    assert numbers.shape == (20, min(k, 77)) and np.array_equal(numbers, order)
    np.testing.assert_allclose(distances, np.take_along_axis(by_hand, order, 1), atol=1e-6)
    assert exact(rows, CPU)(rows, 1)[1].flatten().tolist() == list(range(77))


def planted(count: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Rows of which some are chained copies, all over the set."""
    rows = unit(count, 16)
    chains = [[3, 40, 71, 12], [5, 6], [70, 2]]
    for chain in chains:
        for one, next_one in pairwise(chain):
            rows[next_one] = torch.nn.functional.normalize(rows[one] + 0.03 * unit(1, 16)[0], dim=0)
    return rows, sorted((sorted(c) for c in chains), key=lambda c: (-len(c), c[0]))


def test_groups_are_what_pairs_link(small_blocks: None) -> None:
    rows, expected = planted(80)
    blocks = list(close_blocks(rows, 0.005, CPU))
    assert len(blocks) == blocks_of(80) == 40 * 41 // 2
    pairs = {tuple(pair) for block in blocks for pair in block.tolist()}
    near = 1 - rows.double().numpy() @ rows.double().numpy().T
    assert pairs == {(i, j) for i, j in np.argwhere(near <= 0.005).tolist() if i < j}
    assert groups(80, iter(blocks)) == expected
    assert groups(80, found_blocks(rows, 0.005, exact(rows, CPU), 8)) == expected


def test_a_set_of_equal_images_is_one_group_in_little_time() -> None:
    rows = unit(1).expand(2500, -1).contiguous()
    assert groups(2500, close_blocks(rows, 0.01, CPU)) == [list(range(2500))]


def test_random_links_are_those_of_union_find() -> None:
    from torchmae.data.quality.duplicates import components

    pairs = torch.randint(0, 300, (200, 2), generator=torch.Generator().manual_seed(0))
    expected = [c for c in components(300, map(tuple, pairs.tolist())) if len(c) > 1]
    assert groups(300, iter(pairs.split(9))) == sorted(expected, key=lambda c: (-len(c), c[0]))


def test_faiss_finds_most_of_them() -> None:
    pytest.importorskip("faiss")
    rows, queries = unit(3000, 16), unit(50, 16, seed=1)
    _, truth = exact(rows, CPU)(queries, 5)
    distances, numbers = approximate(rows, CPU)(queries, 5)
    assert (numbers[:, 0] == truth[:, 0]).float().mean() > 0.9
    assert bool((distances.diff(dim=1) >= 0).all())
    few = approximate(unit(4), CPU)(unit(2), 10)  # one cell
    assert few[1].shape == (2, 4)
