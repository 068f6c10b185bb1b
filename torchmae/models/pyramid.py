"""From an encoder's maps of one stride to a pyramid of four, for dense prediction.

Norms are LayerNorms over channels, never BatchNorm: a batch of one image works, and the number of
processes changes nothing.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.patches import Size

# What the levels are made of.
PYRAMIDS = {
    "taps": "the maps after each of four equal subsets of the blocks (MAE paper, appendix A.4)",
    "simple": "the last map four times (Li et al. 2022, ViTDet)",
}
SCALES = (4.0, 2.0, 1.0, 0.5)  # of the maps' sides, from the finest level to the coarsest


def pyramid_taps(depth: int, kind: str) -> tuple[int, ...]:
    """The numbers of the blocks whose maps a pyramid takes.

    Args:
        depth: blocks of the encoder.
        kind: a name in `PYRAMIDS`.

    Raises:
        UserError: an unknown kind, or fewer blocks than "taps" needs.
    """
    choose(PYRAMIDS, kind, "pyramid")
    if kind == "simple":
        return (depth - 1,)
    if depth < 4:
        raise UserError(
            f"a pyramid of four taps needs at least 4 blocks, the encoder has {depth}: use simple"
        )
    return tuple(round((i + 1) * depth / 4) - 1 for i in range(4))


def pyramid_strides(patch: Size) -> tuple[tuple[float, float], ...]:
    """Height and width in pixels of a cell of each level, from p / 4 to 2 p; of patches of 14 px
    those of the finest level are 3.5."""
    return tuple((patch[0] / scale, patch[1] / scale) for scale in SCALES)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place of a map, eps 1e-6."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Four maps of strides p / 4, p / 2, p and 2 p from maps of stride p, the side of a patch.

    Deconvolution, norm, GELU and deconvolution; deconvolution; identity; max pooling.

    Args:
        embed_dim: channels of the encoder's maps.
        kind: a name in `PYRAMIDS`. As in ViTDet, a deconvolution halves the channels of "simple",
            and as in BEiT's code, which the MAE paper follows, it keeps those of "taps".
        out_dim: of every level, by a convolution 1x1 and one 3x3, each with a norm (ViTDet); None:
            levels stay as they are.

    Attributes:
        widths: channels of each level.
    """

    widths: tuple[int, ...]

    def __init__(self, embed_dim: int, kind: str = "taps", out_dim: int | None = None):
        super().__init__()
        choose(PYRAMIDS, kind, "pyramid")
        self.kind = kind
        half, quarter = embed_dim, embed_dim
        if kind == "simple":
            half, quarter = embed_dim // 2, embed_dim // 4
        levels: list[nn.Module] = [
            nn.Sequential(
                nn.ConvTranspose2d(embed_dim, half, 2, stride=2),
                ChannelNorm(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, stride=2),
            ),
            nn.ConvTranspose2d(embed_dim, half, 2, stride=2),
            nn.Identity(),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
        widths = (quarter, half, embed_dim, embed_dim)
        outs: list[nn.Module] = [nn.Identity() for _ in widths]
        if out_dim is not None:
            outs = [outlet(width, out_dim) for width in widths]
            widths = (out_dim,) * 4
        self.levels = nn.ModuleList(levels)
        self.outs = nn.ModuleList(outs)
        self.widths = widths

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> list[Float[Tensor, "B _ _ _"]]:
        """The levels, the finest first.

        Args:
            maps: those after the blocks `pyramid_taps`: four, or the last one.
        """
        each = [*maps] * 4 if self.kind == "simple" else [*maps]
        return [out(level(x)) for out, level, x in zip(self.outs, self.levels, each, strict=True)]


def outlet(width: int, out_dim: int) -> nn.Sequential:
    """A convolution 1x1 and one 3x3 without biases, each with a norm, as in ViTDet."""
    return nn.Sequential(
        nn.Conv2d(width, out_dim, 1, bias=False),
        ChannelNorm(out_dim),
        nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
        ChannelNorm(out_dim),
    )


def resize_map(x: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Bilinear, with pixels as areas (`align_corners=False`)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
