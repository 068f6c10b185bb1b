"""A classification head on an encoder: pooled tokens, a norm, a linear map to the classes."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.vit import Block

POOLS = ("mean", "cls")


class Classifier(nn.Module):
    """An encoder and a classification head.

    Args:
        encoder: any `Backbone`; one with a class token if `pool` is "cls".
        classes: their names, in the order of the logits.
        pool: "mean" of the patch tokens, with a norm of its own (`fc_norm`) in place of the
            encoder's final norm, which is removed (the reference's fine-tuning); or "cls", the
            class token after the encoder's norm (the paper's linear probe).
        batch_norm: a BatchNorm without affine parameters before the linear map (the paper's linear
            probe, appendix A.1).
    """

    def __init__(
        self,
        encoder: Backbone,
        classes: Sequence[str],
        pool: str = "mean",
        batch_norm: bool = False,
    ):
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"unknown pool '{pool}'; one of: {', '.join(POOLS)}")
        if len(classes) < 2:
            raise UserError(f"a classifier needs at least two classes, not {list(classes)}")
        dim = encoder.embed_dim
        self.encoder = encoder
        self.classes = tuple(classes)
        self.pool = pool
        if pool == "mean":
            encoder.remove_norm()
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6) if pool == "mean" else nn.Identity()
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.head = nn.Linear(dim, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.01 if batch_norm else 2e-5)
        nn.init.zeros_(self.head.bias)

    def config(self) -> dict[str, Any]:
        """JSON-able arguments for `build`."""
        return {
            "encoder": self.encoder.config(),
            "classes": list(self.classes),
            "pool": self.pool,
            "batch_norm": isinstance(self.bn, nn.BatchNorm1d),
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> "Classifier":
        """The classifier that `config()` describes, with new weights."""
        rest = {name: v for name, v in config.items() if name != "encoder"}
        return cls(build_encoder(config["encoder"]), **rest)

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
        if self.pool == "mean":
            return self.fc_norm(tokens[:, self.encoder.num_prefix_tokens :].mean(1))
        return tokens[:, 0]


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
    after = [n for n in names if n.startswith(("fc_norm.", "bn.", "head."))]
    if train == "head":
        return [n for n in after if n.startswith("head.")]
    if train == "all":
        return names
    layers = classifier.encoder.layers()
    count = blocks_of(train, len(layers))
    after = [n for n in names if n.startswith("encoder.norm.")] + after
    parts: list[nn.Module] = layers[len(layers) - int(count) :]
    if count == 0.5:
        last = layers[-1]
        if not isinstance(last, Block):
            raise UserError(f"--train 0.5: for blocks of a ViT, not {type(last).__name__}")
        parts = [last.norm2, last.mlp, last.ls2]
    chosen = {id(parameter) for part in parts for parameter in part.parameters()}
    return [n for n, p in classifier.named_parameters() if id(p) in chosen] + after
