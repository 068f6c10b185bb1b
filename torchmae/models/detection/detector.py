"""Objects in images: Faster R-CNN and Mask R-CNN on the pyramid of an encoder (Li et al. 2022,
ViTDet).

Needs torchvision, when a detector is made.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from torchmae.errors import UserError, choose, library
from torchmae.hashing import PROPOSAL, hash32
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.patches import check_pixels, size_name
from torchmae.models.pyramid import Pyramid, pyramid_strides, pyramid_taps

KINDS = {"faster_rcnn": False, "mask_rcnn": True}  # whether there are masks
MOST_PROPOSALS = 1000  # of an image
ANCHOR = 8.0  # cells of a level that an anchor is long (ViTDet: 32 px at a stride of 4)
FITS = {
    "long": "images fit on the canvas",
    "own": "images keep their own pixels",
}


class Found(NamedTuple):
    """The objects in one image, those with the highest scores first.

    Attributes:
        boxes: x1 y1 x2 y2, in its pixels.
        scores: within 0..1.
        classes: numbers of classes.
        masks: within 0..1, of a grid over each box; None of a detector without masks.
    """

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    classes: Int64[Tensor, " N"]
    masks: Float[Tensor, "N s s"] | None

    def mask(self, i: int, height: int, width: int) -> Bool[Tensor, "H W"]:
        """The pixels of object `i` in its image of these sides."""
        whole = torch.zeros(height, width, dtype=torch.bool)
        part, top, left = self.window(i, height, width)
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        return whole

    def window(self, i: int, height: int, width: int) -> tuple[Bool[Tensor, "h w"], int, int]:
        """The pixels of object `i` that its box touches, and where these begin: top, left."""
        if self.masks is None:
            raise UserError("these objects have boxes only: the detector has no masks")
        return paste(self.masks[i].cpu(), self.boxes[i].cpu(), height, width)


def paste(
    mask: Float[Tensor, "s s"], box: Float[Tensor, " 4"], height: int, width: int
) -> tuple[Bool[Tensor, "h w"], int, int]:
    """The pixels of a mask that is given on a grid over a box.

    Interpolated at the middle of each pixel and cut at 0.5 (torchvision's rounds the box to whole
    pixels first).

    Returns:
        The pixels that the box touches, and their top and left.
    """
    x1, y1, x2, y2 = box.tolist()
    left, top = max(0, int(x1)), max(0, int(y1))
    right, bottom = min(width, -int(-x2 // 1)), min(height, -int(-y2 // 1))
    across = (torch.arange(left, max(left, right)) + 0.5 - x1) / max(x2 - x1, 1e-6) * 2 - 1
    down = (torch.arange(top, max(top, bottom)) + 0.5 - y1) / max(y2 - y1, 1e-6) * 2 - 1
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=2)
    if not grid.numel():
        return torch.zeros(grid.shape[:2], dtype=torch.bool), top, left
    # At the border as beside it: outside of the grid there is nothing known.
    found = F.grid_sample(
        mask[None, None].float(), grid[None], padding_mode="border", align_corners=False
    )
    return found[0, 0] >= 0.5, top, left


class Detector(nn.Module):
    """An encoder, its pyramid, and the heads that find objects.

    Args:
        encoder: any `Backbone`; its final norm is removed, since levels have norms of their own.
        classes: their names.
        kind: a name in `KINDS`.
        width: channels of every level and of the heads; 256 in ViTDet.
        pyramid: a kind of `Pyramid`.
        anchor: length of an anchor in cells of its level.
        samples: proposals of an image that a step learns from.
        fit: a name in `FITS`: how large images are when objects are looked for.
        max_detections: of an image.

    Raises:
        UserError: there is no such kind, no class, or no torchvision.
    """

    def __init__(  # noqa: PLR0913 - the arguments are the architecture
        self,
        encoder: Backbone,
        classes: Sequence[str],
        kind: str = "mask_rcnn",
        width: int = 256,
        pyramid: str = "simple",
        anchor: float = ANCHOR,
        samples: int = 512,
        fit: str = "long",
        max_detections: int = 100,
    ):
        super().__init__()
        library("torchvision", "detection")
        from torchmae.models.detection.proposals import Proposals
        from torchmae.models.detection.rois import Heads

        if not classes:
            raise UserError("a detector needs at least one class")
        masks = choose(KINDS, kind, "detector")
        choose(FITS, fit, "fit")
        encoder.remove_norm()
        self.encoder = encoder
        self.classes = tuple(classes)
        self.kind = kind
        self.width = width
        self.anchor = anchor
        self.samples = samples
        self.fit = fit
        self.max_detections = max_detections
        self.pyramid = Pyramid(encoder.embed_dim, pyramid, width)
        strides = square(encoder)
        strides.append(2 * strides[-1])
        sizes = [anchor * stride for stride in strides]
        # detectron2's 1,000 for its 512 samples; fewer where a CPU learns from fewer.
        count = min(MOST_PROPOSALS, max(2 * samples, 2 * max_detections))
        self.proposals = Proposals(width, sizes, strides, count)
        heads = (width, len(classes), strides[:-1], samples, max_detections, masks)
        self.heads = Heads(*heads)

    @property
    def has_masks(self) -> bool:
        """Whether objects are found with masks."""
        return KINDS[self.kind]

    def config(self) -> dict[str, Any]:
        """JSON-able arguments for `build`."""
        return {
            "encoder": self.encoder.config(),
            "detector": self.kind,
            "classes": list(self.classes),
            "width": self.width,
            "pyramid": self.pyramid.kind,
            "anchor": self.anchor,
            "samples": self.samples,
            "fit": self.fit,
            "max_detections": self.max_detections,
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> "Detector":
        """The detector that `config()` describes, with new weights."""
        rest = {name: v for name, v in config.items() if name not in ("encoder", "detector")}
        return cls(build_encoder(config["encoder"]), kind=config["detector"], **rest)

    def maps(
        self, images: Float[Tensor, "B C H W"], draws: Float[Tensor, "B depth 2"] | None = None
    ) -> list[Float[Tensor, "B D _h _w"]]:
        """The levels of the pyramid, and a coarser one for proposals."""
        taps = pyramid_taps(len(self.encoder.layers()), self.pyramid.kind)
        levels = self.pyramid(self.encoder.forward_intermediates(images, taps, draws))
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]

    def losses(
        self,
        images: Float[Tensor, "B C H W"],
        targets: list[dict[str, Tensor]],
        keys: Int64[Tensor, " B"],
        draws: Float[Tensor, "B depth 2"] | None = None,
    ) -> dict[str, Float[Tensor, " B"]]:
        """The losses of each image, to be added up and averaged over images.

        Args:
            images: normalised.
            targets: of each image: "boxes" [N 4], "labels" [N] from 1, "crowds" [M 4], and with
                masks "masks" [N S S], each stretched over its box, and "has_mask" [N].
            keys: of each image, see `image_keys`.
            draws: the encoder's randomness of stochastic depth.
        """
        for part in (self.proposals, self.heads):
            part.fg_bg_sampler.keys = keys
        maps = self.maps(images, draws)
        boxes, found = self.propose(images, maps, targets)
        named = {"objectness": found["loss_objectness"], "proposal": found["loss_rpn_box_reg"]}
        return {**named, **self.heads.losses(maps[:-1], boxes, targets)}

    def propose(
        self,
        images: Float[Tensor, "B C H W"],
        maps: list[Float[Tensor, "B D _h _w"]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Float[Tensor, "_ 4"]], dict[str, Tensor]]:
        """Boxes that may hold objects, and while training the losses."""
        from torchvision.models.detection.image_list import ImageList

        height, width = images.shape[2:]
        sizes = ImageList(images, [(height, width)] * len(images))
        return self.proposals(sizes, dict(enumerate(maps)), targets)

    def forward(self, images: Float[Tensor, "B C H W"]) -> list[dict[str, Tensor]]:
        """What is found in normalised images of any height and width: "boxes" [N 4] in their
        pixels, "labels" [N] from 1, "scores" [N], and "masks" [N 28 28] over the boxes."""
        maps = self.maps(images)
        boxes, _ = self.propose(images, maps)
        size = int(images.shape[2]), int(images.shape[3])
        return self.heads.detect(maps[:-1], boxes, size)

    def as_seen(self, images: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C _h _w"]:
        """Images resized as they are looked at: at scale 1 of the training crops."""
        height, width = images.shape[2:]
        canvas = self.encoder.image_size
        ratio = 1.0 if self.fit == "own" else min(canvas[0] / height, canvas[1] / width)
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        if size == (height, width):
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def predict(self, images: Shaped[Tensor, "B C H W"]) -> list[Found]:
        """The objects in uint8 images of any size; `UserError` for anything else."""
        check_pixels(images, self.encoder.channels, self.encoder.scaling is None)
        self.eval()
        device = next(self.parameters()).device
        seen = self.as_seen(images.to(device))
        height, width = images.shape[2:]
        down, across = height / seen.shape[2], width / seen.shape[3]
        factors = torch.tensor([across, down, across, down], device=device)
        return [
            Found(
                one["boxes"] * factors,
                one["scores"],
                one["labels"] - 1,
                one.get("masks"),
            )
            for one in self(self.encoder.normalize(seen))
        ]


def image_keys(
    seed: int, epoch: Int64[Tensor, " B"], sample: Int64[Tensor, " B"]
) -> Int64[Tensor, " B"]:
    """A word for each image, from which all that its step draws is hashed."""
    return hash32(seed, PROPOSAL, epoch, sample)


def square(encoder: Backbone) -> list[float]:
    """The strides of the pyramid; `UserError` for patches that are no squares."""
    strides = pyramid_strides(encoder.patch)
    if any(down != across for down, across in strides):
        raise UserError(
            f"a detector needs square patches, not patches of {size_name(encoder.patch)} px"
        )
    return [side for side, _ in strides]
