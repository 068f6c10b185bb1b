"""Average precision, against pycocotools, and its interval."""

import contextlib
import io
import time

import numpy as np
import pytest

from torchmae.data.dense.objects import Objects, decode_rle, encode_rle
from torchmae.errors import UserError
from torchmae.eval.detection import (
    KINDS,
    Detections,
    Truth,
    bootstrap,
    detection_scores,
    evaluated,
    matches,
    to_coco,
    to_results,
    weighted_ap,
    window_rle,
)

pytest.importorskip("faster_coco_eval")
CLASSES = ("a", "b", "c")


def mask_of(box, height, width):
    x1, y1, x2, y2 = np.round(box).astype(int)
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = True
    mask[y1 : (y1 + y2) // 2, x1 : (x1 + x2) // 2] = False
    return mask


def random_set(seed, images=12, most=9, side=240, crowds=True, noise=3.0):
    """Boxes, and detections near most of them; some that are wrong; some crowds."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = int(random.integers(0, most + 1))
        corners = random.uniform(0, side - 20, (count, 2))
        sides = random.uniform(3, 160, (count, 2)) * random.choice([0.2, 1], (count, 1))
        boxes = np.concatenate([corners, np.minimum(corners + sides, side)], axis=1)
        classes = random.integers(0, len(CLASSES), count)
        crowd = (random.random(count) < 0.15) & crowds
        masks = tuple(encode_rle(mask_of(box, side, side)) for box in boxes)
        truth.append(Truth(side, side, Objects(boxes.astype(np.float32), classes, crowd, masks)))
        some = random.random(count) < 0.8
        moved = boxes[some] + random.normal(0, noise, (some.sum(), 4))
        wrong = np.repeat(random.uniform(0, side - 40, (4, 2)), 2, axis=0).reshape(-1, 4)
        wrong = wrong[:, [0, 1, 0, 1]] + [0, 0, 30, 30]
        every = np.clip(np.concatenate([moved, wrong]), 0, side)
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        labels = np.concatenate([classes[some], random.integers(0, len(CLASSES), len(wrong))])
        right = np.repeat([0.3, 0.0], [len(moved), len(wrong)])
        scores = (right + 0.7 * random.random(len(every))).round(2)  # ties
        runs = tuple(encode_rle(mask_of(box, side, side)) for box in every)
        found.append(Detections(every.astype(np.float32), scores.astype(np.float32), labels, runs))
    return found, truth


def scores_of(found, truth):
    return detection_scores(found, truth, CLASSES)


def overlap(one, other):
    """Of two boxes: intersection over union."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    both = np.maximum(high - low, 0).prod()
    return both / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - both)


def test_precision_by_score_is_that_of_a_greedy_loop():
    found, truth = random_set(5, images=8, crowds=False)
    bins = [[] for _ in range(15)]
    for said, there in zip(found, truth):
        free = set(range(len(there.objects)))
        for k in np.argsort(-said.scores, kind="stable").tolist():
            own = [i for i in free if there.objects.classes[i] == said.classes[k]]
            best = max(
                own, key=lambda i: overlap(there.objects.boxes[i], said.boxes[k]), default=-1
            )
            hit = best >= 0 and overlap(there.objects.boxes[best], said.boxes[k]) >= 0.5
            free -= {best} if hit else set()
            bins[min(14, int(said.scores[k] * 15))].append((said.scores[k], hit))
    scores = scores_of(found, truth)
    expected = [(len(some), *np.mean(some, axis=0)) for some in bins if some]
    assert np.allclose(scores.precision, expected, atol=1e-6)
    assert expected[0][2] + expected[-1][2] > 0.1 and "precision" not in scores.summary()


def by_pycocotools(found, truth, kind, most):
    """COCO's twelve numbers, with the largest number of detections as asked for."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = to_coco(truth, len(CLASSES))
        known.createIndex()
        results = [one for i, some in enumerate(found) for one in to_results(some, i + 1, kind)]
        run = evaluation.COCOeval(known, known.loadRes(results), KINDS[kind])
        run.params.maxDets = [most]
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., -1], run.eval["recall"][..., -1]


def mean(values):
    return values[values > -1].mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [3, 100, 400])
def test_scores_are_those_of_pycocotools(kind, most):
    found, truth = random_set(seed=most, images=16, noise=1.5)
    ours = detection_scores(found, truth, CLASSES, kind, most)
    precision, recall = by_pycocotools(found, truth, kind, most)
    expected = {
        "ap": mean(precision[:, :, :, 0]),
        "ap50": mean(precision[0, :, :, 0]),
        "ap75": mean(precision[5, :, :, 0]),
        "recall": mean(recall[:, :, 0]),
    }
    for name, value in expected.items():
        assert getattr(ours, name) == pytest.approx(value, abs=1e-12), name
    for k, name in enumerate(CLASSES):
        assert ours.by_class[name] == pytest.approx(mean(precision[:, :, k, 0]), abs=1e-12)
    for i, name in enumerate(("small", "medium", "large"), start=1):
        assert (precision[:, :, :, i] > -1).any()
        assert ours.by_size[name] == pytest.approx(mean(precision[:, :, :, i]), abs=1e-12)
    assert 0.1 < ours.ap < 0.9 and ours.low < ours.ap < ours.high
    assert ours.objects == sum(int((~one.objects.crowd).sum()) for one in truth)


def test_images_with_more_objects_than_coco_counts():
    """Nuclei: 375 in one image; with COCO's 100 even a perfect detector is bad."""
    boxes = np.array([[x, y, x + 4, y + 4] for x in range(0, 120, 6) for y in range(0, 90, 6)])
    boxes = boxes.astype(np.float32)
    assert len(boxes) == 300
    none = np.zeros(len(boxes), dtype=bool)
    truth = [Truth(120, 120, Objects(boxes, none.astype(np.int64), none))]
    found = [Detections(boxes, np.ones(len(boxes), dtype=np.float32), none.astype(np.int64))]
    assert detection_scores(found, truth, ["nucleus"], max_detections=400).ap == 1
    assert detection_scores(found, truth, ["nucleus"]).ap < 0.35


def test_crowds_and_difficult_objects_are_neither_found_nor_missed():
    boxes = np.array([[0, 0, 40, 40], [50, 50, 90, 90]], dtype=np.float32)
    labels = np.zeros(2, dtype=np.int64)
    inside = np.array([*boxes, [55, 55, 85, 85]], dtype=np.float32)
    scores = np.array([0.5, 0.9, 0.9], dtype=np.float32)
    found = [Detections(inside, scores, np.zeros(3, dtype=np.int64))]
    flags, none = np.array([False, True]), np.zeros(2, dtype=bool)
    for crowd, difficult in ((flags, none), (none, flags)):
        known = Objects(boxes, labels, crowd, difficult=difficult)
        assert detection_scores(found, [Truth(100, 100, known)], ["a"]).ap == 1
    plain = Objects(boxes, labels, none)
    assert detection_scores(found, [Truth(100, 100, plain)], ["a"]).ap < 1


def test_nothing_found_and_nothing_there():
    empty = Detections(
        np.zeros((0, 4), dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.zeros(0, dtype=np.int64),
        (),
    )
    _, truth = random_set(1)
    for kind in KINDS:
        scores = detection_scores([empty] * len(truth), truth, CLASSES, kind)
        assert scores.ap == scores.low == scores.high == scores.recall == 0
    nothing = Objects(empty.boxes, empty.classes, np.zeros(0, dtype=bool))
    with pytest.raises(UserError, match="no objects in the 1 images to measure on"):
        detection_scores([empty], [Truth(8, 8, nothing)], CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_matches_are_the_scores_of_the_set_they_stand_for(kind):
    """Each resample of the bootstrap, evaluated by faster-coco-eval on copies of the images."""
    found, truth = random_set(5, images=8)
    counted = matches(evaluated(found, truth, 3, kind, 100), 3, len(truth))
    random = np.random.default_rng(0)
    for draw in [np.arange(8), *random.integers(0, 8, (4, 8))]:
        weights = np.bincount(draw, minlength=8).astype(float)
        ours = np.nanmean(weighted_ap(counted, weights))
        again = detection_scores([found[i] for i in draw], [truth[i] for i in draw], CLASSES, kind)
        assert ours == pytest.approx(again.ap, abs=2e-3)  # order of equal scores
    ours = np.nanmean(weighted_ap(counted, np.ones(8)))
    assert ours == pytest.approx(detection_scores(found, truth, CLASSES, kind).ap, abs=1e-12)


def test_the_interval_is_as_wide_as_the_scores_of_other_images_differ():
    """The quantiles of the resamples would hold the AP of many images in 12 of 20 sets."""
    whole = scores_of(*random_set(0, images=600, noise=1.5))
    held = []
    for seed in range(1, 21):
        one = scores_of(*random_set(seed, images=25, noise=1.5))
        held.append(one.low <= whole.ap <= one.high)
    assert np.mean(held) >= 0.8
    assert whole.high - whole.low < 0.04


def test_the_interval_is_cheap():
    """133 images with 46 objects, as nuclei have: the matches are made once."""
    found, truth = random_set(3, images=133, most=92, crowds=False)
    counted = matches(evaluated(found, truth, 3, "boxes", 400), 3, len(truth))
    start = time.perf_counter()
    low, high = bootstrap(counted)
    seconds = time.perf_counter() - start
    assert low < high and seconds < 20
    print(f"{seconds:.1f} s for {sum(len(one.image) for one in counted)} detections")


def test_masks_of_windows_are_those_of_the_whole_image():
    random = np.random.default_rng(0)
    for _ in range(50):
        height, width = random.integers(1, 9, 2).tolist()
        top, left = (int(random.integers(0, side)) for side in (height, width))
        sides = [
            int(random.integers(0, side - at + 1)) for side, at in ((height, top), (width, left))
        ]
        window = random.random(sides) < random.random()
        whole = np.zeros((height, width), dtype=bool)
        whole[top : top + sides[0], left : left + sides[1]] = window
        rle = window_rle(window, top, left, height, width)
        np.testing.assert_array_equal(decode_rle(rle), whole)
        assert sum(rle.counts) == height * width


def test_objects_without_a_mask_are_neither_found_nor_missed_where_masks_are_measured():
    """Such as boxes among polygons; their boxes were taken for their masks."""
    boxes = np.array([[10, 10, 50, 50], [100, 100, 180, 180]], dtype=np.float32)
    thin = np.zeros((240, 240), dtype=bool)
    thin[100:180, 100:110] = True  # of the second object, an eighth of its box
    runs = (encode_rle(mask_of(boxes[0], 240, 240)), encode_rle(thin))
    classes, crowd = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=bool)
    truth = [Truth(240, 240, Objects(boxes, classes, crowd, (runs[0], None)))]
    found = [Detections(boxes, np.array([0.8, 0.9], dtype=np.float32), classes, runs)]
    assert detection_scores(found, truth, CLASSES, "masks", 100).ap == pytest.approx(1)
    missed = [Detections(*(part[:1] for part in found[0]))]
    assert detection_scores(missed, truth, CLASSES, "masks", 100).ap == pytest.approx(1)
    assert detection_scores(missed, truth, CLASSES, "boxes", 100).ap < 0.6
