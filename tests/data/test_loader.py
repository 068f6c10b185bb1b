"""Batches as a pure function: order, epochs, workers, processes, targets, bad files, signals."""

import multiprocessing
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import Batch, Batches, permute, read_pixels
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import RunError, UserError


def plant(root: Path, count: int, truncated: tuple[int, ...] = ()) -> Path:
    """`count` JPEG files of unlike sizes and colours; those named lose their end."""
    root.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(
            0, 256, (20 + i % 3, 24 + i % 5, 3), dtype=np.uint8
        )
        path = root / f"{i:03d}.jpg"
        Image.fromarray(pixels).save(path, quality=80)
        if i in truncated:
            path.write_bytes(path.read_bytes()[:-60])
    return root


def batches(root: Path, batch_size: int = 4, **settings) -> Batches:
    limit = settings.pop("max_megapixels", 100.0)
    return Batches(
        open_source(root, DecodeOptions(max_megapixels=limit)),
        RandomResizedCropFlip((16, 16), seed=settings.get("seed", 0)),
        batch_size,
        **settings,
    )


def same(a: Batch, b: Batch) -> bool:
    return a.bad == b.bad and all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(tensors(a), tensors(b))
    )


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.images, batch.epoch, batch.sample


def order(count: int, epoch: int = 0, seed: int = 0) -> list[int]:
    return permute(np.arange(count), count, seed, np.full(count, epoch)).tolist()


def orders(count: int, epochs: int) -> np.ndarray:
    """[epochs, count]: the permutations of many epochs."""
    places = np.tile(np.arange(count), epochs)
    return permute(places, count, 0, np.repeat(np.arange(epochs), count)).reshape(epochs, count)


def plain_permute(place: int, count: int, seed: int, epoch: int) -> int:
    """The same permutation, written again from the docstrings with Python's integers alone."""

    def scramble(x: int) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15) * 0x735A2D97 % 2**32
        return x ^ x >> 15

    def word(*keys: int) -> int:
        state = 0x1B873593
        for key in keys:
            state = scramble(state ^ (key ^ (key // 2**32) * 0x5BD1E995) % 2**32)
        return state

    half = 1
    while 4**half < count:
        half += 1
    while True:
        left, right = divmod(place, 2**half)
        for turn in range(6):
            left, right = right, left ^ word(seed, 0, epoch, turn, right) % 2**half
        place = left * 2**half + right
        if place < count:
            return place


# --- the order of an epoch


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 64, 65, 1000, 4096, 4097])
def test_an_epoch_is_a_permutation(count):
    for epoch in (0, 1, 2, 799, 2**33):
        for seed in (0, 1, 2**40):
            assert sorted(order(count, epoch, seed)) == list(range(count))


def test_the_order_differs_between_epochs_and_seeds():
    seen = {tuple(order(64, epoch, seed)) for epoch in range(20) for seed in range(20)}
    assert len(seen) == 400
    # Unrelated, not shifted copies: two epochs agree in one place on average.
    agree = (orders(1000, 101)[1:] == orders(1000, 101)[:-1]).sum(1)
    assert 0.6 < agree.mean() < 1.4 and agree.max() < 8


@pytest.mark.parametrize("count", [2, 3, 5, 16, 17, 50])
def test_every_element_comes_to_every_place_equally_often(count):
    epochs = 200 * count
    places = orders(count, epochs)
    seen = np.array([np.bincount(column, minlength=count) for column in places.T])
    for counts in (seen[:, 0], seen[0], seen[:, -1]):  # element 0, place 0, the last element
        assert abs(((counts - 200) ** 2).sum() / 200 - (count - 1)) < 4 * (2 * (count - 1)) ** 0.5
    # The whole table has (count - 1) ** 2 degrees of freedom, scaled by count / (count - 1).
    freedom = (count - 1) ** 2
    assert (
        abs(((seen - 200) ** 2).sum() / 200 * (count - 1) / count - freedom)
        < 4 * (2 * freedom) ** 0.5
    )


def test_neighbours_do_not_stay_neighbours():
    steps = np.diff(orders(1000, 100), axis=1)
    assert 1.6 < (np.abs(steps) == 1).sum(1).mean() < 2.4  # 2 are expected by chance
    assert 0.48 < (steps > 0).mean() < 0.52
    counts = np.bincount((steps % 1000).ravel(), minlength=1000)[1:]
    assert abs(((counts - 100) ** 2).sum() / 100 - 998) < 5 * (2 * 998) ** 0.5


@pytest.mark.parametrize("count", [10**9, 3 * 10**9])
def test_billions_of_images_need_no_memory(count):
    rng = np.random.default_rng(0)
    places = np.unique(
        np.concatenate(
            [np.arange(1000), rng.integers(0, count, 2000), np.arange(count - 1000, count)]
        )
    )
    found = permute(places, count, 3, np.full(len(places), 11))
    assert found.dtype == np.int64 and found.min() >= 0 and found.max() < count
    assert len(np.unique(found)) == len(places)
    one_by_one = [
        permute(np.array([place]), count, 3, np.array([11])).item() for place in places[::100]
    ]
    assert one_by_one == found[::100].tolist()
    tenths = np.bincount(found * 10 // count, minlength=10) / len(found)
    assert tenths.min() > 0.08 and tenths.max() < 0.12


@pytest.mark.parametrize("count", [1, 2, 5, 17, 1000, 4097, 10**6, 10**9, 3 * 10**9])
def test_the_permutation_is_that_of_plain_python(count):
    places = sorted({0, 1 % count, count // 3, count // 2, count - 1})
    for seed, epoch in ((0, 0), (7, 3), (2**31, 2**35)):
        found = permute(np.array(places), count, seed, np.full(len(places), epoch))
        assert found.tolist() == [plain_permute(place, count, seed, epoch) for place in places]


def test_epochs_may_differ_within_one_call():
    places, epochs = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 3, 4, 5])
    found = permute(places, 100, 9, epochs).tolist()
    assert found == [order(100, epoch, 9)[place] for place, epoch in zip(places, epochs)]
    assert places.tolist() == [0, 1, 2, 0, 1, 2]  # not written to


def test_orders_of_earlier_versions_are_found_again():
    # A change of these changes every run that is resumed or repeated with a later version.
    assert order(10) == [0, 9, 1, 4, 8, 2, 7, 6, 3, 5]
    assert order(10, epoch=1) == [8, 4, 6, 7, 9, 2, 3, 1, 0, 5]
    assert order(10, seed=7) == [8, 4, 3, 7, 9, 6, 0, 2, 1, 5]
    assert permute(np.arange(3), 10**9, 0, np.zeros(3, int)).tolist() == [
        616876208,
        920544102,
        67837337,
    ]
    assert permute(np.arange(3), 3 * 10**9, 1, np.full(3, 799)).tolist() == [
        1883185513,
        239780686,
        376575055,
    ]


# --- batches


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 16, 30])
def test_every_epoch_has_each_image_once(tmp_path, batch_size):
    data = batches(plant(tmp_path / "set", 11), batch_size)
    steps = -(-44 // batch_size)
    epoch, sample = (np.concatenate(x) for x in zip(*(data.places(step) for step in range(steps))))
    assert epoch[:44].tolist() == sorted([0, 1, 2, 3] * 11)
    for e in range(4):
        assert sorted(sample[:44][epoch[:44] == e]) == list(range(11))
    assert len({tuple(sample[11 * e : 11 * e + 11]) for e in range(4)}) == 4
    if 11 % batch_size:
        assert any(
            len(set(data.places(step)[0])) > 1 for step in range(steps)
        )  # one straddles two epochs


def test_a_batch_holds_the_images_it_names(tmp_path):
    root = plant(tmp_path / "set", 11)
    data = batches(root, 8, seed=5)
    batch = data[1]
    assert (
        batch.images.shape == (8, 3, 16, 16)
        and batch.images.dtype == torch.uint8
        and batch.bad == []
    )
    assert batch.epoch.tolist() == [0] * 3 + [1] * 5
    for image, epoch, sample in zip(*tensors(batch)):
        pixels = decode((root / f"{sample:03d}.jpg").read_bytes())
        assert torch.equal(
            image, RandomResizedCropFlip((16, 16), seed=5)(pixels, None, int(epoch), int(sample))[0]
        )


def test_far_steps_cost_nothing_and_seeds_matter(tmp_path):
    root = plant(tmp_path / "set", 11)
    far = batches(root, 4)[10**9]
    assert far.epoch.tolist() == [4 * 10**9 // 11] * 4 or far.epoch.max() == far.epoch.min() + 1
    assert same(far, batches(root, 4)[10**9])
    assert not torch.equal(batches(root, 11)[0].sample, batches(root, 11, seed=1)[0].sample)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("damaged"), 11, truncated=(2, 7))


def test_asking_again_or_in_another_order_changes_nothing(damaged):
    data = batches(damaged)
    first = [data[step] for step in range(8)]
    assert all(same(data[step], first[step]) for step in (5, 0, 7, 7, 3))
    assert same(batches(damaged)[6], first[6])  # nor does a new object
    assert not same(first[0], first[1])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_resuming_change_nothing(damaged, workers):
    data = batches(damaged)
    for start, stop in ((0, 9), (5, 9)):
        found = list(data.loader(start, stop, workers))
        assert len(found) == stop - start
        assert all(
            isinstance(batch, Batch) and same(batch, data[start + i])
            for i, batch in enumerate(found)
        )
    assert any(batch.bad for batch in found)
    assert list(data.loader(4, 4, workers)) == []


@pytest.mark.parametrize("size", [2, 4])
def test_the_shares_of_all_processes_make_up_the_batch_of_one(damaged, size):
    alone = batches(damaged, 8)
    shares = [batches(damaged, 8, rank=rank, size=size) for rank in range(size)]
    for step in range(5):  # places 8 to 15 and others straddle two epochs
        parts, whole = [share[step] for share in shares], alone[step]
        assert [len(part.images) for part in parts] == [8 // size] * size
        assert [bad for part in parts for bad in part.bad] == whole.bad
        for together, one in zip(zip(*map(tensors, parts)), tensors(whole)):
            assert torch.equal(torch.cat(together), one)


@pytest.mark.parametrize(
    "batch_size, size, offers", [(10, 4, "8 or 12"), (7, 2, "6 or 8"), (3, 4, "4 or 8")]
)
def test_a_batch_that_cannot_be_shared_names_two_that_can(tmp_path, batch_size, size, offers):
    root = plant(tmp_path / "set", 2)
    with pytest.raises(
        UserError, match=f"batch size {batch_size} .* {size} processes: use {offers}$"
    ):
        batches(root, batch_size, size=size)
    for works in map(int, offers.split(" or ")):
        assert len(batches(root, works, size=size)[0].images) == works // size


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_chunks_are_a_partition_of_nearly_equal_parts(damaged, parts):
    batch = batches(damaged, 8)[1]
    chunks = batch.chunks(parts)
    sizes = [len(chunk.images) for chunk in chunks]
    assert len(chunks) == parts and max(sizes) - min(sizes) <= 1
    for together, one in zip(zip(*map(tensors, chunks)), tensors(batch)):
        assert torch.equal(torch.cat(together), one)


def test_a_batch_moves_with_its_names(damaged):
    batch = batches(damaged, 11)[0]
    assert batch.bad and same(batch.to(torch.device("cpu")), batch)
    assert {x.device.type for x in tensors(batch.to(torch.device("meta")))} == {"meta"}


def test_a_pickled_copy_gives_the_same_batches(damaged):
    data = batches(damaged, 8, rank=1, size=2, seed=4)
    copy = pickle.loads(pickle.dumps(data))
    assert all(same(copy[step], data[step]) for step in range(3))


# --- targets


def numbered(root: Path, targets, **settings) -> Batches:
    return replace(batches(root, 8, **settings), targets=targets)


def test_labels_are_those_of_the_images_that_are_shown(damaged):
    labels = torch.arange(11) * 7
    for step in range(3):
        batch, plain = numbered(damaged, labels)[step], batches(damaged, 8)[step]
        assert same(batch, plain) and plain.targets is None
        assert (
            torch.equal(batch.targets, labels[batch.sample]) and batch.targets.dtype == torch.int64
        )
    assert batch.bad  # a replacement comes with its own label


@pytest.mark.parametrize("workers", [0, 2])
def test_other_targets_stay_a_list(damaged, workers):
    boxes = [{"boxes": torch.full((i % 3, 4), float(i))} for i in range(11)]
    data = numbered(damaged, boxes)
    for step, batch in enumerate(data.loader(0, 3, workers)):
        assert [int(i) for i in batch.sample] == [int(i) for i in data[step].sample]
        for target, sample in zip(batch.targets, batch.sample.tolist()):
            assert torch.equal(target["boxes"], boxes[sample]["boxes"])
    moved = batch.to(torch.device("meta")).targets
    assert {target["boxes"].device.type for target in moved} == {"meta"}


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", [None, "labels", "objects"])
def test_chunks_keep_targets_beside_their_images(damaged, parts, kind):
    targets = {None: None, "labels": torch.arange(11), "objects": [f"{i}" for i in range(11)]}[kind]
    batch = numbered(damaged, targets)[1]
    for chunk in batch.chunks(parts):
        if kind is None:
            assert chunk.targets is None
        elif kind == "labels":
            assert torch.equal(chunk.targets, chunk.sample)
        else:
            assert chunk.targets == [f"{i}" for i in chunk.sample.tolist()]
        assert len(chunk.images) == len(chunk.sample) and chunk.step == batch.step


def test_a_transform_sees_picture_and_target_together(damaged):
    def transform(image, target, epoch, sample):
        assert target == (sample, "mask")
        return torch.zeros(3, 4, 4, dtype=torch.uint8), (target, epoch)

    data = replace(numbered(damaged, [(i, "mask") for i in range(11)]), transform=transform)
    batch = data[2]
    pairs = zip(batch.sample.tolist(), batch.epoch.tolist())
    assert batch.targets == [((sample, "mask"), epoch) for sample, epoch in pairs]


# --- bad files


def test_a_bad_file_is_named_and_always_replaced_by_the_same_image(damaged):
    data = batches(damaged, 11)
    good = {
        i: decode((damaged / f"{i:03d}.jpg").read_bytes()) for i in range(11) if i not in (2, 7)
    }
    replacing: dict[int, set[int]] = {2: set(), 7: set()}
    for step in range(4):
        batch = data[step]
        _, drawn = data.places(step)
        assert {bad.name for bad in batch.bad} == {"002.jpg", "007.jpg"}
        assert all(bad.reason == "truncated JPEG: no end marker" for bad in batch.bad)
        for image, epoch, drawn_one, shown in zip(
            batch.images, batch.epoch.tolist(), drawn.tolist(), batch.sample.tolist()
        ):
            assert torch.equal(
                image, RandomResizedCropFlip((16, 16))(good[shown], None, epoch, shown)[0]
            )  # the number is that of what is shown
            if drawn_one in good:
                assert shown == drawn_one
            else:
                replacing[drawn_one].add(shown)
    assert all(len(found) == 1 for found in replacing.values())


def test_a_file_that_is_gone_is_bad_and_not_the_end(tmp_path):
    root = plant(tmp_path / "set", 6)
    data = batches(root, 6)
    (root / "003.jpg").unlink()
    assert {*data[0].bad} == {("003.jpg", "No such file or directory")}
    with pytest.raises(BadImage, match=r"^No such file or directory$"):
        read_pixels(data.source, 3)


def test_the_limit_of_megapixels_is_passed_on(tmp_path):
    root = plant(tmp_path / "set", 3)
    Image.new("RGB", (500, 600)).save(root / "big.jpg")
    found = batches(root, 4, max_megapixels=0.1)[0]
    assert {*found.bad} == {("big.jpg", "0.3 megapixels, more than the limit of 0.1")}
    assert not batches(root, 4, max_megapixels=0.31)[0].bad


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_of_nothing_but_bad_files_ends_the_run(tmp_path, workers):
    data = batches(plant(tmp_path / "set", 3, truncated=(0, 1, 2)))
    with pytest.raises(
        RunError, match=r"none of the 3 files can be read; the last: 00\d.jpg: truncated JPEG"
    ):
        list(data.loader(0, 1, workers))


def test_one_good_file_among_many_bad_ones_is_found(tmp_path):
    data = batches(plant(tmp_path / "set", 8, truncated=tuple(range(1, 8))), 8)
    assert len(data[0].images) == 8 and len(data[0].bad) > 20


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_main_process(damaged, number):
    data = batches(damaged)
    before = {child.pid for child in multiprocessing.active_children()}
    steps = iter(data.loader(0, 30, workers=2))
    found = [next(steps), next(steps)]  # both workers have come up
    workers = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(workers) == 2
    for worker in workers:
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)  # as from outside
    found += steps
    assert all(same(batch, data[step]) for step, batch in enumerate(found)) and len(found) == 30
    del steps
    for worker in workers:  # and they still end by themselves
        worker.join(10)
        assert worker.exitcode == 0


def test_a_process_that_keeps_a_failed_loader_still_ends(tmp_path):
    """Regression: workers that ignored every SIGTERM made a failed process wait for ever."""
    (tmp_path / "x.jpg").write_bytes(b"no image")
    code = f"""
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
batches = Batches(open_source({str(tmp_path)!r}), RandomResizedCropFlip((16, 16)), 1)
kept = iter(batches.loader(0, 9, 1))
try:
    next(kept)
except RuntimeError as error:
    failure = error
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
