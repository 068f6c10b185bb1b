"""The nearest of many features: exactly by blocks of products, or approximately by faiss."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.errors import library

BLOCK = 8192  # rows that are compared at a time: with 1,024 queries 32 MB of products
QUERIES = 1024
PARTS = 8  # of a block whose pairs are listed: all of them may be close

Found = tuple[Float[Tensor, "Q k"], Int64[Tensor, "Q k"]]
# Queries of unit length, and how many are wanted, to distances and numbers, the nearest first.
Search = Callable[[Float[Tensor, "Q F"], int], Found]


class Space:
    """Where features are compared: standardized by the mean and std of a set, of unit length.

    As `mae knn` compares them (Wu et al. 2018): the distance is 1 - cosine, 0 to 2.

    Args:
        features: of the set; their statistics are summed in float64, block by block.
    """

    def __init__(self, features: Float[Tensor, "N F"]):
        count = len(features)
        total = torch.zeros(features.shape[1], dtype=torch.float64)
        for rows in features.split(BLOCK):
            total += rows.double().sum(0)
        mean = total / count
        square = torch.zeros_like(mean)
        for rows in features.split(BLOCK):
            square += (rows.double() - mean).square().sum(0)
        std = (square / max(1, count - 1)).sqrt()
        self.mean = mean.float()
        # What is constant in the set must not decide where it is not constant in a query.
        self.std = torch.where(std > 1e-6, std, 1.0).float()

    def place(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """Features in the space, in the memory that they are in: a million of them are large."""
        for rows in features.split(BLOCK):
            rows.copy_(F.normalize((rows - self.mean) / self.std, dim=1))
        return features


def exact(rows: Float[Tensor, "N F"], device: torch.device) -> Search:
    """A search by products with every row, in blocks; of equal distances the first row wins."""

    def search(queries: Float[Tensor, "Q F"], count: int) -> Found:
        wanted = min(count, len(rows))
        distances, numbers = [], []
        for some in queries.split(QUERIES):
            some = some.to(device)
            best = torch.full((len(some), 0), 0.0, device=device)
            ids = torch.full((len(some), 0), 0, dtype=torch.int64, device=device)
            for first in range(0, len(rows), BLOCK):
                block = rows[first : first + BLOCK].to(device)
                near, at = (some @ block.T).topk(min(wanted, len(block)), dim=1)
                best, ids = torch.cat([best, near], 1), torch.cat([ids, at + first], 1)
                best, kept = best.topk(min(wanted, best.shape[1]), dim=1)
                ids = ids.gather(1, kept)
            distances.append((1 - best).cpu())
            numbers.append(ids.cpu())
        return in_order(torch.cat(distances), torch.cat(numbers))

    return search


def in_order(distances: Float[Tensor, "Q k"], numbers: Int64[Tensor, "Q k"]) -> Found:
    """Sorted by distance, those of equal distance by number."""
    by_number = numbers.argsort(dim=1)
    distances, numbers = distances.gather(1, by_number), numbers.gather(1, by_number)
    order = distances.argsort(dim=1, stable=True)
    return distances.gather(1, order).clamp(min=0), numbers.gather(1, order)


def approximate(rows: Float[Tensor, "N F"], device: torch.device) -> Search:
    """A search by faiss, which looks into the 64 nearest of 4 sqrt(N) cells: it may miss some.

    Args:
        rows: of unit length.
        device: not used; faiss computes on the CPU.

    Raises:
        UserError: faiss is not installed.
    """
    faiss = library("faiss", "faiss")
    cells = max(1, min(round(4 * math.sqrt(len(rows))), len(rows) // 39))  # faiss wants 39 a cell
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.train(rows[:: max(1, len(rows) // (64 * cells))].contiguous().numpy())
    index.nprobe = min(64, cells)
    for some in rows.split(BLOCK):
        index.add(some.numpy())

    def search(queries: Float[Tensor, "Q F"], count: int) -> Found:
        near, ids = index.search(queries.numpy(), min(count, len(rows)))
        missing = ids < 0  # the cells that were looked into have fewer
        near[missing] = -1.0
        return in_order(1 - torch.from_numpy(near), torch.from_numpy(ids))

    return search


INDEXES: dict[str, Callable[[Float[Tensor, "N F"], torch.device], Search]] = {
    "exact": exact,
    "faiss": approximate,
}


def close_blocks(
    rows: Float[Tensor, "N F"], most: float, device: torch.device
) -> Iterator[Int64[Tensor, "P 2"]]:
    """All pairs of rows at a distance of at most `most`, the lower number first, block by block."""
    size = BLOCK // PARTS
    for top in range(0, len(rows), size):
        some = rows[top : top + size].to(device)
        for left in range(top, len(rows), size):
            near = some @ rows[left : left + size].to(device).T >= 1 - most
            pairs = near.nonzero().cpu() + torch.tensor([top, left])
            yield pairs[pairs[:, 0] < pairs[:, 1]]


def blocks_of(count: int) -> int:
    """How many blocks `close_blocks` gives."""
    sides = -(-count // (BLOCK // PARTS))
    return sides * (sides + 1) // 2


def found_blocks(
    rows: Float[Tensor, "N F"], most: float, search: Search, count: int
) -> Iterator[Int64[Tensor, "P 2"]]:
    """Pairs among each row's `count` nearest, as far as a search finds them."""
    for first in range(0, len(rows), QUERIES):
        distances, numbers = search(rows[first : first + QUERIES], count)
        row, column = ((distances <= most) & (numbers >= 0)).nonzero(as_tuple=True)
        other = numbers[row, column]
        pairs = torch.stack([row + first, other], dim=1).sort(dim=1).values
        yield pairs[pairs[:, 0] < pairs[:, 1]]


def groups(count: int, blocks: Iterator[Int64[Tensor, "P 2"]]) -> list[list[int]]:
    """What pairs link: groups of two and more, the largest first, then by their first number.

    Each block is reduced to the labels that it joins, so that a million equal rows take no more
    memory than a million different ones.

    Args:
        count: of the rows.
        blocks: pairs of their numbers.
    """
    label = torch.arange(count)
    for pairs in blocks:
        ends = label[pairs]
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            continue
        names, ends = ends.unique(return_inverse=True)
        joined = torch.arange(len(names))
        # The lowest label spreads along the pairs until nothing changes.
        while True:
            low = joined[ends].amin(1)
            spread = joined.clone()
            for side in (0, 1):
                spread.scatter_reduce_(0, ends[:, side], low, "amin")
            spread = spread[spread]
            if torch.equal(spread, joined):
                break
            joined = spread
        new = torch.arange(count)
        new[names] = names[joined]
        label = new[label]
    order = label.argsort(stable=True)
    _, sizes = label[order].unique_consecutive(return_counts=True)
    found = [part.tolist() for part in order.split(sizes.tolist()) if len(part) > 1]
    return sorted(found, key=lambda group: (-len(group), group[0]))
