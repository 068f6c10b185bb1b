"""The Masked Autoencoder: encoder, light decoder, loss (He et al. 2021, section 3). A pure function of images and mask."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.masking import Mask
from torchmae.models.patches import gather_tokens, patch_statistics, patchify, sincos_positions
from torchmae.models.targets import TARGETS
from torchmae.models.vit import Block, Rows, ViT, initialize

LOSSES = {
    "hidden": "the mean over hidden patches",
    "all": "the mean over all patches (paper: 0.5 % worse)",
}


class Output(NamedTuple):
    """What one forward pass of `MAE` gives. Gradients of `loss` never reach the statistics head, and those of
    `statistics_loss` reach nothing else."""

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "B M P"]
    statistics_loss: Float[Tensor, ""] | None
    statistics: Float[Tensor, "B M 2"] | None


class Decoder(nn.Module):
    """Encoded visible tokens and a shared mask token at each hidden place, through a few blocks (paper section 3).

    Without a `mask_token` it takes tokens of all places from the encoder: class, visible, hidden.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid: tuple[int, int],
        out_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        statistics: bool,
        mask_token: bool = True,
    ):
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if mask_token else None
        self.pos_embed = nn.Parameter(sincos_positions(grid, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, out_dim)
        initialize(self)
        self.statistics = nn.Linear(dim, 2) if statistics else None
        if (
            self.statistics is not None
        ):  # starts as "as the visible patches"; last, so no other draw changes
            nn.init.zeros_(self.statistics.weight)
            nn.init.zeros_(self.statistics.bias)

    def forward(self, latent: Float[Tensor, "B T D"], mask: Mask) -> Float[Tensor, "B U E"]:
        """Features `[B, 1 + N, dim]` in the order (class token, visible, hidden).

        Attention does not care for the order and positions carry the place, so nothing is shuffled back.
        """
        x, masked = self.tokens(latent, mask)
        if masked is not None:
            x = torch.cat([x, gather_tokens(*masked)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def hidden(self, latent: Float[Tensor, "B T D"], mask: Mask) -> Float[Tensor, "B M E"]:
        """`forward(latent, mask)[:, 1 + K :]`, which is all that a loss on hidden patches needs, with less work.

        What enters the first block for a mask token depends on its place only: norm and qkv are computed once a place, not
        once an image. Of the last block, the visible patches and the class token are needed as keys and values only.
        """
        x, masked = self.tokens(latent, mask)
        for block in self.blocks[:-1]:
            x, masked = block(x, masked), None
        return self.norm(self.blocks[-1](x, masked, skip=1 + mask.keep.shape[1]))

    def tokens(
        self, latent: Float[Tensor, "B T D"], mask: Mask
    ) -> tuple[Float[Tensor, "B T E"], Rows | None]:
        """What enters the first block: the encoded tokens, and the mask tokens as rows of a table; each with its position."""
        x, cls_position, positions = (
            self.embed(latent),
            self.pos_embed[:, :1],
            self.pos_embed[:, 1:],
        )
        places = torch.cat(mask, dim=1) if self.mask_token is None else mask.keep
        encoded = torch.cat(
            [x[:, :1] + cls_position, x[:, 1:] + gather_tokens(positions, places)], dim=1
        )
        return encoded, None if self.mask_token is None else Rows(
            self.mask_token + positions, mask.hide
        )


class MAE(nn.Module):
    """Masked Autoencoder around an encoder.

    Args:
        decoder_dim, decoder_depth, decoder_heads: by default those of `decoder_size`.
        target: a name in `TARGETS`. With normalised pixels, a linear head on detached decoder features predicts each
            hidden patch's mean and deviation, so that pictures need not borrow the true ones.
        loss_on: "hidden" (the paper's) or "all" patches.
        encode_all: the encoder gets mask tokens at the hidden places, and the decoder none of its own (paper Table 1c: worse
            features, for ViT-L 3.3 times the work); to compare with.
    """

    def __init__(
        self,
        encoder: ViT,
        decoder_dim: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        target: str = "norm-pixels",
        loss_on: str = "hidden",
        encode_all: bool = False,
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
        self.target_name, self.loss_on, self.encode_all = target, loss_on, encode_all
        self.target = choose(TARGETS, target, "target")(encoder.patch_size, encoder.channels)
        shape = (encoder.embed_dim, encoder.grid, self.target.width, dim, depth, heads)
        self.decoder = Decoder(
            *shape, statistics=self.target.loses_statistics, mask_token=not encode_all
        )
        # Here and not in the encoder, whose weights are those of a plain ViT.
        self.mask_token = (
            nn.Parameter(torch.randn(1, 1, encoder.embed_dim) * 0.02) if encode_all else None
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
            "encode_all": self.encode_all,
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> "MAE":
        """The model that `config()` described, with fresh weights."""
        return cls(
            build_encoder(config["encoder"]),
            **{name: v for name, v in config.items() if name != "encoder"},
        )

    def forward(self, images: Float[Tensor, "B C H W"], mask: Mask) -> Output:
        """Loss and prediction for normalised float images; draws nothing at random, the caller makes the mask."""
        count = mask.keep.shape[1] + mask.hide.shape[1]
        if self.decoder.grid != self.encoder.grid or count != math.prod(self.encoder.grid):
            raise UserError(
                f"encoder, decoder and mask disagree: grids {self.encoder.grid} and {self.decoder.grid}, {count} patches"
            )
        latent = self.encode(images, mask)
        exact = torch.promote_types(
            images.dtype, torch.float32
        )  # autocast's halves are too coarse for a loss
        if self.loss_on == "hidden":
            hidden = self.decoder.hidden(latent, mask)
            prediction = self.decoder.pred(hidden).to(exact)
            loss = (prediction - self.target(images, mask.hide)).square().mean()
        else:
            features = self.decoder(latent, mask)[:, 1:]
            hidden = features[:, mask.keep.shape[1] :]
            everything = self.decoder.pred(features).to(exact)
            loss = (everything - self.target(images, torch.cat(mask, dim=1))).square().mean()
            prediction = everything[:, mask.keep.shape[1] :]
        if self.decoder.statistics is None:
            return Output(loss, prediction, None, None)
        seen, truth = (
            patch_statistics(patchify(images, self.encoder.patch_size, ids)) for ids in mask
        )
        statistics = seen.mean(dim=1, keepdim=True) + self.decoder.statistics(hidden.detach()).to(
            exact
        )
        statistics_loss = (statistics - truth).square().mean()
        return Output(loss, prediction, statistics_loss, statistics)

    def encode(self, images: Float[Tensor, "B C H W"], mask: Mask) -> Float[Tensor, "B T D"]:
        """What the decoder gets: encoded tokens of the visible patches, or with `encode_all` of all places."""
        if self.mask_token is None:
            return self.encoder(images, mask.keep)
        masked = self.mask_token + gather_tokens(self.encoder.pos_embed[:, 1:], mask.hide)
        return self.encoder.encode(
            torch.cat([self.encoder.tokens(images, mask.keep), masked], dim=1)
        )

    def set_grad_checkpointing(self, on: bool) -> None:
        """Activation checkpointing in encoder and decoder; see `ViT.set_grad_checkpointing`."""
        self.encoder.set_grad_checkpointing(on)
        for block in self.decoder.blocks:
            block.checkpointed = on  # type: ignore[assignment]


def decoder_size(embed_dim: int) -> tuple[int, int, int]:
    """Default width, depth and heads: the paper's 512, 8, 16 from ViT-B on; smaller, 32 a head, for smaller encoders."""
    if embed_dim >= 768:
        return 512, 8, 16
    return (256, 4, 8) if embed_dim >= 384 else (128, 2, 4)


def build_encoder(config: dict[str, Any]) -> ViT:
    """The encoder that `ViT.config()` described, with fresh weights; lists from JSON become tuples again."""
    arguments: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in config.items()
    }
    return ViT(**arguments)
