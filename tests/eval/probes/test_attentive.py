import pytest
import torch

from torchmae.errors import UserError
from torchmae.eval.probes.attentive import LEARNING_RATES, AttentiveProbe, attentive_probe
from torchmae.eval.probes.logistic import linear_probe


def make_tokens(count, seed):
    """Images whose class is written in one token, at any place, among others of pure noise: a mean
    over tokens dilutes it, a query finds it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    tokens = torch.randn(count, 25, 12, generator=generator)
    place = torch.randint(25, (count,), generator=generator)
    tokens[torch.arange(count), place] = 0
    tokens[torch.arange(count), place, labels] = 4.0
    tokens[torch.arange(count), place, 6] = 8.0
    return tokens.half(), labels


def test_it_finds_what_the_mean_of_the_tokens_hides():
    train, labels = make_tokens(300, 0)
    test, truth = make_tokens(150, 1)
    found = attentive_probe(train, labels, test, seed=0, queries=4)
    linear = linear_probe(train.float().mean(1), labels, test.float().mean(1), seed=0)
    right, right_linear = (
        float((logits.argmax(1) == truth).double().mean())
        for logits in (found.logits, linear.logits)
    )
    assert right > 0.95 > 0.8 > right_linear
    assert found.lr in LEARNING_RATES and len(found.validated) == len(LEARNING_RATES)


def test_the_learning_rate_is_chosen_on_whole_groups():
    train, labels = make_tokens(24, 0)
    groups = [str(i // 6) for i in range(24)]
    found = attentive_probe(train, labels, train, 0, groups, queries=1)
    assert len(found.validated) == len(LEARNING_RATES)
    alone = attentive_probe(train, labels, train, 0, ["one"] * 24, queries=1)
    assert alone.validated == []


def test_the_same_seed_gives_the_same_accuracy_to_the_bit():
    train, labels = make_tokens(60, 0)
    once, twice = (attentive_probe(train, labels, train, 3, queries=2) for _ in range(2))
    assert torch.equal(once.logits, twice.logits) and once[1:] == twice[1:]


def test_one_image_a_class_leaves_nothing_to_choose_by():
    train, labels = make_tokens(3, 0)
    found = attentive_probe(train, labels, train, seed=0, queries=1)
    assert found.validated == [] and found.lr == LEARNING_RATES[0]


def test_tokens_are_standardized_by_the_training_images():
    tokens, _ = make_tokens(40, 0)
    probe = AttentiveProbe(tokens, 3, queries=3)
    flat = tokens.double().flatten(0, 1)
    torch.testing.assert_close(probe.mean.double(), flat.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probe.std.double(), flat.std(0, correction=0), rtol=1e-5, atol=1e-5)


def test_queries_have_to_divide_the_width():
    train, labels = make_tokens(6, 0)
    with pytest.raises(UserError, match="--queries 5"):
        attentive_probe(train, labels, train, seed=0, queries=5)
