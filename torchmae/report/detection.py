"""Objects drawn on images: boxes, masks, classes with scores."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchmae.data.dense.classes import palette_color
from torchmae.data.dense.detection import Detections, mask_window
from torchmae.data.dense.objects import Mask
from torchmae.report.sheet import three_bands

LEAST_SIDE = 512  # pixels of the longer side of a picture: smaller images are enlarged
TINT = 0.45  # of the color of a mask over the image
CROWDED = 40  # objects, from which on their names would hide the image
# Colors that are told apart on most images, also by those who see no red or green (Wong 2011).
COLORS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)


def color_of(number: int) -> tuple[int, int, int]:
    """The color of a class, or of an object."""
    return COLORS[number] if number < len(COLORS) else palette_color(number + 1)


def draw_objects(
    image: Shaped[Tensor, "C H W"],
    boxes: Float32[np.ndarray, "N 4"],
    classes: Int64[np.ndarray, " N"],
    captions: Sequence[str],
    masks: Sequence[Mask] = (),
    by_object: bool = False,
) -> UInt8[Tensor, "3 h w"]:
    """An image with its objects, enlarged where it is small.

    Args:
        image: the pixels; of more than three channels the first ones are shown.
        boxes: x1 y1 x2 y2, in its pixels.
        classes: numbers.
        captions: a short text for each object; left out where there are many.
        masks: of each object; empty: boxes only.
        by_object: each object has a color of its own, not that of its class.
    """
    shown = three_bands(image).float()
    numbers = np.arange(len(boxes)) % len(COLORS) if by_object else classes
    colors = [color_of(int(k)) for k in numbers]
    height, width = shown.shape[1:]
    for mask, box, color in zip(masks, boxes, colors):
        if mask is None:
            continue
        part, top, left = mask_window(mask, box, height, width)
        where = shown[:, top : top + part.shape[0], left : left + part.shape[1]]
        tint = torch.tensor(color, dtype=torch.float32).view(3, 1, 1)
        mixed = where * (1 - TINT) + tint * TINT
        where.copy_(torch.where(torch.from_numpy(part), mixed, where))
    ratio = max(1.0, LEAST_SIDE / max(height, width))
    size = round(height * ratio), round(width * ratio)
    if ratio > 1:
        shown = F.interpolate(shown[None], size=size, mode="bilinear")[0]
    picture = Image.fromarray(shown.round().to(torch.uint8).permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(picture)
    thick = max(1, round(max(size) / 400))
    font = ImageFont.load_default(max(10, round(max(size) / 28)))
    for box, color, caption in zip(boxes * ratio, colors, captions):
        x1, y1, x2, y2 = box.tolist()
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=thick)
        if caption and len(boxes) <= CROWDED:
            area = pen.textbbox((x1, y1), caption, font=font, anchor="lb")
            down = max(0.0, -area[1])  # inside the image
            pen.rectangle((area[0], area[1] + down, area[2] + 2, area[3] + down), fill=color)
            pen.text((x1 + 1, y1 + down), caption, fill="black", font=font, anchor="lb")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def draw_found(
    image: Shaped[Tensor, "C H W"], found: Detections, classes: Sequence[str], least: float
) -> UInt8[Tensor, "3 h w"]:
    """An image with what was found with at least this score."""
    sure = np.flatnonzero(found.scores >= least).tolist()
    captions = [f"{classes[found.classes[k]]} {found.scores[k]:.2f}" for k in sure]
    masks = [] if found.masks is None else [found.masks[k] for k in sure]
    own = len(classes) == 1
    return draw_objects(image, found.boxes[sure], found.classes[sure], captions, masks, own)
