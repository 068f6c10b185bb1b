"""Scores of label maps against brute-force loops; a mean over images is another number."""

import numpy as np
import pytest
import torch

from torchmae.errors import UserError
from torchmae.eval.segmentation import (
    Tally,
    bootstrap,
    boundary_scores,
    confusion_of,
    image_iou,
    overlaps,
)


def maps(count=5, classes=4, seed=0):
    """Predictions and labels of images of several sizes; the last class is rare."""
    generator = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        shape = (9 + i, 13)
        labels = generator.choice(classes, shape, p=[0.5, 0.3, 0.19, 0.01]).astype(np.uint8)
        said = np.where(generator.random(shape) < 0.6, labels, generator.integers(0, 3, shape))
        labels[generator.random(shape) < 0.1] = 255
        pairs.append((torch.from_numpy(said.astype(np.uint8)), torch.from_numpy(labels)))
    return pairs


def tally_of(pairs, classes=4, **options):
    tally = Tally(classes, **options)
    for said, labels in pairs:
        tally.add(said, sure_of(said), labels)
    return tally


def sure_of(said):
    """A probability for each pixel, the same for the same map."""
    draw = torch.Generator().manual_seed(said.numel())
    return torch.rand(said.shape, generator=draw)


def by_loop(pairs, classes=4):
    """Right, predicted and labelled pixels of each class, pixel by pixel."""
    counts = np.zeros((3, classes))
    confusion = np.zeros((classes, classes))
    for said, labels in pairs:
        for a, b in zip(said.flatten().tolist(), labels.flatten().tolist()):
            if b == 255:
                continue
            confusion[b, a] += 1
            counts[1, a] += 1
            counts[2, b] += 1
            counts[0, b] += a == b
    return counts, confusion


def test_scores_are_those_of_a_loop_over_pixels():
    pairs = maps()
    counts, confusion = by_loop(pairs)
    right, said, true = counts
    iou, dice = right / (said + true - right), 2 * right / (said + true)
    scores = tally_of(pairs).scores("abcd")
    assert scores.confusion == confusion.tolist()
    assert scores.miou == pytest.approx(iou.mean()) and scores.dice == pytest.approx(dice.mean())
    assert scores.iou == pytest.approx(dict(zip("abcd", iou)))
    assert scores.class_dice == pytest.approx(dict(zip("abcd", dice)))
    assert scores.pixel_accuracy == pytest.approx(right.sum() / true.sum())
    assert scores.count == 5 and scores.pixels == true.sum()
    assert scores.low < scores.miou < scores.high


def test_calibration_is_that_of_a_loop_over_pixels():
    pairs = maps()
    pixels = [[] for _ in range(15)]
    for said, labels in pairs:
        for p, a, b in zip(*(x.flatten().tolist() for x in (sure_of(said), said, labels))):
            if b != 255:
                pixels[int(p * 15)].append((p, a == b))
    means = [np.mean(some, axis=0) for some in pixels]
    scores = tally_of(pairs).scores("abcd")
    assert [n for n, _, _ in scores.calibration] == [len(some) for some in pixels]
    assert np.allclose([one[1:] for one in scores.calibration], means, atol=1e-6)
    error = sum(len(some) * abs(p - a) for some, (p, a) in zip(pixels, means)) / scores.pixels
    assert scores.calibration_error == pytest.approx(error, abs=1e-6)
    assert "calibration" not in scores.summary() and scores.detail("x", "abcd")["unit"] == "pixels"


def test_the_mean_over_images_is_another_number():
    """torchmetrics' MeanIoU averages the mIoU of images: a rare class weighs more or less there."""
    pairs = maps()
    each = [tally_of([pair]).scores("abcd").miou for pair in pairs]
    whole = tally_of(pairs).scores("abcd").miou
    assert abs(np.mean(each) - whole) > 0.001
    # Two images, of which one is nearly all right: by hand.
    a = torch.zeros(10, 10, dtype=torch.uint8)
    b = a.clone()
    b[0, 0] = 1  # one pixel of class 1, missed
    c = torch.ones(10, 10, dtype=torch.uint8)  # and an image of class 1, all found
    found = tally_of([(a, b), (c, c)], 2).scores("ab")
    assert found.iou == pytest.approx({"a": 99 / 100, "b": 100 / 101})
    assert found.miou == pytest.approx((0.99 + 100 / 101) / 2)
    images = [tally_of([pair], 2).scores("ab").miou for pair in ((a, b), (c, c))]
    assert np.mean(images) == pytest.approx(((0.99 + 0) / 2 + 1) / 2)
    areas = tally_of([(a, b), (c, c), (c, torch.full_like(c, 255))], 2).areas
    assert [image_iou(one) for one in areas] == [pytest.approx(0.99 / 2), 1.0, None]


def test_classes_that_are_nowhere_have_no_score_and_invented_ones_have_none_right():
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    said = labels.clone()
    said[0, 0] = 2
    scores = tally_of([(said, labels)], 3).scores("abc")
    assert set(scores.iou) == {"a", "c"} and scores.iou["c"] == 0
    assert scores.miou == pytest.approx((15 / 16 + 0) / 2)


def test_nothing_labelled_is_refused():
    ignored = torch.full((3, 3), 255, dtype=torch.uint8)
    with pytest.raises(UserError, match="no pixel"):
        tally_of([(torch.zeros_like(ignored), ignored)], 2).scores("ab")


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    inside, trials, images = 0, 60, 60
    for _ in range(trials):
        rates = generator.beta(8, 4, images)  # how much of an image is right
        right = generator.binomial(100, rates)
        areas = np.stack([[[r, 100 - r], [100, 100], [100, 100]] for r in right]).astype(np.int64)
        areas[:, 0, 1] = 0
        areas[:, 1, 1] = areas[:, 2, 1] = 0
        low, high = bootstrap(areas)
        mean = 100 * 8 / 12
        inside += low <= mean / (200 - mean) <= high
    assert 0.85 <= inside / trials <= 1.0


def test_the_commonest_class_everywhere():
    pairs = maps()
    labels = torch.cat([labels.flatten() for _, labels in pairs])
    most = int(labels[labels < 255].bincount().argmax())
    simple = [(torch.full_like(said, most), labels) for said, labels in pairs]
    scores = tally_of(simple).scores("abcd")
    assert scores.miou == pytest.approx(scores.commonest)
    assert tally_of(pairs).scores("abcd").commonest == pytest.approx(scores.commonest)


def test_the_bootstrap_is_that_of_a_loop():
    areas = np.stack(tally_of(maps()).areas)
    draws = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), 1000)
    values = []
    for draw in draws:
        total = sum(often * one for often, one in zip(draw, areas))
        values.append(np.nanmean(overlaps(total)[0]))
    assert bootstrap(areas) == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_confusion_ignores_255():
    labels = torch.tensor([[0, 1], [255, 1]], dtype=torch.uint8)
    said = torch.tensor([[0, 0], [1, 1]], dtype=torch.uint8)
    assert confusion_of(said, labels, 2).tolist() == [[1, 0], [1, 1]]


def test_boundaries_against_distances():
    """Every pair of boundary pixels compared, as the definition says."""
    generator = np.random.default_rng(3)
    labels = np.zeros((60, 80), np.uint8)
    labels[10:40, 20:50] = 1
    said = np.roll(labels, (0, 2), (0, 1))
    said[50:55, 60:70] = 1
    labels[generator.random(labels.shape) < 0.01] = 255

    def edge(region):
        return [
            (y, x)
            for y, x in np.argwhere(region)
            if not region[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].all()
        ]

    def near(points, others, reach):
        return np.mean(
            [min(max(abs(y - b), abs(x - a)) for b, a in others) <= reach for y, x in points]
        )

    expected = []
    for k in (0, 1):
        known = labels != 255
        a, b = ([p for p in edge(one == k) if known[p]] for one in (said, labels))
        precision, recall = near(a, b, 1), near(b, a, 1)
        expected.append(2 * precision * recall / (precision + recall))
    found = boundary_scores(torch.from_numpy(said), torch.from_numpy(labels), 2)
    assert found == pytest.approx(expected)
    same = torch.from_numpy(np.where(labels == 255, 0, labels).astype(np.uint8))
    assert boundary_scores(same, same, 2) == pytest.approx([1, 1])
