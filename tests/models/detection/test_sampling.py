"""Samples by the hash: never from torch's generator, each image for itself."""

import torch

from torchmae.hashing import hash32
from torchmae.models.detection.sampling import HashedSampler, inside_crowd, lowest

LABELS = [
    torch.tensor([1] * 40 + [0] * 300 + [-1] * 20),
    torch.tensor([3] * 2 + [0] * 5 + [-1] * 9),
    torch.tensor([0] * 500),
]
KEYS = hash32(3, torch.tensor([5, 6, 7]))


def sampled(labels, keys, count=64):
    sampler = HashedSampler(count, 0.25, turn=1)
    sampler.keys = keys
    return sampler(labels)


def test_counts_are_those_of_torchvision():
    positive, negative = sampled(LABELS, KEYS)
    assert [int(one.sum()) for one in positive] == [16, 2, 0]
    assert [int(one.sum()) for one in negative] == [48, 5, 64]
    for label, yes, no in zip(LABELS, positive, negative):
        assert (label[yes] >= 1).all() and (label[no] == 0).all()


def test_an_image_has_its_samples_in_any_batch():
    whole = sampled(LABELS, KEYS)
    for i in range(3):
        alone = sampled(LABELS[i : i + 1], KEYS[i : i + 1])
        for one, other in zip(whole, alone):
            assert torch.equal(one[i], other[0])


def test_torchs_generator_is_neither_used_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sampled(LABELS, KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first[1], sampled(LABELS, KEYS)[1]))


def test_other_keys_give_other_samples_and_all_are_as_likely():
    some = [sampled(LABELS[:1], KEYS[:1] + k)[1][0] for k in range(200)]
    assert not torch.equal(some[0], some[1])
    often = torch.stack(some)[:, 40:340].float().mean(0)
    assert abs(often.mean() - 0.16) < 1e-6 and often.std() < 0.04


def test_lowest_takes_all_where_there_are_few():
    among = torch.tensor([True, False, True, True])
    ranks = torch.tensor([5, 0, 3, 4])
    assert lowest(among, ranks, 2).tolist() == [False, False, True, True]
    assert torch.equal(lowest(among, ranks, 3), among)
    assert not lowest(among, ranks, 0).any()


def test_boxes_inside_crowds():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [50, 50, 60, 60]])
    crowds = torch.tensor([[0.0, 0, 10, 10], [40, 40, 80, 80]])
    # A share of the box, not the overlap over the union: the last crowd is 16 times as large.
    assert inside_crowd(boxes, crowds).tolist() == [True, True, False, True]
    assert not inside_crowd(boxes, crowds[:0]).any()
