"""A classification head on an encoder: pooled tokens, a norm, a linear map to the classes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError
from torchmae.models.beside import MAEBeside
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.vit import Block

POOLS = ("mean", "cls", "attentive")


class AttentivePool(nn.Module):
    """Patch tokens to one vector by learned queries: efficient probing (Psomas et al. 2025, arXiv
    2506.10178).

    Each query weights the tokens by a softmax of its products with them, there is no key map, and
    pools its own slice of one value projection; there is no output map either.

    Args:
        dim: width D of the tokens.
        queries: Q, a divisor of D.

    Raises:
        UserError: `queries` does not divide `dim`.
    """

    def __init__(self, dim: int, queries: int = 32):
        super().__init__()
        check_queries(dim, queries)
        self.query = nn.Parameter(torch.empty(queries, dim))
        self.value = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.query, std=0.02)  # nearly the mean of the tokens at first
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        weights = self.weights(tokens)
        # Weights sum to 1 and the projection is linear, so it may follow the pooling: it is then
        # applied Q times in place of N times, each time to its slice. For a ViT-B with 196 patches
        # the whole head needs 11 times fewer operations so.
        pooled = weights.to(tokens.dtype) @ tokens
        slices = self.value.weight.unflatten(0, (len(self.query), -1))
        return torch.einsum("bqd,qed->bqe", pooled, slices).flatten(1) + self.value.bias

    def weights(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B Q N"]:
        """How much each query takes of each token; they sum to 1 over the tokens."""
        products = self.query @ tokens.transpose(1, 2)
        return (products * tokens.shape[2] ** -0.5).softmax(2)


def check_queries(dim: int, queries: int) -> None:
    """Raises UserError unless so many queries divide the width of tokens."""
    if queries < 1 or dim % queries:
        divisors = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0)
        raise UserError(
            f"--queries {queries} does not divide the width of the tokens, {dim}; "
            f"possible: {divisors}"
        )


class Classifier(nn.Module):
    """An encoder and a classification head.

    Args:
        encoder: any `Backbone`; one with a class token if `pool` is "cls".
        classes: their names, in the order of the logits.
        pool: "mean" of the patch tokens, with a norm of its own (`fc_norm`) in place of the
            encoder's final norm, which is removed (the reference's fine-tuning); "cls", the
            class token after the encoder's norm (the paper's linear probe); or "attentive", an
            `AttentivePool` of the patch tokens after the encoder's norm, and `fc_norm`.
        batch_norm: a BatchNorm without affine parameters before the linear map (the paper's linear
            probe, appendix A.1); with "attentive" it takes the place of `fc_norm`.
        queries: of the attentive pooling.
    """

    def __init__(
        self,
        encoder: Backbone,
        classes: Sequence[str],
        pool: str = "mean",
        batch_norm: bool = False,
        queries: int = 32,
    ):
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"unknown pool '{pool}'; one of: {', '.join(POOLS)}")
        if len(classes) < 2:
            raise UserError(f"a classifier needs at least two classes, not {list(classes)}")
        if pool == "cls" and not encoder.num_prefix_tokens:
            raise UserError("--pool cls: this encoder has no class token; use mean or attentive")
        dim = encoder.embed_dim
        self.encoder = encoder
        self.classes = tuple(classes)
        self.pool = pool
        if pool == "mean":
            encoder.remove_norm()
        self.query_pool = AttentivePool(dim, queries) if pool == "attentive" else None
        normed = pool == "mean" or (pool == "attentive" and not batch_norm)
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6) if normed else nn.Identity()
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.head = nn.Linear(dim, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.01 if batch_norm else 2e-5)
        nn.init.zeros_(self.head.bias)
        self.beside: MAEBeside | None = None  # see `add_beside`

    def add_beside(self, described: dict[str, Any]) -> MAEBeside:
        """Adds a decoder for the MAE's loss on the same images, which predictions do not need."""
        self.beside = MAEBeside(self.encoder, described, norm=self.pool == "mean")
        return self.beside

    def config(self) -> dict[str, Any]:
        """JSON-able arguments for `build`."""
        return {
            "encoder": self.encoder.config(),
            "classes": list(self.classes),
            "pool": self.pool,
            "batch_norm": isinstance(self.bn, nn.BatchNorm1d),
            **({"queries": len(self.query_pool.query)} if self.query_pool is not None else {}),
            **({"beside": self.beside.described} if self.beside is not None else {}),
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> "Classifier":
        """The classifier that `config()` describes, with new weights."""
        rest = {name: v for name, v in config.items() if name not in ("encoder", "beside")}
        classifier = cls(build_encoder(config["encoder"]), **rest)
        if "beside" in config:
            classifier.add_beside(config["beside"])
        return classifier

    def forward(
        self, images: Float[Tensor, "B C H W"], draws: Float[Tensor, "B depth 2"] | None = None
    ) -> Float[Tensor, "B classes"]:
        """Logits of normalised images; `draws` is the encoder's randomness of stochastic depth
        while training."""
        return self.head(self.bn(self.features(images, draws)))

    def features(
        self, images: Float[Tensor, "B C H W"], draws: Float[Tensor, "B depth 2"] | None = None
    ) -> Float[Tensor, "B D"]:
        """What the linear map sees: pooled and normed tokens."""
        tokens = self.encoder(images, draws=draws)
        if self.pool == "cls":
            return tokens[:, 0]
        patches = tokens[:, self.encoder.num_prefix_tokens :]
        pooled = patches.mean(1) if self.query_pool is None else self.query_pool(patches)
        return self.fc_norm(pooled)


def blocks_of(train: str, blocks: int) -> float:
    """How many of the last blocks "all", "head", "0.5" or a number means; `UserError` for anything
    else."""
    try:
        count = {"all": float(blocks), "head": 0.0}.get(train)
        count = float(train) if count is None else count
    except ValueError:
        count = -1.0
    if count != 0.5 and count not in range(blocks + 1):
        raise UserError(f"--train {train}: all, head, 0.5 or a number of blocks from 0 to {blocks}")
    return count


def trainable(classifier: Classifier, train: str) -> list[str]:
    """The names of the parameters that are trained.

    Args:
        classifier: the model.
        train: "all", "head", or the last K blocks ("4"; "0.5" is the MLP half of the last block,
            paper section 4.3), with the norms after them and the head.
    """
    names = [name for name, _ in classifier.named_parameters()]
    after = [n for n in names if n.startswith(("query_pool.", "fc_norm.", "bn.", "head."))]
    if train == "head":
        return [n for n in after if n.startswith(("query_pool.", "head."))]
    found = with_last_blocks(classifier, classifier.encoder, train)
    return [name for name in found if name != "beside.decoder.pos_embed"]  # fixed, as in the MAE


def without_encoder(model: nn.Module) -> list[str]:
    """The names of the parameters of a model that are not in its `encoder`."""
    return [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]


def with_last_blocks(model: nn.Module, encoder: Backbone, train: str) -> list[str]:
    """The names of the parameters of the last blocks of a model's encoder, and of all that follows.

    Args:
        model: what the names are of.
        encoder: a part of it, which comes first.
        train: "all", "0.5" or a number of blocks, see `trainable`.
    """
    named = list(model.named_parameters())
    names = [name for name, _ in named]
    if train == "all":
        return names
    layers = encoder.layers()
    count = blocks_of(train, len(layers))
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    last_inside = max((i for i, (_, p) in enumerate(named) if id(p) in inside), default=-1)
    after = names[last_inside + 1 :]
    parts: list[nn.Module] = layers[len(layers) - int(count) :]
    if count == 0.5:
        last = layers[-1]
        if not isinstance(last, Block):
            raise UserError(
                f"--train 0.5: for torchmae's own blocks of a ViT, not {type(last).__module__}'s "
                f"{type(last).__name__}"
            )
        parts = [last.norm2, last.mlp, last.ls2]
    chosen = {id(parameter) for part in parts for parameter in part.parameters()}
    return [n for n, p in named if id(p) in chosen] + after
