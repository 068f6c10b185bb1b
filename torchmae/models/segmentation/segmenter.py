"""A class for each pixel: an encoder and a head, on images of any size."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.patches import check_pixels
from torchmae.models.segmentation.heads import AUXILIARY_WIDTH, HEADS, AuxiliaryHead, resized
from torchmae.windows import starts


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

    def as_seen(self, images: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C _h _w"]:
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
        images: Shaped[Tensor, "B C H W"],
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
        images: Shaped[Tensor, "B C H W"],
        slide: int = 0,
        stride: int | None = None,
        flip: bool = False,
    ) -> UInt8[Tensor, "B H W"]:
        """The number of the most probable class of each pixel; arguments as for `probabilities`."""
        return self.predict_sure(images, slide, stride, flip)[0]

    @torch.no_grad()
    def predict_sure(
        self,
        images: Shaped[Tensor, "B C H W"],
        slide: int = 0,
        stride: int | None = None,
        flip: bool = False,
    ) -> tuple[UInt8[Tensor, "B H W"], Float[Tensor, "B H W"]]:
        """The number of the most probable class of each pixel, and its probability; arguments as
        for `probabilities`."""
        check_pixels(images, self.encoder.channels, self.encoder.scaling is None)
        self.eval()
        device = next(self.parameters()).device
        found = self.probabilities(images.to(device), slide, stride, flip)
        best = found.argmax(1, keepdim=True)
        return best.squeeze(1).to(torch.uint8), found.gather(1, best).squeeze(1)
