"""The Masked Autoencoder: encoder, light decoder, loss (He et al. 2021, section 3). A pure function of images and mask."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.masking import Mask
from torchmae.models.patches import patchify, sincos_positions, take
from torchmae.models.targets import TARGETS, patch_statistics
from torchmae.models.vit import Block, ViT, initialize

LOSSES = {"hidden": "the mean over hidden patches", "all": "the mean over all patches (paper: 0.5 % worse)"}


class Output(NamedTuple):
    """What one forward pass of `MAE` gives. Gradients of `loss` never reach the statistics head, and those of
    `statistics_loss` reach nothing else."""

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "B M P"]
    statistics_loss: Float[Tensor, ""] | None
    statistics: Float[Tensor, "B M 2"] | None


class Decoder(nn.Module):
    """Encoded visible tokens and a shared mask token at each hidden place, through a few blocks (paper section 3)."""

    def __init__(
        self,
        encoder_dim: int,
        grid: tuple[int, int],
        out_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        statistics: bool,
    ):
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(grid, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, out_dim)
        initialize(self)
        self.statistics = nn.Linear(dim, 2) if statistics else None
        if self.statistics is not None:  # starts as "as the visible patches"; last, so no other draw changes
            nn.init.zeros_(self.statistics.weight)
            nn.init.zeros_(self.statistics.bias)

    def forward(self, latent: Float[Tensor, "B T D"], mask: Mask) -> Float[Tensor, "B U E"]:
        """Features `[B, 1 + N, dim]` in the order (class token, visible, hidden).

        Attention does not care for the order and positions carry the place, so nothing is shuffled back.
        """
        x = self.embed(latent)
        cls_position, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        visible = x[:, 1:] + take(positions, mask.keep)
        hidden = self.mask_token + take(positions, mask.hide)
        x = torch.cat([x[:, :1] + cls_position, visible, hidden], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MAE(nn.Module):
    """Masked Autoencoder around an encoder.

    Args:
        decoder_dim, decoder_depth, decoder_heads: by default those of `decoder_size`.
        target: a name in `TARGETS`. With normalised pixels, a linear head on detached decoder features predicts each
            hidden patch's mean and deviation, so that pictures need not borrow the true ones.
        loss_on: "hidden" (the paper's) or "all" patches.
    """

    def __init__(
        self,
        encoder: ViT,
        decoder_dim: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        target: str = "norm-pixels",
        loss_on: str = "hidden",
    ):
        super().__init__()
        choose(LOSSES, loss_on, "loss")
        dim, depth, heads = decoder_size(encoder.embed_dim)
        dim, depth = decoder_dim or dim, depth if decoder_depth is None else decoder_depth
        heads = decoder_heads or (heads if decoder_dim is None else max(1, dim // 32))
        if depth < 1:
            raise UserError(
                f"decoder depth {depth}: at least 1 block is needed (with none, no hidden patch sees anything)"
            )
        self.encoder = encoder
        self.target_name, self.loss_on = target, loss_on
        self.target = choose(TARGETS, target, "target")(encoder.patch_size, encoder.channels)
        self.decoder = Decoder(
            encoder.embed_dim, encoder.grid, self.target.width, dim, depth, heads, self.target.loses_statistics
        )

    def config(self) -> dict[str, Any]:
        """JSON-able arguments for `MAE.build`."""
        decoder = self.decoder
        heads = decoder.blocks[0].attn.num_heads  # type: ignore[union-attr]
        return {
            "encoder": self.encoder.config(),
            "decoder_dim": decoder.norm.normalized_shape[0],
            "decoder_depth": len(decoder.blocks),
            "decoder_heads": heads,
            "target": self.target_name,
            "loss_on": self.loss_on,
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> "MAE":
        """The model that `config()` described, with fresh weights."""
        return cls(build_encoder(config["encoder"]), **{name: v for name, v in config.items() if name != "encoder"})

    def forward(self, images: Float[Tensor, "B C H W"], mask: Mask) -> Output:
        """Loss and prediction for normalised float images; draws nothing at random, the caller makes the mask."""
        count = mask.keep.shape[1] + mask.hide.shape[1]
        if self.decoder.grid != self.encoder.grid or count != math.prod(self.encoder.grid):
            raise UserError(
                f"encoder, decoder and mask disagree: grids {self.encoder.grid} and {self.decoder.grid}, {count} patches"
            )
        features = self.decoder(self.encoder(images, mask.keep), mask)
        hidden = features[:, 1 + mask.keep.shape[1] :]
        exact = torch.promote_types(images.dtype, torch.float32)  # autocast's halves are too coarse for a loss
        if self.loss_on == "hidden":
            prediction = self.decoder.pred(hidden).to(exact)
            loss = (prediction - self.target(images, mask.hide)).square().mean()
        else:
            everything = self.decoder.pred(features[:, 1:]).to(exact)
            loss = (everything - self.target(images, torch.cat(mask, dim=1))).square().mean()
            prediction = everything[:, mask.keep.shape[1] :]
        if self.decoder.statistics is None:
            return Output(loss, prediction, None, None)
        patches = patchify(images, self.encoder.patch_size)
        seen = patch_statistics(take(patches, mask.keep)).mean(dim=1, keepdim=True)
        statistics = seen + self.decoder.statistics(hidden.detach()).to(exact)
        statistics_loss = (statistics - patch_statistics(take(patches, mask.hide))).square().mean()
        return Output(loss, prediction, statistics_loss, statistics)


def decoder_size(embed_dim: int) -> tuple[int, int, int]:
    """Default width, depth and heads: the paper's 512, 8, 16 from ViT-B on; smaller, 32 a head, for smaller encoders."""
    if embed_dim >= 768:
        return 512, 8, 16
    return (256, 4, 8) if embed_dim >= 384 else (128, 2, 4)


def build_encoder(config: dict[str, Any]) -> ViT:
    """The encoder that `ViT.config()` described, with fresh weights; lists from JSON become tuples again."""
    arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
    return ViT(**arguments)
