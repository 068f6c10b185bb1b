"""The plain pre-LN Vision Transformer, with timm's parameter names, that can skip patches.

`keep` picks patches before the embedding: a hidden patch costs nothing anywhere in the encoder
(paper section 3).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from torchmae.errors import UserError, choose
from torchmae.models.patches import (
    RESIZINGS,
    Size,
    as_size,
    choose_pool,
    denormalize,
    gather_tokens,
    grid_of,
    normalize,
    pad_to_patch,
    patchify,
    resize_positions,
    sincos_positions,
)
from torchmae.scaling import Scaling, scaling_of


def attention(device: torch.device, precision: str) -> str:
    """Which attention a training uses, in words (see `attend`)."""
    if device.type == "cpu" and precision == "bf16":
        return "plain attention (in bf16 on a CPU faster than the fused one)"
    return "fused attention"


# Arguments of `build_encoder`; an entry for an encoder of another kind says its "kind" too.
def drop_path(
    x: Float[Tensor, "B U D"], draws: Float[Tensor, " B"], rate: float
) -> Float[Tensor, "B U D"]:
    """Stochastic depth (Huang et al. 2016): the branch is zero for images whose uniform draw is
    below the rate, and scaled up by `1 / (1 - rate)` for the others."""
    return x * ((draws >= rate) / (1 - rate)).to(x.dtype).view(-1, 1, 1)


def plain(x: Tensor) -> bool:
    """Whether attention is made of plain matrix products: where the fused kernel is slower."""
    # bf16 training on a CPU: at the lengths of MAE (17 to 257 tokens) the fused kernel's backward
    # pass is slower
    # (measured: ViT-Micro at 64 patches, 305 images/s fused, 668 with plain matrix products).
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.requires_grad


def attend(
    q: Float[Tensor, "B heads U d"],
    k: Float[Tensor, "B heads T d"],
    v: Float[Tensor, "B heads T d"],
) -> Float[Tensor, "B heads U d"]:
    """Softmax attention, fused except where that is slower."""
    if plain(q):
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class PlainAttention(torch.autograd.Function):
    """`attend` by plain matrix products, of queries, keys and values in one tensor `[3, B, heads,
    T, d]`; the first `skip` queries are left out.

    Its gradient is written out: the scale is part of products, and what the copy back to tokens
    reads is written in its place.
    """

    @staticmethod
    def forward(ctx: Any, heads: Tensor, skip: int) -> Tensor:
        q, k, v = heads.flatten(1, 2)
        weights = scaled(q[:, skip:], k.transpose(1, 2), q.shape[-1]).softmax(-1)
        ctx.save_for_backward(heads, weights)
        ctx.skip = skip
        return torch.bmm(weights, v).unflatten(0, heads.shape[1:3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        heads, weights = ctx.saved_tensors
        q, k, v = heads.flatten(1, 2)
        width, skip, out = q.shape[-1], ctx.skip, gradient.flatten(0, 1)
        scores = softmax_gradient(torch.bmm(out, v.transpose(1, 2)), weights)
        found = torch.empty_like(heads)
        dq, dk, dv = found.flatten(1, 2)
        dq[:, :skip] = 0
        dq[:, skip:] = scaled(scores, k, width)
        dk.copy_(scaled(scores.transpose(1, 2), q[:, skip:], width))
        torch.bmm(weights.transpose(1, 2), out, out=dv)
        return found, None


def scaled(a: Tensor, b: Tensor, width: int) -> Tensor:
    """Products of two batches of matrices, over the root of the width of a head."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=width**-0.5)


def softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient of what `weights` are the softmax of."""
    # Rows shorter than a vector register are slow in bf16 (17: 450 us; in float32 33).
    short = weights.dtype == torch.bfloat16 and weights.shape[-1] < 32
    dtype = torch.float32 if short else weights.dtype
    found = torch._softmax_backward_data(gradient.to(dtype), weights.to(dtype), -1, dtype)
    return found.to(weights.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values in one linear map. `skip` and `grid`: see
    `Block`."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.window = 0  # side in patches; 0: global

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        skip: int = 0,
        grid: Size | None = None,
    ) -> Float[Tensor, "B U D"]:
        if grid is not None:
            return self.on_grid(x, grid)
        qkv = self.qkv(x)
        batch, tokens, width = qkv.shape
        heads = qkv.reshape(batch, tokens, 3, self.num_heads, width // 3 // self.num_heads).permute(
            2, 0, 3, 1, 4
        )
        if plain(heads) and not torch.compiler.is_compiling():
            # One copy of all, where the products would make one of each (1.03 to 1.19 times as
            # fast).
            attended = PlainAttention.apply(heads.contiguous(), skip)
        else:
            q, k, v = heads
            attended = attend(q[:, :, skip:], k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens - skip, width // 3))

    def weights(self, x: Float[Tensor, "B T D"], count: int) -> Float[Tensor, "B heads Q T"]:
        """How much the first `count` tokens take of each token, by head: softmax of the products.

        For looking at; `forward` leaves the weights inside a fused kernel.
        """
        q, k, _ = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return ((q[:, :, :count] * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)

    def add_relative_positions(self, grid: Size) -> None:
        """Decomposed relative positions (MViTv2, ViTDet) of patches in a grid, zero at first."""
        width = self.proj.in_features // self.num_heads
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width))

    def resize_relative_positions(self, grid: Size) -> None:
        """Makes them fit another grid; linearly."""
        for name, side in zip(("rel_pos_h", "rel_pos_w"), grid):
            table = getattr(self, name)
            resized = resize_table(table.data, side)
            setattr(self, name, nn.Parameter(resized, requires_grad=table.requires_grad))

    def on_grid(self, x: Float[Tensor, "B T D"], grid: Size) -> Float[Tensor, "B T D"]:
        """Attention among the patches of a grid, or of each of its windows.

        As in ViTDet, a grid that windows do not divide is padded with zeros, which are attended to.
        """
        cut = into_windows(x, grid, self.window) if self.window else x
        side = (self.window, self.window) if self.window else grid
        qkv = self.qkv(cut).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = None
        if hasattr(self, "rel_pos_h"):
            bias = relative_bias(q, self.rel_pos_h, self.rel_pos_w, side)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        return self.proj(from_windows(out, grid, self.window) if self.window else out)


def into_windows(x: Float[Tensor, "B T D"], grid: Size, side: int) -> Float[Tensor, "W S D"]:
    """The patches of a grid as windows of `side` x `side`, one after the other; padded with
    zeros."""
    rows, columns = grid
    cells = F.pad(x.unflatten(1, grid), (0, 0, 0, -columns % side, 0, -rows % side))
    cells = cells.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # B, down, side, across, side
    return cells.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(x: Float[Tensor, "W S D"], grid: Size, side: int) -> Float[Tensor, "B T D"]:
    """The inverse of `into_windows`, without the padding."""
    rows, columns = grid
    down, across = -(-rows // side), -(-columns // side)
    cells = x.unflatten(1, (side, side)).unflatten(0, (-1, down, across)).transpose(2, 3)
    return cells.flatten(3, 4).flatten(1, 2)[:, :rows, :columns].flatten(1, 2)


def relative_bias(
    q: Float[Tensor, "B heads T d"],
    down: Float[Tensor, "X d"],
    across: Float[Tensor, "Y d"],
    grid: Size,
) -> Float[Tensor, "B heads T T"]:
    """What decomposed relative positions add to the products of queries and keys (Li et al. 2022,
    ViTDet): `q . down[row - row'] + q . across[column - column']`.

    Args:
        q: queries of the patches of a grid.
        down: one row for each difference of rows, from the smallest; resized (linearly) where the
            grid is another one than theirs.
        across: likewise of columns.
        grid: of the patches.
    """
    rows, columns = grid
    cells = q.unflatten(2, grid)
    of_rows = torch.einsum("bnhwd,hkd->bnhwk", cells, differences(down, rows))
    of_columns = torch.einsum("bnhwd,wkd->bnhwk", cells, differences(across, columns))
    bias = of_rows.unsqueeze(5) + of_columns.unsqueeze(4)
    return bias.flatten(4, 5).flatten(2, 3)


def differences(table: Float[Tensor, "X d"], side: int) -> Float[Tensor, "side side d"]:
    """The row of `table` for i - j, at [i, j]."""
    at = torch.arange(side, device=table.device)
    return resize_table(table, side)[at[:, None] - at + side - 1]


def resize_table(table: Float[Tensor, "X d"], side: int) -> Float[Tensor, "Y d"]:
    """Relative positions along a side of so many patches: 2 * side - 1 rows."""
    if len(table) == 2 * side - 1:
        return table
    resized = F.interpolate(table.T[None].float(), size=2 * side - 1, mode="linear")
    return resized[0].T.to(table.dtype)


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (Touvron et al. 2021, CaiT), as in timm."""

    def __init__(self, dim: int, init_values: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Float[Tensor, "B U D"]) -> Float[Tensor, "B U D"]:
        return x * self.gamma


class Block(nn.Module):
    """Pre-LN transformer block; LayerNorm eps 1e-6. With `init_values`, layer scale on both
    branches.

    Args of `forward`:
        skip: this many tokens at the front are attended to, but not returned.
        draws: uniform in 0..1, one for each of the two branches: the randomness of stochastic depth
            while training.
        grid: of the patches, where `x` has nothing else: attention in windows, or with relative
            positions.

    All work on the weights happens inside `forward`, because FSDP gathers them in its hooks.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, init_values: float | None = None
    ):
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values)

        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = scale()
        self.drop_rate = 0.0
        self.checkpointed = False  # while training, recompute activations in the backward pass

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        skip: int = 0,
        draws: Float[Tensor, "B 2"] | None = None,
        grid: Size | None = None,
    ) -> Float[Tensor, "B U D"]:
        if self.checkpointed and self.training:
            return checkpoint(self.compute, x, skip, draws, grid, use_reentrant=False)
        return self.compute(x, skip, draws, grid)

    def compute(
        self,
        x: Float[Tensor, "B T D"],
        skip: int,
        draws: Float[Tensor, "B 2"] | None,
        grid: Size | None = None,
    ) -> Float[Tensor, "B U D"]:
        branch = self.ls1(self.attn(self.norm1(x), skip, grid))
        drops = draws is not None and self.training and self.drop_rate > 0
        x = x[:, skip:] + (drop_path(branch, draws[:, 0], self.drop_rate) if drops else branch)  # type: ignore[index]
        branch = self.ls2(self.mlp(self.norm2(x)))
        return x + (drop_path(branch, draws[:, 1], self.drop_rate) if drops else branch)  # type: ignore[index]


class CrossBlock(nn.Module):
    """Pre-LN block of queries that attend to other tokens; LayerNorm eps 1e-6."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.norm_seen = nn.LayerNorm(dim, eps=1e-6)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.checkpointed = False  # while training, recompute activations in the backward pass

    def forward(
        self, x: Float[Tensor, "B M D"], seen: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B M D"]:
        if self.checkpointed and self.training:
            return checkpoint(self.compute, x, seen, use_reentrant=False)
        return self.compute(x, seen)

    def compute(
        self, x: Float[Tensor, "B M D"], seen: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B M D"]:
        def heads(tokens: Float[Tensor, "B U D"]) -> Float[Tensor, "B heads U d"]:
            return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        k, v = self.key_value(self.norm_seen(seen)).chunk(2, dim=2)
        found = attend(heads(self.query(self.norm1(x))), heads(k), heads(v))
        x = x + self.proj(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A linear map of each patch; its weight is that of a convolution `proj`, as in timm."""

    def __init__(self, patch: Size, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=(patch[0], patch[1]), stride=patch)  # type: ignore[arg-type]

    def forward(self, patches: Float[Tensor, "B K P"]) -> Float[Tensor, "B K D"]:
        # To the order of a patch's values: (row, column, channel).
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


class PixelInput(nn.Module):
    """What encoders share that take images of some channels: their statistics.

    Args:
        channels: of the images.
        mean, std: one value for each channel, for pixels in 0..1, or for floats after `scaling`;
            what `normalize` uses.
        scaling: None for images of 8 bits; else what is done with the values of all others.
    """

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling: Scaling | None
    pixel_statistics: Tensor
    pixel_window: Tensor
    # (images, channels, size, batch_size) to batches, as the run sees them that it is loaded from.
    seen: Callable[..., Iterable[Tensor]] | None = None

    def __init__(
        self,
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scaling: Scaling | dict[str, Any] | None = None,
    ):
        super().__init__()
        # On the device, so that no step copies it there; not among the weights, whose names are
        # timm's.
        self.register_buffer("pixel_statistics", torch.zeros(2, channels, 1, 1), persistent=False)
        self.register_buffer("pixel_window", torch.zeros(2, 0, 1, 1), persistent=False)
        self.set_pixel_statistics(channels, mean, std, scaling)

    def normalize(self, images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels to what `forward` takes: `(pixels / 255 - mean) / std` for 8 bits; see
        `torchmae.models.patches.normalize`."""
        if images.shape[1] != self.channels:  # one channel would be repeated in silence
            raise UserError(
                f"images of {images.shape[1]} channels; the model takes {self.channels}"
            )
        kind = "none" if self.scaling is None else self.scaling.kind
        return normalize(images, self.pixel_statistics, kind, self.pixel_window)

    def denormalize(self, images: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
        """What `normalize` has made as uint8 pixels for people, rounded and clamped."""
        return denormalize(images, self.pixel_statistics, self.scaling is not None)

    @torch.no_grad()
    def features(
        self, images: Any, pool: str = "mean", layer: int | None = None, batch_size: int = 64
    ) -> Float[Tensor, "N F"]:
        """Features of images of any size, as `mae embed` writes them; of an encoder that
        `torchmae.load` has loaded.

        Args:
            images: an array [N, H, W] or [N, H, W, C], a tensor [N, C, H, W], a list of arrays,
                tensors or PIL images of any sizes, one PIL image, or anything else that a verb
                takes as DATA. Pixels are of the type that the run was trained on, mostly uint8.
            pool: "mean" of the patch tokens, "cls" (the class token), or "cls+mean".
            layer: take the tokens after this block, 1 to depth; None: the last ones.
            batch_size: images at a time.

        Returns:
            float32 on the CPU, a row for each image; without gradients.

        Raises:
            UserError: an image cannot be read, there is no such pool or layer, or the encoder was
                not loaded from a run.
        """
        encoder: Any = self
        if self.seen is None:
            raise UserError(
                "features() needs an encoder of torchmae.load(RUN), which knows how the "
                "run sees images"
            )
        pooled, depth = choose_pool(encoder, pool), len(encoder.layers())
        if layer is not None and not 1 <= layer <= depth:
            raise UserError(f"layer={layer}: 1 to {depth}")
        training, device = self.training, self.pixel_statistics.device
        self.eval()
        rows = []
        for batch in self.seen(images, self.channels, encoder.image_size, batch_size):
            seen = self.normalize(batch.to(device))
            other = tuple(seen.shape[2:]) != tuple(encoder.image_size)  # of a run with shapes
            whole = encoder.encode(encoder.entering(seen), layer) if other else None
            tokens = self(seen, layer=layer) if whole is None else whole
            rows.append(pooled(tokens, encoder.num_prefix_tokens).float().cpu())
        self.train(training)
        return torch.cat(rows)

    def set_pixel_statistics(
        self,
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scaling: Scaling | dict[str, Any] | None = None,
    ) -> None:
        """Sets what `normalize` uses; `UserError` unless there is one value for each channel that
        pixels can be normalised with."""
        if len(mean) != channels or len(std) != channels:
            raise UserError(
                f"mean {mean} and std {std} need one value for each of {channels} channels"
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise UserError(f"mean {mean} and std {std}: finite numbers, and std above 0")
        self.scaling = None if scaling is None else scaling_of(scaling, channels)
        self.channels = channels
        self.mean = mean
        self.std = std
        self.pixel_statistics = self.pixel_statistics.new_tensor([mean, std]).view(2, -1, 1, 1)
        ends = [self.scaling.low, self.scaling.high] if self.scaling else [(), ()]
        self.pixel_window = self.pixel_statistics.new_tensor(ends).view(2, -1, 1, 1)

    def pixel_config(self) -> dict[str, Any]:
        """What `config` says of the pixels, beside the channels."""
        scaling = {} if self.scaling is None else {"scaling": self.scaling.config()}
        return {"mean": self.mean, "std": self.std, **scaling}

    def patch_projection(self) -> nn.Conv2d:
        """The convolution that embeds patches."""
        raise NotImplementedError

    def adapt(
        self,
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scaling: Scaling | dict[str, Any] | None = None,
    ) -> None:
        """Makes the encoder take images of other channels, which `normalize` brings to these
        statistics.

        The patch weights of each new channel are the mean of the old ones times old / new, so that
        an image with equal (normalised) channels has the same tokens as before. With as many
        channels as before, only the statistics change.
        """
        before = self.channels
        self.set_pixel_statistics(channels, mean, std, scaling)
        proj = self.patch_projection()
        if channels != before:
            each = proj.weight.data.sum(1, keepdim=True) / channels
            weight = each.expand(-1, channels, -1, -1).contiguous()
            proj.weight = nn.Parameter(weight, proj.weight.requires_grad)
            proj.in_channels = channels


class ViT(PixelInput):
    """Vision Transformer encoder.

    Args:
        image_size: `(H, W)` in pixels, each divisible by that of the patch.
        patch_size: side of a patch in pixels, or height and width.
        channels: of the images.
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: heads of the attention; divides `embed_dim`.
        mlp_ratio: hidden width of an MLP, in times `embed_dim`.
        registers: register tokens (Darcet et al. 2023) after the class token, without positions.
        drop_path: stochastic depth rate of the last block, growing linearly from 0 at the first
            (fine-tuning only; the paper uses none in pre-training).
        mean: what `normalize` uses, see `PixelInput`.
        std: likewise.
        scaling: likewise.
        init_values: with layer scale, its initial factor in every block (1e-5 in DINOv2); None: the
            paper's ViT, without.
        position_resizing: how `resize` resizes the positions, a name in `RESIZINGS`.
        window: see `set_windows`.
        global_blocks: see `set_windows`.
        relative_positions: see `set_windows`.

    Raises:
        UserError: sizes, heads or statistics do not fit together.
    """

    def __init__(  # noqa: PLR0913 (the arguments are the architecture, as in timm)
        self,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int | Size = 16,
        channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        registers: int = 0,
        init_values: float | None = None,
        position_resizing: str = "timm",
        window: int = 0,
        global_blocks: int = 4,
        relative_positions: bool = False,
        scaling: Scaling | dict[str, Any] | None = None,
    ):
        half = (0.5,) * channels
        super().__init__(channels, mean or half, std or half, scaling)
        choose(RESIZINGS, position_resizing, "position resizing")
        self.image_size = image_size
        self.patch_size = patch_size
        self.patch = as_size(patch_size)
        self.grid = grid_of(image_size, self.patch)
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.registers = registers
        self.init_values = init_values
        self.position_resizing = position_resizing
        self.num_prefix_tokens = 1 + registers
        self.patch_embed = PatchEmbed(self.patch, channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, embed_dim)) if registers else None
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, embed_dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, init_values) for _ in range(depth)
        )
        self.set_drop_path(drop_path)
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=1e-6)
        self.window = 0
        self.global_blocks = global_blocks
        self.relative_positions = False
        initialize(self)
        self.set_windows(window, global_blocks, relative_positions)

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `build_encoder` (without drop path, which belongs to a
        training)."""
        names = ["image_size", "patch_size", "channels", "embed_dim", "depth", "num_heads"]
        names += ["mlp_ratio", "registers", "init_values", "position_resizing"]
        if self.on_grid:
            names += ["window", "global_blocks", "relative_positions"]
        own = {name: getattr(self, name) for name in names}
        return {"kind": "vit", **own, **self.pixel_config()}

    @property
    def on_grid(self) -> bool:
        """Whether blocks see patches alone, in their grid: see `set_windows`."""
        return bool(self.window) or self.relative_positions

    def set_windows(
        self, window: int, global_blocks: int = 4, relative_positions: bool = False
    ) -> None:
        """Attention in windows, and relative positions, for large images (Li et al. 2022, ViTDet).

        With either of them `forward_intermediates` leaves the class token and registers out, and
        `forward`, which returns them, is refused.

        Args:
            window: side of the windows in patches; 0: attention is global.
            global_blocks: so many blocks stay global: the last of each of as many equal subsets.
            relative_positions: decomposed relative positions in every block, zero at first.

        Raises:
            UserError: there are fewer blocks than `global_blocks`.
        """
        if window < 0 or (window and not 0 <= global_blocks <= self.depth):
            raise UserError(
                f"windows of {window} patches and {global_blocks} global blocks: a side of 0 or "
                f"more, and at most {self.depth} blocks"
            )
        self.window = window
        self.global_blocks = global_blocks
        whole = {round((i + 1) * self.depth / global_blocks) - 1 for i in range(global_blocks)}
        for i, block in enumerate(self.blocks):
            attn = block.attn
            attn.window = 0 if i in whole else window  # type: ignore[union-attr]
            if relative_positions and not self.relative_positions:
                side = (attn.window,) * 2 if attn.window else self.grid  # type: ignore[union-attr]
                attn.add_relative_positions(side)  # type: ignore[union-attr,operator]
        self.relative_positions |= relative_positions

    def layers(self) -> list[nn.Module]:
        """The blocks in order, for layer decay, partial fine-tuning, FSDP and checkpointing."""
        return list(self.blocks)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int64[Tensor, "B K"] | None = None,
        layer: int | None = None,
        draws: Float[Tensor, "B depth 2"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Encodes images, or some of their patches.

        Args:
            images: normalised floats of `image_size`.
            keep: the patches to encode, for each image its own; None for all.
            layer: stop after this many blocks (1..depth).
            draws: uniform in 0..1, the randomness of stochastic depth while training; without them
                there is none.

        Returns:
            Tokens `[B, 1 + registers + K, D]` after the final norm: class token, registers,
            patches.
        """
        return self.encode(self.tokens(images, keep), layer, draws)

    def tokens(
        self, images: Float[Tensor, "B C H W"], keep: Int64[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """What enters the first block: class token, registers and embedded patches, with their
        positions."""
        expected = (self.channels, *self.image_size)
        if images.shape[1:] != expected:
            raise UserError(
                f"the encoder takes images of {' x '.join(map(str, expected))} (channels, height, "
                f"width), not {' x '.join(map(str, images.shape[1:]))}"
            )
        if self.on_grid:
            raise UserError(
                "an encoder with windowed attention or relative positions gives maps of patches "
                "only: it is for mae segment and mae detect"
            )
        return self.embed(images, self.pos_embed, keep)

    def embed(
        self,
        images: Float[Tensor, "B C H W"],
        table: Float[Tensor, "1 N D"],
        keep: Int64[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """As `tokens`, with the positions that fit the images, one for the class token first."""
        positions = table[:, 1:] if keep is None else gather_tokens(table[:, 1:], keep)
        # A length of a list would be a constant of the graph that is exported; the shape is not.
        prefix = [(self.cls_token + table[:, :1]).expand(images.shape[0], -1, -1)]
        if self.reg_token is not None:
            prefix.append(self.reg_token.expand(images.shape[0], -1, -1))
        patches = self.patch_embed(patchify(images, self.patch, keep)) + positions
        return torch.cat([*prefix, patches], dim=1)

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

    def forward_layers(self, images: Float[Tensor, "B C H W"]) -> Iterator[Float[Tensor, "B T D"]]:
        """What `forward` returns for `layer` = 1, 2, ... depth, in one pass; of images of any whole
        number of patches.

        Each is after the final norm, which is that of the last block.
        """
        return self.encode_layers(self.entering(images))

    def encode_layers(self, tokens: Float[Tensor, "B T D"]) -> Iterator[Float[Tensor, "B T D"]]:
        """What `encode` returns for `layer` = 1, 2, ... depth, in one pass."""
        for block in self.blocks:
            tokens = block(tokens)
            yield self.norm(tokens)

    def forward_intermediates(
        self,
        images: Float[Tensor, "B C H W"],
        taps: Sequence[int],
        draws: Float[Tensor, "B depth 2"] | None = None,
        norm: bool = False,
    ) -> list[Float[Tensor, "B D h w"]]:
        """Feature maps of the patches after some blocks, as timm's method of this name.

        Args:
            images: normalized floats of any height and width: padded to the patch, positions
                resized.
            taps: numbers of blocks; 0 is the first, -1 the last.
            draws: as for `forward`.
            norm: with the final norm, as `forward` returns tokens.

        Returns:
            One map for each of `taps`, prefix tokens removed.
        """
        depth = len(self.blocks)
        if not all(-depth <= tap < depth for tap in taps):
            raise UserError(f"taps {list(taps)}: blocks are numbered 0 to {depth - 1}")
        wanted = [tap % depth for tap in taps]
        (tokens, grid), prefix = self.any_size(images), self.num_prefix_tokens
        if self.on_grid:
            tokens, prefix = tokens[:, prefix:], 0
        maps = {}
        for i, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            drawn = None if draws is None else draws[:, i]
            tokens = block(tokens, draws=drawn, grid=grid if self.on_grid else None)
            if i in wanted:
                kept = (self.norm(tokens) if norm else tokens)[:, prefix:]
                maps[i] = kept.transpose(1, 2).unflatten(2, grid)
        return [maps[tap] for tap in wanted]

    def any_size(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B T D"], Size]:
        """What enters the first block of images of any size, and the grid of their patches."""
        images = pad_to_patch(images, self.patch)
        grid = grid_of((images.shape[2], images.shape[3]), self.patch)
        return self.tokens_of_any_size(images)[0], grid

    def tokens_of_any_size(
        self, images: Float[Tensor, "B C H W"], keep: Int64[Tensor, "B K"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "1 N D"]]:
        """As `tokens`, of images of any whole number of patches; and the positions of all of
        these."""
        grid = grid_of((images.shape[2], images.shape[3]), self.patch)
        table = resize_positions(self.pos_embed, self.grid, grid, self.position_resizing)
        return self.embed(images, table, keep), table

    def entering(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """As `tokens`, of images of any whole number of patches."""
        if tuple(images.shape[2:]) == tuple(self.image_size) or self.on_grid:
            return self.tokens(images)
        return self.tokens_of_any_size(images)[0]

    def class_attention(
        self, images: Float[Tensor, "B C H W"], block: int
    ) -> Float[Tensor, "B heads h w"]:
        """How much the class token takes of each patch in a block, of images of any size.

        The weights of a head sum to 1 with those of the class token and registers.

        Args:
            images: as for `forward_intermediates`.
            block: its number from 0.

        Raises:
            UserError: blocks see no class token (see `set_windows`).
        """
        if self.on_grid:
            raise UserError(
                "an encoder with windowed attention or relative positions has no class token"
            )
        tokens, grid = self.any_size(images)
        for before in self.blocks[:block]:
            tokens = before(tokens)
        last = self.blocks[block]
        weights = last.attn.weights(last.norm1(tokens), 1)  # type: ignore[union-attr,operator]
        return weights[:, :, 0, self.num_prefix_tokens :].unflatten(2, grid)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth: `rate` in the last block, growing linearly from 0 in the first."""
        for i, block in enumerate(self.blocks):
            block.drop_rate = rate * i / max(1, self.depth - 1)  # type: ignore[assignment]

    def set_grad_checkpointing(self, on: bool) -> None:
        """Activation checkpointing: each block stores only its input and recomputes the rest in the
        backward pass.

        Much less memory, about a third more time, the same bits. Not in `config()`: it belongs to a
        run.
        """
        for block in self.blocks:
            block.checkpointed = on  # type: ignore[assignment]

    def resize(self, image_size: tuple[int, int]) -> None:
        """Makes the encoder take images of another size; positions are resized (bicubic, by the
        rule `position_resizing`)."""
        grid = grid_of(image_size, self.patch)
        positions = resize_positions(self.pos_embed.data, self.grid, grid, self.position_resizing)
        self.pos_embed = nn.Parameter(positions, requires_grad=self.pos_embed.requires_grad)
        for block in self.blocks:
            attn = block.attn
            assert isinstance(attn, Attention)
            if self.relative_positions and not attn.window:
                attn.resize_relative_positions(grid)
        self.image_size = image_size
        self.grid = grid

    def remove_norm(self) -> None:
        """Removes the final norm, for a classifier that pools the mean and has a norm of its
        own."""
        self.norm = nn.Identity()

    def restore_norm(self) -> bool:
        """Adds a new final norm where it was removed; True if so."""
        gone = isinstance(self.norm, nn.Identity)
        if gone:
            self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        return gone

    def patch_projection(self) -> nn.Conv2d:
        return self.patch_embed.proj


def product_flops(tokens: int, inputs: int, outputs: int) -> int:
    """Operations of a linear map of so many tokens: an addition and a multiplication a weight."""
    return 2 * tokens * inputs * outputs


def initialize(module: nn.Module) -> None:
    """The paper's initialisation (appendix A.1): Xavier-uniform for every linear map, with the
    patch embedding as one; zero biases of linear layers; class, register and mask tokens normal
    with std 0.02.

    As in the reference and timm, the patch embedding's bias keeps what torch gives a convolution:
    uniform within 1 / sqrt(values of a patch).
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(child.weight.data.view(len(child.weight), -1))
        if isinstance(child, nn.Linear) and child.bias is not None:
            nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02)
