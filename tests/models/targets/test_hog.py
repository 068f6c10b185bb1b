"""Histograms of oriented gradients against a loop over pixels."""

import math

import pytest
import torch

from torchmae.models.targets import build_target
from torchmae.models.targets.hog import BINS


def by_loops(image: torch.Tensor, cell: int) -> torch.Tensor:
    """[rows of cells, columns of cells, channels, bins]."""
    channels, height, width = image.shape
    found = torch.zeros(height // cell, width // cell, channels, BINS, dtype=torch.float64)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                right, left = image[c, y, min(x + 1, width - 1)], image[c, y, max(x - 1, 0)]
                lower, upper = image[c, min(y + 1, height - 1), x], image[c, max(y - 1, 0), x]
                dx, dy = float(right - left), float(lower - upper)
                degrees = math.degrees(math.atan2(dy, dx)) % 180
                found[y // cell, x // cell, c, int(degrees // 20) % BINS] += math.hypot(dx, dy)
    return found / found.norm(dim=3, keepdim=True).clamp_min(1e-12)


@pytest.mark.parametrize(
    "patch, cell, channels", [((4, 4), 4, 3), ((16, 16), 8, 1), ((4, 8), 4, 2)]
)
def test_histograms_are_those_of_a_loop(patch, cell, channels):
    torch.manual_seed(0)
    image = torch.randn(channels, 32, 32, dtype=torch.float64)
    target = build_target("hog", patch, channels, (0.5,) * channels, (0.5,) * channels)
    rows, columns = 32 // patch[0], 32 // patch[1]
    ids = torch.randperm(rows * columns)[None]
    found = target(image[None], ids)[0]
    assert found.shape == (rows * columns, target.width)
    cells = by_loops(image, cell)
    down, across = patch[0] // cell, patch[1] // cell
    for k, i in enumerate(ids[0].tolist()):
        row, column = i // columns * down, i % columns * across
        wanted = cells[row : row + down, column : column + across]
        torch.testing.assert_close(found[k], wanted.flatten())


def test_an_edge_is_in_the_bin_of_its_direction_whatever_its_contrast_and_sign():
    target = build_target("hog", (8, 8), 1, (0.5,), (0.5,))
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ids = torch.tensor([[0]])
    for degrees in range(10, 180, 20):  # the middle of each bin
        angle = math.radians(degrees)
        ramp = columns * math.cos(angle) + rows * math.sin(angle)
        inner = []
        for factor in (1.0, -1.0, 100.0):
            inner.append(target((factor * ramp)[None, None], ids)[0, 0])
        assert all(histogram.argmax() == degrees // 20 for histogram in inner)
        torch.testing.assert_close(inner[0], inner[2])
    flat = target(torch.full((1, 1, 8, 8), 3.0), ids)
    assert flat.isfinite().all() and not flat.any()
