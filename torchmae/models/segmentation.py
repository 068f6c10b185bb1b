"""A class for each pixel: an encoder, a head on its feature maps, and the losses.

Norms are LayerNorms over channels, so a batch of one image works and processes do not change it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.pyramid import ChannelNorm, Pyramid, pyramid_taps

IGNORE = 255  # in label maps: no class
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
            resized(conv(F.adaptive_avg_pool2d(top, side)), top.shape[2:])
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


class Segmenter(nn.Module):
    """An encoder and a head that says the class of each pixel.

    Args:
        encoder: any `Backbone`; its final norm is removed, since heads have norms of their own.
        classes: their names, in the order of the logits.
        head: a name in `HEADS`.
        width: of the head.
        pyramid: a kind of `Pyramid`; not used by the linear head.
        auxiliary: a second head while training; upernet's.
        short_side: pixels of the shorter side of an image as it is predicted; None: as long as
            the encoder's image size.
        colors: of the classes in pictures, (red, green, blue) in 0..255.

    Raises:
        UserError: there is no such head, or fewer than two classes.
    """

    def __init__(  # noqa: PLR0913 - the arguments are the architecture
        self,
        encoder: Backbone,
        classes: Sequence[str],
        head: str = "upernet",
        width: int = 512,
        pyramid: str = "taps",
        auxiliary: bool = False,
        short_side: int | None = None,
        colors: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        if len(classes) < 2:
            raise UserError(f"a segmenter needs at least two classes, not {list(classes)}")
        make = choose(HEADS, head, "head")
        encoder.remove_norm()
        self.encoder = encoder
        self.classes = tuple(classes)
        self.kind = head
        self.width = width
        self.pyramid = pyramid
        self.short_side = short_side
        self.colors = tuple((int(r), int(g), int(b)) for r, g, b in colors)
        self.head = make(encoder.embed_dim, len(classes), width, pyramid)
        dim = encoder.embed_dim
        small = min(AUXILIARY_WIDTH, width)
        self.auxiliary = AuxiliaryHead(dim, len(classes), small) if auxiliary else None

    def config(self) -> dict[str, Any]:
        """JSON-able arguments for `build`."""
        return {
            "encoder": self.encoder.config(),
            "segmenter": self.kind,
            "classes": list(self.classes),
            "width": self.width,
            "pyramid": self.pyramid,
            "auxiliary": self.auxiliary is not None,
            "short_side": self.short_side,
            "colors": [list(color) for color in self.colors],
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> "Segmenter":
        """The segmenter that `config()` describes, with new weights."""
        rest = {name: v for name, v in config.items() if name not in ("encoder", "segmenter")}
        return cls(build_encoder(config["encoder"]), head=config["segmenter"], **rest)

    @property
    def dropped(self) -> int:
        """How many channels may be dropped while training: the length of `drops`."""
        own = self.head.classify.width
        return own + (self.auxiliary.classify.width if self.auxiliary is not None else 0)

    def outputs(
        self,
        images: Float[Tensor, "B C H W"],
        draws: Float[Tensor, "B depth 2"] | None = None,
        drops: Float[Tensor, "B dropped"] | None = None,
    ) -> list[Float[Tensor, "B classes _h _w"]]:
        """Logits as the head makes them, of a lower resolution than the image; while training also
        those of the auxiliary head.

        Args:
            images: normalised floats of any height and width.
            draws: uniform in 0..1: the encoder's randomness of stochastic depth while training.
            drops: uniform in 0..1: which channels are dropped before the classes; None: none.
        """
        taps = self.head.taps(len(self.encoder.layers()))
        maps = self.encoder.forward_intermediates(images, taps, draws)
        own = self.head.classify.width
        found = [self.head(maps, None if drops is None else drops[:, :own])]
        if self.auxiliary is not None and self.training:
            found.append(self.auxiliary(maps, None if drops is None else drops[:, own:]))
        return found

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes H W"]:
        """Logits of every pixel of normalised images of any height and width."""
        return self.to_image(self.outputs(images)[0], images.shape[2:])

    def to_image(
        self, logits: Float[Tensor, "B classes h w"], size: Sequence[int]
    ) -> Float[Tensor, "B classes _H _W"]:
        """Logits of patches at the pixels of an image of this size, without the padding to whole
        patches."""
        down, across = self.encoder.patch[:2]
        whole = [-(-size[0] // down) * down, -(-size[1] // across) * across]
        return resized(logits.float(), whole)[:, :, : size[0], : size[1]]

    def as_seen(self, images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B C _h _w"]:
        """Images resized as they are predicted: at scale 1 of the training crops."""
        height, width = images.shape[2:]
        canvas = self.encoder.image_size
        ratio = max(canvas[0] / height, canvas[1] / width)
        if self.short_side is not None:
            ratio *= self.short_side / min(canvas)
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        if size == (height, width):
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)

    def probabilities(
        self,
        images: UInt8[Tensor, "B C H W"],
        slide: int = 0,
        stride: int | None = None,
        flip: bool = False,
    ) -> Float[Tensor, "B classes H W"]:
        """The probability of each class at each pixel of images of any size.

        Args:
            images: the pixels.
            slide: side of a sliding window on the resized image, whose logits are averaged where
                windows overlap; 0: the whole image at once.
            stride: pixels between two windows; None: two thirds of `slide`.
            flip: average with what is predicted for the mirrored image.
        """
        seen = self.encoder.normalize(self.as_seen(images))
        found = self.slid(seen, slide, stride) if slide else self(seen)
        total = resized(found, images.shape[2:]).softmax(1)
        if flip:
            mirrored = seen.flip(-1)
            found = self.slid(mirrored, slide, stride) if slide else self(mirrored)
            total = (total + resized(found, images.shape[2:]).softmax(1).flip(-1)) / 2
        return total

    def slid(
        self, images: Float[Tensor, "B C H W"], side: int, stride: int | None
    ) -> Float[Tensor, "B classes H W"]:
        """Logits averaged over windows; the last ones end at the image's edges."""
        height, width = images.shape[2:]
        step = stride or max(1, side * 2 // 3)
        rows, columns = (starts(length, side, step) for length in (height, width))
        total = images.new_zeros(len(images), len(self.classes), height, width)
        count = images.new_zeros(1, 1, height, width)
        for top in rows:
            for left in columns:
                window = images[:, :, top : top + side, left : left + side]
                total[:, :, top : top + side, left : left + side] += self(window)
                count[:, :, top : top + side, left : left + side] += 1
        return total / count

    @torch.no_grad()
    def predict(
        self,
        images: UInt8[Tensor, "B C H W"],
        slide: int = 0,
        stride: int | None = None,
        flip: bool = False,
    ) -> UInt8[Tensor, "B H W"]:
        """The number of the most probable class of each pixel; arguments as for `probabilities`."""
        self.eval()
        device = next(self.parameters()).device
        found = self.probabilities(images.to(device), slide, stride, flip)
        return found.argmax(1).to(torch.uint8)


def starts(length: int, side: int, step: int) -> list[int]:
    """Where windows of a side begin: every `step` pixels, the last one at the end."""
    last = max(0, length - side)
    return [*range(0, last, step), last]


def pixel_cross_entropy(
    logits: Float[Tensor, "B classes H W"],
    labels: Int64[Tensor, "B H W"],
    weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy over all pixels; ignored ones count as 0, so that the sum does not depend on
    how a batch is split (mmsegmentation's default).

    Args:
        logits: of each pixel.
        labels: its class, or `IGNORE`.
        weights: times the loss of each class.
    """
    total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum")
    return total / labels.numel()


def dice_loss(
    logits: Float[Tensor, "B classes H W"], labels: Int64[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """1 - Dice of the probabilities (Milletari et al. 2016), the mean over the classes that an
    image has, then over images."""
    counted = (labels != IGNORE).unsqueeze(1)
    truth = F.one_hot(labels.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counted
    said = logits.softmax(1) * counted
    shared, areas = ((x).flatten(2).sum(2) for x in (said * truth, said + truth))
    there = truth.flatten(2).any(2)
    loss = (1 - (2 * shared + 1) / (areas + 1)) * there
    return (loss.sum(1) / there.sum(1).clamp(min=1)).mean()
