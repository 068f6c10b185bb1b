import pytest
import torch
from torch import nn

from torchmae.errors import UserError
from torchmae.models.encoders import build_encoder
from torchmae.models.heads import AttentivePool, Classifier, trainable


def pool_by_loops(pool, tokens):
    """The definition, one image, query and token at a time."""
    queries, dim = pool.query.shape
    width = dim // queries
    rows = []
    for image in tokens:
        values = [pool.value(token) for token in image]
        slices = []
        for q in range(queries):
            products = torch.stack([pool.query[q].dot(token) / dim**0.5 for token in image])
            weights = products.exp() / products.exp().sum()
            mine = [value[q * width : (q + 1) * width] for value in values]
            slices.append(sum(weight * value for weight, value in zip(weights, mine)))
        rows.append(torch.cat(slices))
    return torch.stack(rows)


@pytest.mark.parametrize("queries", [1, 4, 12])
def test_the_attentive_pool_is_its_definition_with_its_gradients(queries):
    torch.manual_seed(0)
    pool = AttentivePool(12, queries).double()
    nn.init.normal_(pool.query)
    nn.init.normal_(pool.value.bias)
    tokens = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    inputs = [tokens, *pool.parameters()]
    weights = torch.randn(3, 12, dtype=torch.float64)
    found, expected = pool(tokens), pool_by_loops(pool, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_order_of_tokens_does_not_matter():
    pool = AttentivePool(8, 2)
    tokens = torch.randn(2, 6, 8)
    torch.testing.assert_close(pool(tokens), pool(tokens[:, torch.randperm(6)]))


def test_queries_divide_the_width():
    with pytest.raises(UserError, match="--queries 5 .* possible: 1, 2, 4, 8"):
        AttentivePool(8, 5)


def make(pool, batch_norm):
    encoder = build_encoder(
        {
            "kind": "vit",
            "image_size": (16, 16),
            "patch_size": 8,
            "channels": 3,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
        }
    )
    return Classifier(encoder, ["a", "b"], pool, batch_norm, queries=4)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_an_attentive_classifier_is_built_again_from_its_config(batch_norm):
    model = make("attentive", batch_norm)
    again = Classifier.build(model.config())
    again.load_state_dict(model.state_dict())
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(again.eval()(images), model.eval()(images))
    assert model.query_pool.query.shape == (4, 16)
    assert isinstance(model.fc_norm, nn.Identity) is batch_norm


def test_the_head_of_an_attentive_probe_is_trained_with_its_queries():
    assert trainable(make("attentive", True), "head") == [
        "query_pool.query",
        "query_pool.value.weight",
        "query_pool.value.bias",
        "head.weight",
        "head.bias",
    ]
