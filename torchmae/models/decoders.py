"""Decoders: encoded visible tokens to features of patches. `DECODERS["mine"] = cls` adds one."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.encoders import Backbone
from torchmae.models.masking import Mask
from torchmae.models.patches import Size, gather_tokens, resize_positions, sincos_positions
from torchmae.models.sizes import check_sizes
from torchmae.models.vit import Block, CrossBlock, initialize, product_flops


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder: its kind (a name in `DECODERS`), width, number of blocks, and heads of a block."""

    kind: str
    dim: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        check_sizes(vars(self), zero=("depth", "heads"))  # where there are no blocks


class Decoder(nn.Module):
    """The contract of a decoder.

    Args:
        config: what `DECODERS[config.kind]` is built from.
        encoder: its width, grid and class token.
        width: values predicted for a patch.
        mask_token: False if the encoder had mask tokens, so that there is a latent for every place.

    Attributes:
        has_blocks: a class attribute; False if depth and heads mean nothing.
        every_block: a class attribute; True if the latents are the tokens after every block of the
            encoder, one block's values after the other's: `[B, T, blocks * D]`.
        class_tokens: 1 if the first of the latents belongs to the class token, else 0.
        blocks: its layers, for FSDP and checkpointing.
        pred: features to the values that are predicted.
        statistics: features to mean and std of a patch; set by `MAE` where the target needs it.
    """

    has_blocks = True
    every_block = False
    pred: nn.Linear
    blocks: nn.ModuleList
    pos_embed: nn.Parameter

    def __init__(self, config: DecoderConfig, encoder: Backbone, width: int, mask_token: bool):
        super().__init__()
        self.config = config
        self.grid: Size = encoder.grid
        self.class_tokens = min(1, encoder.num_prefix_tokens)
        self.statistics: nn.Linear | None = None

    def forward(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B N E"]:
        """Features of all patches, the visible first, then the hidden.

        Args:
            latent: the class token (if there is one) and the visible patches; those of the hidden
                places too, if the encoder had mask tokens.
            mask: the places of the patches.
            grid: of these images, if it is not the model's: positions are resized.
        """
        raise NotImplementedError

    def hidden(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B M E"]:
        """Features of the hidden patches: `forward(latent, mask)[:, K:]`, perhaps for less."""
        other = () if grid is None else (grid,)  # decoders of plugins need not know of it
        return self(latent, mask, *other)[:, mask.keep.shape[1] :]

    def positions(self, grid: Size | None) -> Float[Tensor, "1 T E"]:
        """The position table `pos_embed`, for a grid."""
        return resize_positions(self.pos_embed, self.grid, grid or self.grid)

    def flops(self, visible: int, predicted: int) -> int | None:
        """Operations of a forward pass for one image, predictions included (`training_flops`);
        None: not counted. A subclass that computes something else says so here.

        Args:
            visible: patches, or all where the encoder had mask tokens.
            predicted: patches besides them.
        """
        return None


class TransformerDecoder(Decoder):
    """Visible tokens and a shared mask token at each hidden place, through transformer blocks
    (paper section 3)."""

    def __init__(self, config: DecoderConfig, encoder: Backbone, width: int, mask_token: bool):
        super().__init__(config, encoder, width, mask_token)
        dim = config.dim
        if config.depth < 1:
            raise UserError(
                f"decoder depth {config.depth}: at least 1 block is needed (with none, no hidden "
                "patch sees anything)"
            )
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if mask_token else None
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, width)
        initialize(self)

    def forward(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B N E"]:
        """Features of all patches, the visible first.

        Attention does not depend on the order and positions carry the place, so nothing is shuffled
        back.
        """
        x = self.tokens(latent, mask, grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, self.class_tokens :]

    def hidden(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B M E"]:
        """Features of the hidden patches, all that a loss on them needs, with less work.

        In the last block, the other tokens are needed as keys and values only.
        """
        x = self.tokens(latent, mask, grid)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, skip=self.class_tokens + mask.keep.shape[1]))

    def tokens(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B U E"]:
        """What enters the first block, with positions: class token, visible and hidden patches."""
        x = self.embed(latent)
        positions = self.positions(grid)[:, 1:]
        places = torch.cat(mask, dim=1) if self.mask_token is None else mask.keep
        first, patches = x[:, : self.class_tokens], x[:, self.class_tokens :]
        first = first + self.pos_embed[:, : self.class_tokens]
        parts = [first, patches + gather_tokens(positions, places)]
        if self.mask_token is not None:
            parts.append(self.mask_token + gather_tokens(positions, mask.hide))
        return torch.cat(parts, dim=1)

    def flops(self, visible: int, predicted: int) -> int:
        dim, first = self.config.dim, 1 + visible
        tokens = first + predicted
        block = product_flops(tokens, dim, 12 * dim) + 2 * product_flops(tokens, dim, tokens)
        ends = product_flops(first, self.embed.in_features, dim)
        ends += product_flops(tokens, dim, self.pred.out_features)  # the class token's too
        return ends + self.config.depth * block


class CrossDecoder(Decoder):
    """Mask tokens that look at the visible patches and not at each other (CrossMAE, Fu et al.
    2024): the prediction of a patch does not depend on which others are predicted.

    A block is cross-attention and an MLP. Features of visible patches, if a loss on all patches
    wants them, are those of mask tokens at their places.
    """

    def __init__(self, config: DecoderConfig, encoder: Backbone, width: int, mask_token: bool):
        super().__init__(config, encoder, width, mask_token)
        dim = config.dim
        if config.depth < 1:
            raise UserError(f"decoder depth {config.depth}: at least 1 block is needed")
        if not mask_token:
            raise UserError(
                "the cross decoder's queries are its own mask tokens: with --encode-all use the "
                "transformer decoder"
            )
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, dim), requires_grad=False)
        self.blocks = nn.ModuleList(CrossBlock(dim, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, width)
        initialize(self)

    def forward(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B N E"]:
        return self.predicted(latent, mask, torch.cat(mask, dim=1), grid)

    def hidden(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B M E"]:
        return self.predicted(latent, mask, mask.hide, grid)

    def predicted(
        self,
        latent: Float[Tensor, "B T D"],
        mask: Mask,
        ids: Int64[Tensor, "B P"],
        grid: Size | None = None,
    ) -> Float[Tensor, "B P E"]:
        """Features of the patches `ids`."""
        x = self.mask_token + gather_tokens(self.positions(grid)[:, 1:], ids)
        for block, seen in zip(self.blocks, self.seen(latent, mask, grid)):
            x = block(x, seen)
        return self.norm(x)

    def seen(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None
    ) -> Iterable[Float[Tensor, "B T E"]]:
        """What each block attends to."""
        return repeat(self.placed(latent, mask, grid))

    def placed(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None
    ) -> Float[Tensor, "B T E"]:
        """The class token and the visible patches, embedded, with their positions."""
        seen, positions = self.embed(latent), self.positions(grid)[:, 1:]
        first = seen[:, : self.class_tokens] + self.pos_embed[:, : self.class_tokens]
        patches = seen[:, self.class_tokens :] + gather_tokens(positions, mask.keep)
        return torch.cat([first, patches], dim=1)

    def flops(self, visible: int, predicted: int) -> int:
        dim, seen = self.config.dim, 1 + visible
        block = product_flops(predicted, dim, 10 * dim) + product_flops(seen, dim, 2 * dim)
        block += 2 * product_flops(predicted, dim, seen)
        ends = product_flops(seen, self.embed.in_features, dim)
        ends += product_flops(predicted, dim, self.pred.out_features)
        return ends + self.config.depth * block


class WeightedCrossDecoder(CrossDecoder):
    """A cross decoder, each block of which attends to its own learned weighting of the features of
    all encoder blocks (CrossMAE, Fu et al. 2024, "inter-block attention").

    `weights[i, j]` is the weight of encoder block j for decoder block i. At first all weight is on
    the last block, so that a training starts as with `CrossDecoder`.
    """

    every_block = True

    def __init__(self, config: DecoderConfig, encoder: Backbone, width: int, mask_token: bool):
        super().__init__(config, encoder, width, mask_token)
        weights = torch.zeros(config.depth, len(encoder.layers()))
        weights[:, -1] = 1
        self.weights = nn.Parameter(weights)

    def seen(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None
    ) -> Iterable[Float[Tensor, "B T E"]]:
        blocks = latent.unflatten(2, (self.weights.shape[1], -1))
        for weights in self.weights:
            yield self.placed(torch.einsum("btld,l->btd", blocks, weights), mask, grid)

    def flops(self, visible: int, predicted: int) -> int:
        seen, dim = 1 + visible, self.embed.in_features
        # Each block mixes and embeds what it sees, which `CrossDecoder` embeds once.
        mix = product_flops(seen, self.weights.shape[1], dim)
        again = (self.config.depth - 1) * product_flops(seen, dim, self.config.dim)
        return super().flops(visible, predicted) + self.config.depth * mix + again


class LinearDecoder(Decoder):
    """No block: a lower bound for decoders, and the prediction head of SimMIM (Xie et al. 2022)
    with `encode_all`.

    A patch is predicted by a linear map of its own token plus its position. A hidden patch has no
    token; in place of it is the mean of the visible tokens, so its prediction is a linear map of
    that mean plus a fixed picture of its place. If the encoder had mask tokens, hidden patches have
    tokens of their own.
    """

    has_blocks = False

    def __init__(self, config: DecoderConfig, encoder: Backbone, width: int, mask_token: bool):
        super().__init__(config, encoder, width, mask_token)
        self.mean_for_hidden = mask_token
        self.embed = nn.Linear(encoder.embed_dim, config.dim)
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, config.dim), requires_grad=False)
        self.blocks = nn.ModuleList()
        self.pred = nn.Linear(config.dim, width)
        initialize(self)

    def forward(
        self, latent: Float[Tensor, "B T D"], mask: Mask, grid: Size | None = None
    ) -> Float[Tensor, "B N E"]:
        """Features of all patches, the visible first."""
        patches = latent[:, self.class_tokens :]
        if self.mean_for_hidden:
            mean = patches.mean(dim=1, keepdim=True).expand(-1, mask.hide.shape[1], -1)
            patches = torch.cat([patches, mean], dim=1)
        return self.embed(patches) + gather_tokens(
            self.positions(grid)[:, 1:], torch.cat(mask, dim=1)
        )

    def flops(self, visible: int, predicted: int) -> int:
        # It takes a vector for each patch, and none for the class token.
        tokens, dim = visible + predicted, self.config.dim
        return product_flops(tokens, self.embed.in_features + self.pred.out_features, dim)


DECODERS: dict[str, type[Decoder]] = {
    "transformer": TransformerDecoder,
    "cross": CrossDecoder,
    "cross-weighted": WeightedCrossDecoder,
    "linear": LinearDecoder,
}


def decoder_config(
    embed_dim: int,
    kind: str = "transformer",
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> DecoderConfig:
    """The decoder for an encoder of this width, where None means the default.

    By default the paper's width 512, 8 blocks and 16 heads from ViT-B on; less for smaller
    encoders. Heads are 32 wide.

    Raises:
        UserError: the kind is unknown, or it has no blocks and depth or heads are given.
    """
    cls = choose(DECODERS, kind, "decoder")
    small = (256, 4, 8) if embed_dim >= 384 else (128, 2, 4)
    usual = (512, 8, 16) if embed_dim >= 768 else small
    if not cls.has_blocks:
        if depth or heads:
            raise UserError(f"the {kind} decoder has no blocks: leave its depth and heads out")
        return DecoderConfig(kind, dim or usual[0], 0, 0)
    default_heads = usual[2] if dim is None else max(1, dim // 32)
    return DecoderConfig(
        kind, dim or usual[0], usual[1] if depth is None else depth, heads or default_heads
    )


def statistics_head(dim: int) -> nn.Linear:
    """A linear map of features to mean and std of a patch, which starts at zero: "as the visible
    patches"."""
    head = nn.Linear(dim, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
