"""What stands on an encoder to classify: pooled tokens, a norm of their own, a linear map to the classes."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError
from torchmae.models.mae import build_encoder
from torchmae.models.vit import ViT

POOLS = ("mean", "cls")


class Classifier(nn.Module):
    """An encoder and a head.

    Args:
        classes: their names, in the order of the logits.
        pool: "mean" of the patch tokens with a norm of its own (`fc_norm`) in place of the encoder's last one, which goes
            (the reference's fine-tuning); or "cls", the class token behind the encoder's norm (the paper's linear probe).
        batch_norm: a BatchNorm without affine parameters before the linear map (the paper's linear probe, appendix A.1).
    """

    def __init__(
        self, encoder: ViT, classes: Sequence[str], pool: str = "mean", batch_norm: bool = False
    ):
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"unknown pool '{pool}'; one of: {', '.join(POOLS)}")
        if len(classes) < 2:
            raise UserError(f"a classifier needs at least two classes, not {list(classes)}")
        self.encoder, self.classes, self.pool = encoder, tuple(classes), pool
        if pool == "mean":
            encoder.norm = nn.Identity()  # type: ignore[assignment]
        self.fc_norm = (
            nn.LayerNorm(encoder.embed_dim, eps=1e-6) if pool == "mean" else nn.Identity()
        )
        self.bn = (
            nn.BatchNorm1d(encoder.embed_dim, affine=False, eps=1e-6)
            if batch_norm
            else nn.Identity()
        )
        self.head = nn.Linear(encoder.embed_dim, len(classes))
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
        """The classifier that `config()` described, with fresh weights."""
        return cls(
            build_encoder(config["encoder"]),
            **{name: v for name, v in config.items() if name != "encoder"},
        )

    def forward(
        self, images: Float[Tensor, "B C H W"], draws: Float[Tensor, "B depth 2"] | None = None
    ) -> Float[Tensor, "B classes"]:
        """Logits for normalised float images; `draws` are the encoder's, for stochastic depth while training."""
        return self.head(self.bn(self.features(images, draws)))

    def features(
        self, images: Float[Tensor, "B C H W"], draws: Float[Tensor, "B depth 2"] | None = None
    ) -> Float[Tensor, "B D"]:
        """What the head sees: pooled and normed tokens."""
        tokens = self.encoder(images, draws=draws)
        return self.fc_norm(tokens[:, 1:].mean(1)) if self.pool == "mean" else tokens[:, 0]


def blocks_of(train: str, blocks: int) -> float:
    """How many of the last blocks "all", "head", "0.5" or a number means; `UserError` for what cannot be trained."""
    try:
        count = {"all": float(blocks), "head": 0.0}.get(train)
        count = float(train) if count is None else count
    except ValueError:
        count = -1.0
    if count != 0.5 and count not in range(blocks + 1):
        raise UserError(f"--train {train}: all, head, 0.5 or a number of blocks from 0 to {blocks}")
    return count


def trainable(classifier: Classifier, train: str) -> list[str]:
    """The names of the parameters that "all", "head" or the last K blocks ("4", or "0.5": the MLP half of the last block,
    paper section 4.3) train; norms behind the last block and the head always do."""
    names = [name for name, _ in classifier.named_parameters()]
    behind = [n for n in names if n.startswith(("fc_norm.", "bn.", "head."))]
    if train == "head":
        return [n for n in behind if n.startswith("head.")]
    if train == "all":
        return names
    blocks = len(classifier.encoder.layers())
    count = blocks_of(train, blocks)
    behind = [n for n in names if n.startswith("encoder.norm.")] + behind
    if count == 0.5:
        last = f"encoder.blocks.{blocks - 1}."
        return [n for n in names if n.startswith((f"{last}norm2.", f"{last}mlp."))] + behind
    chosen = tuple(f"encoder.blocks.{i}." for i in range(blocks - int(count), blocks))
    return [n for n in names if chosen and n.startswith(chosen)] + behind
