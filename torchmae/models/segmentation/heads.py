"""Heads that say the class of each pixel from an encoder's feature maps.

Norms are LayerNorms over channels, so a batch of one image works and processes do not change it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.models.pyramid import ChannelNorm, Pyramid, pyramid_taps

DROPOUT = 0.1  # of whole channels before the last map (as in mmsegmentation)
AUXILIARY_WIDTH = 256
POOLED = (1, 2, 3, 6)  # sides of the maps of the pyramid pooling (Zhao et al. 2017)

Maps = Sequence[Float[Tensor, "B _ _h _w"]]


def resized(
    maps: Float[Tensor, "B C _h _w"], size: Sequence[int], mode: str = "bilinear"
) -> Float[Tensor, "B C _H _W"]:
    """Maps at another height and width."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    aligned = None if mode == "nearest" else False
    return F.interpolate(maps, size=tuple(size), mode=mode, align_corners=aligned)


def pool_to(maps: Float[Tensor, "B D h w"], side: int) -> Float[Tensor, "B D s s"]:
    """Means of `side` x `side` regions, as `F.adaptive_avg_pool2d` has them.

    As products of matrices, which graphs of any size can hold, and whose gradient is deterministic
    on GPUs.
    """
    rows, columns = (regions(length, side, maps) for length in maps.shape[2:])
    total = rows @ maps @ columns.T
    return total / (rows.sum(1, keepdim=True) * columns.sum(1))


def regions(length: int, side: int, like: Tensor) -> Float[Tensor, "s length"]:
    """1 where a place is in a region, else 0; neighbours may share a place."""
    place = torch.arange(length, device=like.device)
    number = torch.arange(side, device=like.device).unsqueeze(1)
    first, end = number * length // side, ((number + 1) * length + side - 1) // side
    return ((place >= first) & (place < end)).to(like.dtype)


class ConvNorm(nn.Sequential):
    """A convolution without bias, LayerNorm over channels, ReLU."""

    def __init__(self, width: int, out: int, kernel: int):
        conv = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
        # As in the field; with torch's own the heads learn half as fast (docs/lab-notes.md).
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, ChannelNorm(out), nn.ReLU())


class Classify(nn.Module):
    """Whole channels dropped while training, then a linear map of each pixel to the classes."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.width = width
        self.map = nn.Conv2d(width, classes, 1)
        assert self.map.bias is not None
        nn.init.zeros_(self.map.bias)

    def forward(
        self, maps: Float[Tensor, "B D h w"], drops: Float[Tensor, "B D"] | None = None
    ) -> Float[Tensor, "B classes h w"]:
        """Logits; `drops`, uniform in 0..1, say which channels are dropped, None: none are."""
        if drops is not None and self.training:
            kept = (drops >= DROPOUT).to(maps.dtype) / (1 - DROPOUT)
            maps = maps * kept[:, :, None, None]
        return self.map(maps)


class LinearHead(nn.Module):
    """A norm and a linear map of the last tokens: what the features say by themselves.

    Args:
        dim: width of the encoder's maps.
        classes: how many.
        width: not used, there is nothing between.
        pyramid: likewise.
    """

    def __init__(self, dim: int, classes: int, width: int, pyramid: str):
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.classify = Classify(dim, classes)

    def taps(self, depth: int) -> tuple[int, ...]:
        """The blocks whose maps `forward` takes."""
        return (depth - 1,)

    def forward(
        self, maps: Maps, drops: Float[Tensor, "B D"] | None = None
    ) -> Float[Tensor, "B classes h w"]:
        return self.classify(self.norm(maps[-1]), drops)


class TopDown(nn.Module):
    """A feature pyramid network (Lin et al. 2017) on maps of four strides: each level is added to
    the finer ones.

    Args:
        widths: of the levels, finest first; those in `given` come with `width` channels already.
        width: of the result.
    """

    def __init__(self, widths: Sequence[int], width: int):
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(one, width, 1) for one in widths)
        self.smooth = nn.ModuleList(ConvNorm(width, width, 3) for _ in widths)

    def forward(
        self, maps: Maps, top: Float[Tensor, "B D _h _w"] | None, mode: str
    ) -> list[Float[Tensor, "B D _a _b"]]:
        """The levels of `maps`, smoothed.

        Args:
            maps: one for each of `widths`.
            top: a coarser level that has the width already and is not smoothed.
            mode: how coarser levels are enlarged.
        """
        levels = [lateral(one) for lateral, one in zip(self.lateral, maps)]
        above = top
        for i in range(len(levels) - 1, -1, -1):
            if above is not None:
                levels[i] = levels[i] + resized(above, levels[i].shape[2:], mode)
            above = levels[i]
        return [smooth(one) for smooth, one in zip(self.smooth, levels)]


class FpnHead(nn.Module):
    """The head of Panoptic FPN (Kirillov et al. 2019, section 3): levels of a feature pyramid,
    each enlarged step by step to the finest one, summed.

    Args:
        dim: width of the encoder's maps.
        classes: how many.
        width: of everything between.
        pyramid: a kind of `Pyramid`.
    """

    def __init__(self, dim: int, classes: int, width: int, pyramid: str):
        super().__init__()
        self.kind = pyramid
        self.pyramid = Pyramid(dim, pyramid)
        self.top_down = TopDown(self.pyramid.widths, width)
        self.enlarge = nn.ModuleList(
            nn.ModuleList(ConvNorm(width, width, 3) for _ in range(max(1, level)))
            for level in range(4)
        )
        self.classify = Classify(width, classes)

    def taps(self, depth: int) -> tuple[int, ...]:
        """The blocks whose maps `forward` takes."""
        return pyramid_taps(depth, self.kind)

    def forward(
        self, maps: Maps, drops: Float[Tensor, "B D"] | None = None
    ) -> Float[Tensor, "B classes h w"]:
        levels = self.top_down(self.pyramid(maps), None, "nearest")
        sizes = [level.shape[2:] for level in levels]
        total: Tensor | None = None
        for i, (level, steps) in enumerate(zip(levels, self.enlarge)):
            assert isinstance(steps, nn.ModuleList)
            for done, step in enumerate(steps):
                level = resized(step(level), sizes[max(0, i - 1 - done)])
            total = level if total is None else total + level
        return self.classify(total, drops)


class UperNetHead(nn.Module):
    """UperNet's head (Xiao et al. 2018): pyramid pooling on the coarsest level, a feature pyramid,
    all levels fused. The paper's head for semantic segmentation (section 5, Table 5).

    Args:
        dim: width of the encoder's maps.
        classes: how many.
        width: of everything between; 512 in the paper.
        pyramid: a kind of `Pyramid`.
    """

    def __init__(self, dim: int, classes: int, width: int, pyramid: str):
        super().__init__()
        self.kind = pyramid
        self.pyramid = Pyramid(dim, pyramid)
        *finer, top = self.pyramid.widths
        self.pooled = nn.ModuleList(ConvNorm(top, width, 1) for _ in POOLED)
        self.bottleneck = ConvNorm(top + len(POOLED) * width, width, 3)
        self.top_down = TopDown(finer, width)
        self.fuse = ConvNorm((len(finer) + 1) * width, width, 3)
        self.classify = Classify(width, classes)

    def taps(self, depth: int) -> tuple[int, ...]:
        """The blocks whose maps `forward` takes."""
        return pyramid_taps(depth, self.kind)

    def forward(
        self, maps: Maps, drops: Float[Tensor, "B D"] | None = None
    ) -> Float[Tensor, "B classes h w"]:
        *finer, top = self.pyramid(maps)
        pooled = [
            resized(conv(pool_to(top, side)), top.shape[2:])
            for conv, side in zip(self.pooled, POOLED)
        ]
        context = self.bottleneck(torch.cat([top, *pooled], dim=1))
        levels = [*self.top_down(finer, context, "bilinear"), context]
        size = levels[0].shape[2:]
        fused = self.fuse(torch.cat([resized(level, size) for level in levels], dim=1))
        return self.classify(fused, drops)


class AuxiliaryHead(nn.Module):
    """A second head on the third map, whose loss (times 0.4) is added while training (Zhao et al.
    2017)."""

    def __init__(self, dim: int, classes: int, width: int = AUXILIARY_WIDTH):
        super().__init__()
        self.conv = ConvNorm(dim, width, 3)
        self.classify = Classify(width, classes)

    def forward(
        self, maps: Maps, drops: Float[Tensor, "B D"] | None = None
    ) -> Float[Tensor, "B classes h w"]:
        return self.classify(self.conv(maps[min(2, len(maps) - 1)]), drops)


Head = LinearHead | FpnHead | UperNetHead
HEADS: dict[str, Callable[[int, int, int, str], Head]] = {
    "linear": LinearHead,
    "fpn": FpnHead,
    "upernet": UperNetHead,
}
