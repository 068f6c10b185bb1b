"""The encoder: the plain pre-LN Vision Transformer, with timm's parameter names and values, that can skip patches.

`keep` picks patches before the embedding: a hidden patch costs nothing anywhere in the encoder (paper section 3).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchmae.errors import UserError
from torchmae.models.patches import (
    gather_tokens,
    grid_of,
    patchify,
    resize_positions,
    sincos_positions,
)


def attention(device: torch.device, precision: str) -> str:
    """Which attention trains, and why (see `models.vit.attend`)."""
    if device.type == "cpu" and precision == "bf16":
        return "plain attention (in bf16 on a CPU faster than the fused one)"
    return "fused attention"


def drop_path(
    x: Float[Tensor, "B U D"], draws: Float[Tensor, "B"], rate: float
) -> Float[Tensor, "B U D"]:
    """Stochastic depth (Huang et al. 2016): leaves out a branch for the images whose uniform draw is below the rate, and scales
    the others up."""
    return x * ((draws >= rate) / (1 - rate)).to(x.dtype).view(-1, 1, 1)


def attend(
    q: Float[Tensor, "B heads U d"],
    k: Float[Tensor, "B heads T d"],
    v: Float[Tensor, "B heads T d"],
) -> Float[Tensor, "B heads U d"]:
    """Softmax attention. Training in bf16 on a CPU takes the plain products: at the lengths of MAE (17 to 257 tokens) the
    fused kernel's backward is slower there (measured: ViT-Micro at 64 patches 668 against 305 images/s)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Rows(NamedTuple):
    """Tokens that images have in common, as rows of one table: image b has `gather_tokens(table, ids)[b]`."""

    table: Float[Tensor, "1 N D"]
    ids: Int64[Tensor, "B M"]


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values from one product. `shared` and `skip` are `Block`'s."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B T D"], shared: Rows | None = None, skip: int = 0
    ) -> Float[Tensor, "B U D"]:
        qkv = self.qkv(x)
        if shared is not None:
            qkv = torch.cat([qkv, gather_tokens(self.qkv(shared.table), shared.ids)], dim=1)
        batch, tokens, width = qkv.shape
        q, k, v = qkv.reshape(
            batch, tokens, 3, self.num_heads, width // 3 // self.num_heads
        ).permute(2, 0, 3, 1, 4)
        return self.proj(
            attend(q[:, :, skip:], k, v).transpose(1, 2).reshape(batch, tokens - skip, width // 3)
        )


class Mlp(nn.Module):
    """Two layers with exact GELU between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-LN transformer block; LayerNorm eps 1e-6.

    Two arguments leave out work whose result is known or not wanted (all of it inside `forward`, which sharding hooks on):
        shared: more tokens behind `x`, that images have in common: norm and qkv are computed once a row of the table.
        skip: so many tokens at the front are attended to, but not among the results.
    While training, `draws` (uniform, one for each of the two branches) decide what stochastic depth leaves out.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_rate = 0.0
        self.checkpointed = (
            False  # while training, keep the inputs only, and compute again in the backward pass
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        shared: Rows | None = None,
        skip: int = 0,
        draws: Float[Tensor, "B 2"] | None = None,
    ) -> Float[Tensor, "B U D"]:
        if self.checkpointed and self.training:
            return checkpoint(self.compute, x, shared, skip, draws, use_reentrant=False)
        return self.compute(x, shared, skip, draws)

    def compute(
        self,
        x: Float[Tensor, "B T D"],
        shared: Rows | None,
        skip: int,
        draws: Float[Tensor, "B 2"] | None,
    ) -> Float[Tensor, "B U D"]:
        normed = self.norm1(x)
        if shared is not None:
            x = torch.cat([x, gather_tokens(*shared)], dim=1)
            shared = Rows(self.norm1(shared.table), shared.ids)
        branch = self.attn(normed, shared, skip)
        drops = draws is not None and self.training and self.drop_rate > 0
        x = x[:, skip:] + (drop_path(branch, draws[:, 0], self.drop_rate) if drops else branch)  # type: ignore[index]
        branch = self.mlp(self.norm2(x))
        return x + (drop_path(branch, draws[:, 1], self.drop_rate) if drops else branch)  # type: ignore[index]


class PatchEmbed(nn.Module):
    """A linear map of each patch; kept as a convolution's weight `proj`, as in timm, so that weights move unchanged."""

    def __init__(self, patch_size: int, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Float[Tensor, "B K P"]) -> Float[Tensor, "B K D"]:
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(
            1
        )  # to the patch order (row, column, channel)
        return F.linear(patches, weight, self.proj.bias)


class ViT(nn.Module):
    """Vision Transformer encoder.

    Args:
        image_size: `(H, W)` in pixels, each divisible by `patch_size`.
        drop_path: rate of the last block; it grows linearly from 0 at the first (fine-tuning only; the paper uses none
            in pre-training).
        mean, std: a value for each channel; what `normalize` uses on uint8 pixels, measured on the training data.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 16,
        channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.image_size, self.patch_size, self.channels, self.embed_dim = (
            image_size,
            patch_size,
            channels,
            embed_dim,
        )
        self.depth, self.num_heads, self.mlp_ratio = depth, num_heads, mlp_ratio
        self.mean, self.std = mean or (0.5,) * channels, std or (0.5,) * channels
        if len(self.mean) != channels or len(self.std) != channels:
            raise UserError(
                f"mean {self.mean} and std {self.std} need one value for each of {channels} channels"
            )
        statistics = torch.tensor([self.mean, self.std]).view(2, -1, 1, 1)
        self.pixel_statistics: Tensor
        self.register_buffer(
            "pixel_statistics", statistics, persistent=False
        )  # not among the weights
        self.grid = grid_of(image_size, patch_size)
        self.patch_embed = PatchEmbed(patch_size, channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, embed_dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.set_drop_path(drop_path)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        initialize(self)

    def config(self) -> dict[str, object]:
        """The arguments that build this encoder again (without drop path, which belongs to a training)."""
        names = (
            "image_size",
            "patch_size",
            "channels",
            "embed_dim",
            "depth",
            "num_heads",
            "mlp_ratio",
            "mean",
            "std",
        )
        return {name: getattr(self, name) for name in names}

    def normalize(self, images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """uint8 pixels to what `forward` takes: `(pixels / 255 - mean) / std`."""
        mean, std = (
            self.pixel_statistics
        )  # on the device already: nothing is copied there at each step
        return (images.float() / 255 - mean) / std

    def layers(self) -> list[nn.Module]:
        """The blocks in order: the one list behind layer decay, partial fine-tuning, sharding and checkpointing."""
        return list(self.blocks)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int64[Tensor, "B K"] | None = None,
        layer: int | None = None,
        draws: Float[Tensor, "B depth 2"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Tokens `[B, 1 + K, D]`, the class token first, after the final norm; `keep=None` means all patches.

        `layer` stops after that many blocks (1..depth). Images are normalised floats of the model's size. `draws`, uniform in
        0..1, are the caller's randomness for stochastic depth while training; without them nothing is left out.
        """
        return self.encode(self.tokens(images, keep), layer, draws)

    def tokens(
        self, images: Float[Tensor, "B C H W"], keep: Int64[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """What enters the first block: the class token and the embedded patches, with their positions."""
        if images.shape[1:] != (self.channels, *self.image_size):
            given, wanted = (
                " x ".join(map(str, shape))
                for shape in (images.shape[1:], (self.channels, *self.image_size))
            )
            raise UserError(
                f"the encoder takes images of {wanted} (channels, height, width), not {given}"
            )
        positions = (
            self.pos_embed[:, 1:] if keep is None else gather_tokens(self.pos_embed[:, 1:], keep)
        )
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        return torch.cat(
            [first, self.patch_embed(patchify(images, self.patch_size, keep)) + positions], dim=1
        )

    def encode(
        self,
        tokens: Float[Tensor, "B T D"],
        layer: int | None = None,
        draws: Float[Tensor, "B depth 2"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The blocks, all or the first `layer` of them, and the final norm."""
        if layer is not None and not 1 <= layer <= len(self.blocks):
            raise UserError(f"layer {layer} does not exist: 1 to {len(self.blocks)}")
        for i, block in enumerate(self.blocks[:layer]):
            tokens = block(tokens, draws=None if draws is None else draws[:, i])
        return self.norm(tokens)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth: `rate` in the last block, growing linearly from 0 in the first."""
        for i, block in enumerate(self.blocks):
            block.drop_rate = rate * i / max(1, self.depth - 1)  # type: ignore[assignment]

    def set_grad_checkpointing(self, on: bool) -> None:
        """Activation checkpointing: blocks keep only what enters them and compute the rest again for the gradient, so that
        training takes much less memory and about a third more time. A matter of the run: not in `config()`."""
        for block in self.blocks:
            block.checkpointed = on  # type: ignore[assignment]

    def resize(self, image_size: tuple[int, int]) -> None:
        """Makes the encoder take images of another size; the positions are resized (bicubic)."""
        grid = grid_of(image_size, self.patch_size)
        positions = resize_positions(self.pos_embed.data, self.grid, grid)
        self.pos_embed = nn.Parameter(positions, requires_grad=self.pos_embed.requires_grad)
        self.image_size, self.grid = image_size, grid

    def restore_norm(self) -> bool:
        """Puts a fresh last norm where there is none (a classifier that pools the mean has its own in its head); True if so."""
        gone = isinstance(self.norm, nn.Identity)
        if gone:
            self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        return gone

    def adapt(self, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Makes the encoder take images of other channels, which `normalize` brings to these statistics.

        Each new channel's patch weights are the mean of the old ones times old / new, so that an image whose (normalised)
        channels are all alike gives what it gave before. With as many channels as before, only the statistics change.
        """
        if len(mean) != channels or len(std) != channels:
            raise UserError(
                f"mean {mean} and std {std} need one value for each of {channels} channels"
            )
        proj = self.patch_embed.proj
        if channels != self.channels:
            each = proj.weight.data.sum(1, keepdim=True) / channels
            weight = each.expand(-1, channels, -1, -1).contiguous()
            proj.weight, proj.in_channels = (
                nn.Parameter(weight, proj.weight.requires_grad),
                channels,
            )
        self.channels, self.mean, self.std = channels, mean, std
        self.pixel_statistics = self.pixel_statistics.new_tensor([mean, std]).view(2, -1, 1, 1)


def initialize(module: nn.Module) -> None:
    """The paper's initialisation (appendix A.1): Xavier-uniform for every linear map, the patch embedding seen as one;
    zero biases; class and mask tokens normal with deviation 0.02 (the reference's). Positions are not touched."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(child.weight.data.view(len(child.weight), -1))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02)
