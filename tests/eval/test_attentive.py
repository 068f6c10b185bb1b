import pytest
import torch

from torchmae.errors import UserError
from torchmae.eval.attentive import LEARNING_RATES, AttentiveProbe, attentive_probe
from torchmae.eval.logistic import linear_probe


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
    found = attentive_probe(train, labels, test, truth, seed=0, queries=4)
    linear = linear_probe(train.mean(1), labels, test.mean(1), truth, seed=0)
    assert found["accuracy"] > 0.95 > 0.8 > linear["accuracy"]
    assert found["low"] < found["accuracy"] <= found["high"]
    assert found["lr"] in LEARNING_RATES and len(found["validated"]) == len(LEARNING_RATES)


def test_the_same_seed_gives_the_same_accuracy_to_the_bit():
    train, labels = make_tokens(60, 0)
    test, truth = make_tokens(60, 1)
    once, twice = (attentive_probe(train, labels, test, truth, 3, queries=2) for _ in range(2))
    assert once == twice


def test_one_image_a_class_leaves_nothing_to_choose_by():
    train, labels = make_tokens(3, 0)
    test, truth = make_tokens(30, 1)
    found = attentive_probe(train, labels, test, truth, seed=0, queries=1)
    assert found["validated"] == [] and found["lr"] == LEARNING_RATES[0]


def test_tokens_are_standardized_by_the_training_images():
    tokens, _ = make_tokens(40, 0)
    probe = AttentiveProbe(tokens, 3, queries=3)
    flat = tokens.double().flatten(0, 1)
    torch.testing.assert_close(probe.mean.double(), flat.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probe.std.double(), flat.std(0, correction=0), rtol=1e-5, atol=1e-5)


def test_queries_have_to_divide_the_width():
    train, labels = make_tokens(6, 0)
    with pytest.raises(UserError, match="--queries 5"):
        attentive_probe(train, labels, train, labels, seed=0, queries=5)
