"""Every masking: a partition with equal counts, a function of (seed, epoch, sample) alone; and each
one's own promise."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from torchmae.errors import UserError
from torchmae.hashing import BLOCK, GREEN, MASK, hash32
from torchmae.models import masking
from torchmae.models.mae import MAE, training_flops
from torchmae.models.masking import MASKINGS, MaskGenerator, gaussian, noise, num_visible
from torchmae.models.vit import ViT

GRIDS = [(2, 2), (4, 4), (3, 5), (7, 7), (14, 14), (8, 32), (32, 8), (1, 16), (12, 9)]
RATIOS = [0.1, 0.5, 0.75, 0.9]
NAMES = sorted(MASKINGS)


def scores(grid, samples=8, seed=0, epoch=0, first=0):
    return noise(
        seed, torch.full((samples,), epoch), torch.arange(first, first + samples), math.prod(grid)
    )


def wanted(patches, ratio):
    """floor(N * (1 - ratio)) of the decimal number that the user wrote, in exact arithmetic; one
    less where it is a whole number that floats miss."""
    exact = patches * (1 - Fraction(str(ratio)))
    return math.floor(exact) - (exact.denominator == 1 and patches * (1.0 - ratio) < exact)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_partition(name, grid, ratio):
    patches, values = math.prod(grid), scores(grid)
    count = wanted(patches, ratio)
    if count == 0:
        with pytest.raises(
            UserError, match=f"mask ratio {ratio} leaves 0 of {patches} patches visible"
        ):
            MASKINGS[name](values, grid, ratio)
        return
    before = values.clone()
    mask = MASKINGS[name](values, grid, ratio)
    assert mask.keep.shape == (8, count) and mask.hide.shape == (8, patches - count)
    assert mask.keep.dtype == mask.hide.dtype == torch.int64
    assert torch.equal(
        torch.cat(mask, dim=1).sort(dim=1).values, torch.arange(patches).expand(8, -1)
    )
    again = MASKINGS[name](values, grid, ratio)
    assert torch.equal(mask.keep, again.keep) and torch.equal(mask.hide, again.hide)
    assert torch.equal(values, before)


@pytest.mark.parametrize("grid", [(4, 4), (8, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_their_batch(name, grid):
    epoch, sample = torch.tensor([0, 5, 2, 0, 9]), torch.tensor([3, 1, 4, 1, 2**40])
    whole = MASKINGS[name](noise(1, epoch, sample, math.prod(grid)), grid, 0.75)
    for i in range(5):
        alone = MASKINGS[name](
            noise(1, epoch[i : i + 1], sample[i : i + 1], math.prod(grid)), grid, 0.75
        )
        assert torch.equal(alone.keep[0], whole.keep[i]) and torch.equal(
            alone.hide[0], whole.hide[i]
        )


@pytest.mark.parametrize("name", ["random", "block"])
def test_seed_epoch_and_sample_all_change_the_mask(name):
    def hidden(**places):
        mask = MASKINGS[name](scores((14, 14), **places), (14, 14), 0.75)
        return mask.hide.sort(dim=1).values

    base = hidden()
    assert len({tuple(row) for row in base.tolist()}) == 8, "samples differ among each other"
    for other in (hidden(seed=1), hidden(epoch=1), hidden(first=100)):
        assert (other != base).any(dim=1).all()
    assert torch.equal(hidden(first=3)[:5], base[3:])


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_keeps_its_mask_wherever_it_stands(name):
    mask = MASKINGS[name](scores((6, 6)), (6, 6), 0.75)
    moved = MASKINGS[name](scores((6, 6), first=4), (6, 6), 0.75)
    assert torch.equal(mask.hide[4:], moved.hide[:4]) and torch.equal(mask.keep[4:], moved.keep[:4])


@pytest.mark.parametrize("patches", [2, 4, 10, 49, 100, 196, 256, 1000])
def test_kept_is_the_floor_but_where_floats_miss_a_whole_number(patches):
    for percent in range(1, 100):
        ratio = percent / 100
        count = wanted(patches, ratio)
        if 0 < count < patches:
            assert num_visible(patches, ratio) == count
        else:
            with pytest.raises(UserError):
                num_visible(patches, ratio)


def test_kept_equals_the_reference():
    """Of the square grids of 4 to 14 patches a side at 1 to 99 %, decimals differ in 18."""
    decimal = 0
    for side in range(4, 15):
        for percent in range(1, 100):
            patches, ratio = side**2, percent / 100
            count = int(patches * (1 - ratio))
            decimal += count != patches * (100 - percent) // 100
            if count:
                assert num_visible(patches, ratio) == count
    assert decimal == 18
    assert num_visible(196, 0.75) == 49 and num_visible(256, 0.75) == 64
    assert num_visible(100, 0.9) == 9 and num_visible(400, 0.9) == 39


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio, left", [(1.0, 0), (0.95, 0), (1.5, -8), (-0.5, 24)])
def test_ratios_that_leave_nothing(name, ratio, left):
    with pytest.raises(
        UserError, match=rf"mask ratio {ratio} leaves {left} of 16 patches.*at least one"
    ):
        MASKINGS[name](scores((4, 4)), (4, 4), ratio)


def test_unknown_masking_suggests_the_nearest():
    assert masking.masking("block") is MASKINGS["block"]
    with pytest.raises(UserError, match=r"unknown masking 'blocks'. Did you mean block\?"):
        masking.masking("blocks")


# ---------------------------------------------------------------- noise


def test_noise_equals_plain_python():
    epoch, sample = torch.tensor([0, 1, 7]), torch.tensor([0, 2**33 + 5, 1234567])
    table = noise(42, epoch, sample, 25)
    for b in range(3):
        for n in range(25):
            assert (
                table[b, n].item()
                == hash32(42, MASK, epoch[b].item(), sample[b].item(), n) * 25 + n
            )


def test_noise_is_unique_within_an_image():
    table = scores((32, 32), samples=64)
    assert all(len(row.unique()) == 1024 for row in table)
    assert table.min() >= 0
    assert torch.equal(table % 1024, torch.arange(1024).expand(64, -1))


def test_golden_masks():
    """A change here changes every run that anyone has made: on purpose only."""
    values = noise(7, torch.tensor([0, 3]), torch.tensor([0, 123456789]), 16)
    assert values[:, :4].tolist() == [
        [64806774048, 66145460305, 52191301010, 12426263443],
        [28923534080, 6469992545, 16220306850, 7121977811],
    ]
    golden = {
        "random": [[7, 4, 3, 14], [9, 14, 7, 1]],
        "block": [[15, 11, 12, 8], [0, 1, 3, 2]],
        "grid": [[8, 10, 2, 0], [8, 2, 10, 0]],
    }
    for name, keep in golden.items():
        assert MASKINGS[name](values, (4, 4), 0.75).keep.tolist() == keep


# ---------------------------------------------------------------- random


def test_random_keeps_each_patch_equally_often():
    samples, patches, keep = 20000, 16, 4
    mask = masking.random(scores((4, 4), samples), (4, 4), 0.75)
    counts = torch.bincount(mask.keep.flatten(), minlength=patches).double()
    expected, share = samples * keep / patches, keep / patches
    # Draws without replacement: this sum is chi-square with N - 1 degrees of freedom.
    chi = ((counts - expected) ** 2).sum() / (
        samples * share * (1 - share) * patches / (patches - 1)
    )
    assert abs(chi - (patches - 1)) < 4 * (2 * (patches - 1)) ** 0.5
    # The first that is kept is uniform as well, so order carries nothing.
    first = torch.bincount(mask.keep[:, 0], minlength=patches).double()
    chi = ((first - samples / patches) ** 2).sum() / (samples / patches)
    assert abs(chi - (patches - 1)) < 4 * (2 * (patches - 1)) ** 0.5


def test_random_keeps_each_pair_equally_often():
    samples, patches = 20000, 16
    pairs = masking.random(scores((4, 4), samples), (4, 4), 0.875).keep.sort(dim=1).values
    counts = torch.bincount(pairs[:, 0] * patches + pairs[:, 1], minlength=patches**2).double()
    cells = torch.tensor(
        [counts[a * patches + b] for a, b in itertools.combinations(range(patches), 2)]
    )
    assert cells.sum() == samples
    freedom = len(cells) - 1
    chi = ((cells - samples / len(cells)) ** 2).sum() / (samples / len(cells))
    assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5


# ---------------------------------------------------------------- block


def block_reference(values, rows, columns, ratio):
    """Blocks fall one by one on a set of places: a transcription of the description, in plain
    Python."""
    need = rows * columns - wanted(rows * columns, ratio)
    shapes = masking.block_shapes(rows, columns)
    hidden: list[int] = []
    for throw in range(masking.BLOCKS):
        height, width = shapes[hash32(BLOCK, values[0], throw, 0) % len(shapes)]
        top = hash32(BLOCK, values[0], throw, 1) % (rows - height + 1)
        left = hash32(BLOCK, values[0], throw, 2) % (columns - width + 1)
        for row in range(top, top + height):
            for column in range(left, left + width):
                place = row * columns + column
                if place not in hidden and len(hidden) < need:
                    hidden.append(place)
    rest = sorted(set(range(rows * columns)) - set(hidden), key=lambda place: values[place])
    return set(hidden) | set(rest[len(rest) - (need - len(hidden)) :])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (7, 7), (14, 14), (8, 32), (1, 16), (12, 9)])
def test_block_equals_the_reference(grid, ratio):
    if not wanted(math.prod(grid), ratio):
        return
    values = scores(grid, samples=10, seed=3)
    mask = masking.block(values, grid, ratio)
    for row, hide in zip(values.tolist(), mask.hide.tolist()):
        assert set(hide) == block_reference(row, *grid, ratio)  # type: ignore[call-arg]


def test_block_falls_back_to_single_patches():
    """At 99 % the blocks may leave too much open; the count is exact all the same, and the
    reference agrees."""
    values = scores((14, 14), samples=60, seed=5)
    mask = masking.block(values, (14, 14), 0.99)
    assert mask.keep.shape == (60, 1)
    for row, hide in zip(values.tolist(), mask.hide.tolist()):
        assert set(hide) == block_reference(row, 14, 14, 0.99)


@pytest.mark.parametrize("grid", GRIDS)
def test_block_shapes_fit_the_grid(grid):
    for height, width in masking.block_shapes(*grid):
        assert 1 <= height <= grid[0] and 1 <= width <= grid[1]
        assert height * width <= math.prod(grid) // 2 + max(grid)


def neighbours(mask, grid):
    """The mean number of adjacent pairs that are both hidden."""
    hidden = torch.zeros(len(mask.hide), math.prod(grid)).scatter(1, mask.hide, 1.0).view(-1, *grid)
    down, across = hidden[:, 1:] * hidden[:, :-1], hidden[:, :, 1:] * hidden[:, :, :-1]
    return ((down.sum() + across.sum()) / len(hidden)).item()


@pytest.mark.parametrize(
    "grid, ratio", [((14, 14), 0.5), ((14, 14), 0.75), ((8, 32), 0.5), ((7, 7), 0.5)]
)
def test_block_hides_larger_regions_than_random(grid, ratio):
    values = scores(grid, samples=200)
    edges = 2 * math.prod(grid) - sum(grid)
    scattered = neighbours(masking.random(values, grid, ratio), grid)
    blobs = neighbours(masking.block(values, grid, ratio), grid)
    assert scattered == pytest.approx(edges * ratio**2, rel=0.05)
    assert blobs > scattered * (1.4 if ratio == 0.5 else 1.1)


def test_block_covers_every_place():
    mask = masking.block(scores((7, 7), samples=2000), (7, 7), 0.5)
    shares = torch.bincount(mask.hide.flatten(), minlength=49) / 2000
    assert shares.min() > 0.1 and shares.max() < 0.95


# ---------------------------------------------------------------- grid


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (14, 14), (8, 32), (6, 4)])
def test_grid_keeps_the_upper_left_of_each_square(grid):
    mask = masking.grid(scores(grid), grid, 0.75)
    corners = [r * grid[1] + c for r in range(0, grid[0], 2) for c in range(0, grid[1], 2)]
    assert mask.keep.sort(dim=1).values.tolist() == [corners] * 8


def test_grid_takes_the_corners_in_turn():
    mask = masking.grid(scores((4, 4)), (4, 4), 0.5)
    assert (
        mask.keep.sort(dim=1).values.tolist() == [[0, 2, 5, 7, 8, 10, 13, 15]] * 8
    )  # a chessboard
    mask = masking.grid(scores((4, 4)), (4, 4), 0.25)
    assert mask.hide.sort(dim=1).values.tolist() == [[4, 6, 12, 14]] * 8
    partly = masking.grid(scores((4, 4), samples=64), (4, 4), 0.9)
    assert partly.keep.shape == (64, 1) and set(partly.keep.flatten().tolist()) == {0, 2, 8, 10}


# ---------------------------------------------------------------- given


def test_given_masks():
    hidden = torch.tensor([[True, False, False, True, False], [False, False, True, False, True]])
    mask = masking.mask_from_bool(hidden)
    assert mask.keep.tolist() == [[1, 2, 4], [0, 1, 3]] and mask.hide.tolist() == [[0, 3], [2, 4]]


@pytest.mark.parametrize("name", NAMES)
def test_given_repeats_every_masking(name):
    mask = MASKINGS[name](scores((6, 5)), (6, 5), 0.6)
    again = masking.mask_from_bool(torch.zeros(8, 30, dtype=torch.bool).scatter(1, mask.hide, True))
    assert torch.equal(again.keep, mask.keep.sort(dim=1).values)
    assert torch.equal(again.hide, mask.hide.sort(dim=1).values)


def test_given_refuses():
    with pytest.raises(UserError, match="equally many patches, not 1 to 2"):
        masking.mask_from_bool(torch.tensor([[True, True, False], [True, False, False]]))
    with pytest.raises(UserError, match="hides 0 of 3 patches"):
        masking.mask_from_bool(torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(UserError, match="hides 3 of 3 patches"):
        masking.mask_from_bool(torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", NAMES)
def test_at_ratio_zero_all_patches_are_visible(name):
    """For denoising, where the visible ones are what is predicted."""
    scores = noise(0, torch.zeros(3).long(), torch.arange(3), 16)
    mask = MASKINGS[name](scores, (4, 4), 0.0)
    assert mask.hide.shape == (3, 0)
    assert torch.equal(mask.keep.sort(1).values, torch.arange(16).expand(3, -1))
    assert mask.predicted is mask.keep
    hiding = MASKINGS[name](scores, (4, 4), 0.5)
    assert hiding.predicted is hiding.hide


def test_gaussian_noise_is_a_function_of_the_sample_and_standard_normal():
    epoch, sample = torch.tensor([0, 0, 1]), torch.tensor([5, 9, 5])
    made = gaussian(3, epoch, sample, (3, 40, 50))
    assert made.shape == (3, 3, 40, 50)
    assert torch.equal(gaussian(3, epoch[1:], sample[1:], (3, 40, 50)), made[1:])
    for other in (made[1], made[2], gaussian(4, epoch, sample, (3, 40, 50))[0]):
        assert not torch.equal(made[0], other)
        assert abs(np.corrcoef(made[0].flatten(), other.flatten())[0, 1]) < 0.05
    values = made.flatten().double().numpy()
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.02
    for edge, share in {-1.0: 0.1587, 0.0: 0.5, 2.0: 0.9772}.items():
        assert (values < edge).mean() == pytest.approx(share, abs=0.01)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_units_are_hidden_as_a_whole(name, ratio):
    grid, unit = (6, 8), 2
    values = scores(grid)
    mask = MaskGenerator(name, ratio, unit)(values, grid)
    hidden = torch.zeros(8, 48, dtype=torch.bool).scatter(1, mask.hide, True).view(8, 3, 2, 4, 2)
    whole = hidden.all(dim=4).all(dim=2)
    assert torch.equal(whole, hidden.any(dim=4).any(dim=2)), "no unit is hidden in part"
    # The units are masked as patches are, by the noise of their upper left patch.
    first = values.view(8, 6, 8)[:, ::2, ::2].flatten(1)
    expected = MASKINGS[name](first, (3, 4), ratio).hide.sort(dim=1).values
    assert whole.flatten(1).nonzero()[:, 1].view(8, -1).tolist() == expected.tolist()
    counts = mask.keep.shape[1], mask.hide.shape[1]
    assert counts == MaskGenerator(name, ratio, unit).counts(grid)


def test_units_that_do_not_fill_the_grid_are_an_error():
    for call in (lambda m: m(scores((6, 8)), (6, 8)), lambda m: m.counts((6, 8))):
        with pytest.raises(UserError, match="units of 4x4 patches do not fill a grid of 6x8"):
            call(MaskGenerator(unit=4))
    with pytest.raises(UserError, match="mask ratio 0.9 leaves 0 of 4 patches"):
        MaskGenerator(ratio=0.9, unit=2).counts((4, 4))


def neighbors(mask, grid):
    """The mean share of a hidden patch's right and lower neighbors that are hidden."""
    count = len(mask.keep)
    hidden = torch.zeros(count, math.prod(grid)).scatter(1, mask.hide, 1).view(count, *grid)
    pairs = [(hidden[:, 1:] * hidden[:, :-1]).mean(), (hidden[..., 1:] * hidden[..., :-1]).mean()]
    return float(sum(pairs) / 2 / hidden.mean())


def test_green_masks_lie_between_single_patches_and_blocks():
    grid, ratio = (14, 14), 0.75
    values = scores(grid, samples=200)
    single, green, block = (
        neighbors(MASKINGS[name](values, grid, ratio), grid)
        for name in ("random", "green", "block")
    )
    assert single == pytest.approx(0.75, abs=0.01), "neighbors of random masks are independent"
    assert single + 0.02 < green < block - 0.02
    # No place is preferred: the boxes wrap around.
    shown = torch.zeros(200, 196).scatter(1, MASKINGS["green"](values, grid, ratio).keep, 1).mean(0)
    assert shown.min() > 0.1 and shown.max() < 0.4  # 0.25 with a deviation of 0.03


def test_green_is_the_difference_of_two_box_means():
    grid = (9, 10)
    values = scores(grid, samples=3)
    field = hash32(GREEN, values).view(3, *grid).numpy()

    def mean(of, row, column, side):
        reach = range(-(side // 2), side // 2 + 1)
        near = [of[(row + i) % 9, (column + j) % 10] for i in reach for j in reach]
        return Fraction(sum(map(int, near)), side * side)

    keep = MASKINGS["green"](values, grid, 0.75).keep
    for image, visible in zip(field, keep.tolist()):
        band = [
            mean(image, row, column, 3) - mean(image, row, column, 7)
            for row in range(9)
            for column in range(10)
        ]
        assert visible == sorted(range(90), key=lambda i: -band[i])[:22]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", [1, 2])
def test_four_turns_at_75_percent_show_each_patch_once(name, unit):
    grid = (8, 8)
    masks = [MaskGenerator(name, unit=unit)(scores(grid), grid, turn) for turn in range(4)]
    seen = torch.cat([mask.keep for mask in masks], dim=1)
    assert torch.equal(seen.sort(dim=1).values, torch.arange(64).expand(8, -1))
    for mask in masks:
        both = torch.cat(mask, dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(64).expand(8, -1))


def test_a_share_of_the_hidden_patches_is_predicted_whichever_they_are():
    grid, values = (14, 14), scores((14, 14), samples=400)
    whole, part = (MaskGenerator("grid", predicted=share)(values, grid) for share in (1.0, 0.25))
    assert torch.equal(whole.keep, part.keep) and part.hide.shape == (400, round(147 / 4))
    assert MaskGenerator(predicted=0.25).counts(grid) == (49, 37)
    chosen = torch.zeros(400, 196).scatter(1, part.hide, 1)
    hidden = torch.zeros(400, 196).scatter(1, whole.hide, 1)
    assert (chosen <= hidden).all() and (chosen.sum(dim=1) == 37).all()
    often = chosen.mean(dim=0)[hidden.bool().all(dim=0)]  # 37 / 147 = 0.252, deviation 0.022
    assert often.min() > 0.15 and often.max() < 0.36
    one = MaskGenerator(predicted=0.001)(values, grid)
    assert one.hide.shape[1] == 1


def test_a_generator_of_a_run_s_settings():
    settings = {"masking": "block", "mask_ratio": 0.6, "mask_unit": 2, "predict_share": 0.5}
    assert MaskGenerator.of({**settings, "seed": 1}) == MaskGenerator("block", 0.6, 2, 0.5)
    assert MaskGenerator.of({}) == MaskGenerator("random", 0.75, 1, 1.0)
    assert MaskGenerator("green", unit=2).words() == "green, in units of 2x2 patches"


def test_a_range_of_ratios_has_few_values_each_once_in_four_steps():
    masks = MaskGenerator.of({"mask_ratio": "0.6..0.9", "masking": "green"})
    assert masks.ratio == 0.75 and masks.ratios == (0.6, 0.7, 0.8, 0.9)
    assert masks.share() == "60 to 90" and MaskGenerator().share() == "75"
    drawn = [masks.at(5, step).ratio for step in range(400)]
    assert drawn[:4] == [0.6, 0.7, 0.8, 0.9], "the most tokens come first"
    orders = {tuple(drawn[i : i + 4]) for i in range(0, 400, 4)}
    assert len(orders) > 20 and all(sorted(order) == drawn[:4] for order in orders)
    assert drawn != [masks.at(6, step).ratio for step in range(400)]
    assert masks.at(5, 9).counts((14, 14)) == MaskGenerator(ratio=drawn[9]).counts((14, 14))
    assert masks.at(5, 9).name == "green" and MaskGenerator().at(5, 9) == MaskGenerator()
    values = scores((14, 14), samples=3)
    mask = masks.at(5, 9)(values, (14, 14))
    assert torch.equal(mask.keep, MaskGenerator("green", drawn[9])(values, (14, 14)).keep)


def test_operations_of_a_range_are_the_mean_over_its_ratios():
    model = MAE(ViT((32, 32), patch_size=4, embed_dim=32, depth=2, num_heads=4))
    counts = [training_flops(model, MaskGenerator(ratio=ratio)) for ratio in (0.5, 0.6, 0.7, 0.8)]
    assert training_flops(model, MaskGenerator.of({"mask_ratio": "0.5..0.8"})) == round(
        sum(counts) / 4
    )
