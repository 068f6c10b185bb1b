"""Cutting, picking and putting back patches; positions against formulas written out, and timm's
resizing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from torchmae.errors import UserError
from torchmae.models.patches import (
    check_pixels,
    denormalize,
    gather_tokens,
    grid_of,
    normalize,
    patchify,
    resize_positions,
    scatter_tokens,
    sincos_positions,
    unpatchify,
)

SHAPES = [
    (1, 1, 2, 2, 2),
    (2, 3, 4, 6, 2),
    (2, 5, 9, 3, 3),
    (1, 2, 5, 10, 5),
    (3, 4, 7, 3, 1),
    (1, 3, 16, 8, 8),
]


@pytest.mark.parametrize("batch, channels, height, width, patch", SHAPES)
def test_patchify_equals_loops(batch, channels, height, width, patch):
    images = torch.rand(batch, channels, height, width)
    patches = patchify(images, (patch, patch))
    columns = width // patch
    assert patches.shape == (batch, height // patch * columns, patch * patch * channels)
    for n in range(patches.shape[1]):
        top, left = n // columns * patch, n % columns * patch
        value = 0
        for y in range(patch):
            for x in range(patch):
                for c in range(channels):
                    assert torch.equal(patches[:, n, value], images[:, c, top + y, left + x])
                    value += 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 8),
    st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.bool]),
)
def test_unpatchify_is_the_inverse(batch, channels, rows, columns, patch, dtype):
    images = (torch.rand(batch, channels, rows * patch, columns * patch) * 256).to(dtype)
    patches = patchify(images, (patch, patch))
    assert grid_of(tuple(images.shape[2:]), (patch, patch)) == (rows, columns)
    back = unpatchify(patches, (patch, patch), (rows, columns))
    assert back.dtype == dtype and torch.equal(back, images)
    assert torch.equal(patchify(back, (patch, patch)), patches)


@pytest.mark.parametrize(
    "size, patch, hint",
    [
        ((224, 225), 16, "224x224"),
        ((30, 64), 16, "32x64"),
        ((5, 5), 8, "8x8"),
        ((8, 8), 0, "8x8"),
        ((0, 8), 8, "8x8"),
    ],
)
def test_sizes_that_do_not_divide(size, patch, hint):
    with pytest.raises(
        UserError, match=f"{size[0]}x{size[1]} is not divisible by patch size {patch}.*{hint}"
    ):
        grid_of(size, (patch, patch))


def test_patchify_refuses_what_does_not_divide():
    with pytest.raises(UserError, match="10x12 is not divisible by patch size 4"):
        patchify(torch.zeros(1, 3, 10, 12), (4, 4))


@pytest.mark.parametrize("count, values, grid", [(5, 12, (2, 3)), (6, 13, (2, 3)), (6, 12, (3, 3))])
def test_unpatchify_refuses_what_does_not_fit(count, values, grid):
    with pytest.raises(UserError, match=f"{count} patches of {values} values"):
        unpatchify(torch.zeros(1, count, values), (2, 2), grid)


def test_take_and_put():
    tokens, new = torch.rand(3, 7, 4), torch.rand(3, 2, 4)
    ids = torch.tensor([[0, 6], [3, 1], [5, 5]])
    picked = gather_tokens(tokens, ids)
    for b in range(3):
        for k in range(2):
            assert torch.equal(picked[b, k], tokens[b, ids[b, k]])
    shared = gather_tokens(tokens[:1], ids)
    assert all(torch.equal(shared[b, k], tokens[0, ids[b, k]]) for b in range(3) for k in range(2))

    ids[2] = torch.tensor([5, 2])
    before = tokens.clone()
    placed = scatter_tokens(tokens, ids, new)
    assert torch.equal(tokens, before), "put must copy"
    assert torch.equal(gather_tokens(placed, ids), new)
    assert torch.equal(scatter_tokens(placed, ids, gather_tokens(tokens, ids)), tokens)
    untouched = torch.ones(3, 7, dtype=torch.bool).scatter(1, ids, False)
    assert torch.equal(placed[untouched], tokens[untouched])


@pytest.mark.parametrize(
    "rows, columns, dim", [(1, 1, 4), (2, 3, 8), (5, 2, 12), (3, 7, 64), (1, 9, 16), (14, 14, 20)]
)
def test_sincos_equals_the_formula(rows, columns, dim):
    table = sincos_positions((rows, columns), dim)
    assert table.shape == (1, 1 + rows * columns, dim) and table.dtype == torch.float32
    assert table[0, 0].tolist() == [0.0] * dim
    half, quarter = dim // 2, dim // 4
    for row in range(rows):
        for column in range(columns):
            for d in range(dim):
                coordinate = column if d < half else row  # width first
                angle = coordinate / 10000 ** ((d % half % quarter) / quarter)
                expected = math.sin(angle) if d % half < quarter else math.cos(angle)
                assert table[0, 1 + row * columns + column, d].item() == pytest.approx(
                    expected, abs=1e-7
                )


def test_sincos_rows_differ():
    table = sincos_positions((8, 32), 16)[0]
    assert len(table.unique(dim=0)) == 1 + 8 * 32
    assert not torch.equal(table, sincos_positions((16, 16), 16)[0])


@pytest.mark.parametrize("dim", [2, 6, 10, 65])
def test_sincos_needs_four(dim):
    with pytest.raises(UserError, match=f"divisible by 4, not {dim}"):
        sincos_positions((2, 2), dim)


GRIDS = [(4, 4), (2, 3), (7, 5), (14, 14), (8, 2), (3, 3)]


@pytest.mark.parametrize("old", GRIDS)
@pytest.mark.parametrize("new", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resizing_equals_timm(old, new, dtype):
    positions = torch.randn(1, 1 + math.prod(old), 12).to(dtype)
    resized = resize_positions(positions, old, new)
    expected = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=1)
    assert resized.dtype == dtype and torch.equal(resized, expected)
    assert torch.equal(resized[:, 0], positions[:, 0])
    if old == new:
        assert torch.equal(resized, positions)


def test_resizing_by_the_references_rule():
    """`interpolate_pos_embed`: bicubic without antialiasing; timm's differs when enlarging too."""
    positions = sincos_positions((14, 14), 64)
    table = positions[:, 1:].reshape(1, 14, 14, 64).permute(0, 3, 1, 2)
    for new in ((28, 28), (24, 24), (7, 10)):
        plain = F.interpolate(table, size=new, mode="bicubic", align_corners=False)
        resized = resize_positions(positions, (14, 14), new, "reference")
        assert torch.equal(resized[:, 1:], plain.flatten(2).transpose(1, 2))
        assert torch.equal(resized[:, :1], positions[:, :1])
        apart = (resized - resize_positions(positions, (14, 14), new)).abs().max()
        assert 0.03 < apart < (0.06 if min(new) > 14 else 0.2)
    with pytest.raises(UserError, match="unknown position resizing 'bilinear'; one of: timm, ref"):
        resize_positions(positions, (14, 14), (7, 7), "bilinear")


@pytest.mark.parametrize("rows, old", [(1 + 256, (14, 14)), (16, (4, 4)), (1, (1, 1))])
def test_resizing_refuses_a_table_of_another_grid(rows, old):
    with pytest.raises(
        UserError, match=f"has {rows} rows, a {old[0]}x{old[1]} grid needs {1 + math.prod(old)}"
    ):
        resize_positions(torch.zeros(1, rows, 8), old, (3, 3))


STATISTICS = [
    ((0.5,), (0.5,)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.0, 0.1, 0.9, 1.0), (1.0, 0.01, 0.3, 0.999)),
]


@pytest.mark.parametrize("mean, std", STATISTICS)
def test_all_pixel_values_come_back(mean, std):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, len(mean), -1, -1)
    statistics = torch.tensor([mean, std]).view(2, -1, 1, 1)
    floats = normalize(images, statistics)
    for c in range(len(mean)):
        expected = [(value / 255 - mean[c]) / std[c] for value in range(256)]
        assert floats.dtype == torch.float32
        assert floats[1, c].flatten().tolist() == pytest.approx(expected, abs=2e-7 / std[c])
    back = denormalize(floats, statistics)
    assert back.dtype == torch.uint8 and torch.equal(back, images)


def test_denormalize_rounds_and_clamps():
    values = torch.tensor(
        [-9.0, -1e-3, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 1.001, 7.0]
    ).view(1, 1, 2, 4)
    assert denormalize(values, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).flatten().tolist() == [
        0,
        0,
        0,
        1,
        254,
        255,
        255,
        255,
    ]


def test_what_is_no_batch_of_pixels_is_refused():
    image = np.zeros((5, 7, 3), dtype=np.uint8)
    check_pixels(torch.zeros(2, 3, 5, 7, dtype=torch.uint8), 3, True)
    check_pixels(torch.zeros(2, 3, 5, 7), 3, False)
    for wrong in (image, image[None], torch.from_numpy(image), [image], None):
        with pytest.raises(UserError, match=r"a tensor \[B, 3, H, W\] is needed"):
            check_pixels(wrong, 3, True)
    with pytest.raises(UserError, match="images of float32: .* give uint8"):
        check_pixels(torch.zeros(2, 3, 5, 7), 3, True)
