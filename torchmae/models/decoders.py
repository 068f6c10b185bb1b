"""Decoders: encoded visible tokens to features of patches. `DECODERS["mine"] = cls` adds one."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.encoders import Backbone
from torchmae.models.masking import Mask
from torchmae.models.patches import Size, gather_tokens, resize_positions, sincos_positions
from torchmae.models.sizes import check_sizes
from torchmae.models.vit import Block, initialize


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
        class_tokens: 1 if the first of the latents belongs to the class token, else 0.
        blocks: its layers, for FSDP and checkpointing.
        pred: features to the values that are predicted.
        statistics: features to mean and std of a patch; set by `MAE` where the target needs it.
    """

    has_blocks = True
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
        other = {} if grid is None else {"grid": grid}  # which a plugin's need not know
        return self(latent, mask, **other)[:, mask.keep.shape[1] :]

    def positions(self, grid: Size | None) -> Float[Tensor, "1 T E"]:
        """The position table `pos_embed`, for a grid."""
        return resize_positions(self.pos_embed, self.grid, grid or self.grid)


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


DECODERS: dict[str, type[Decoder]] = {"transformer": TransformerDecoder, "linear": LinearDecoder}


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
