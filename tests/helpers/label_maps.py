"""Small images of colored shapes on a noisy ground, with masks that say where they are."""

import numpy as np
from PIL import Image

CLASSES = ("ground", "disk", "box")


def draw(generator, height=40, width=56):
    """An image [H W 3] with a disk and a box, and its label map [H W]: 0, 1 and 2."""
    rows, columns = np.mgrid[0:height, 0:width]
    labels = np.zeros((height, width), dtype=np.uint8)
    y, x = generator.uniform(8, height - 8), generator.uniform(8, width - 8)
    top, left = generator.integers(0, height - 14), generator.integers(0, width - 16)
    labels[top : top + 14, left : left + 16] = 2
    labels[(rows - y) ** 2 + (columns - x) ** 2 < 49] = 1
    colors = np.array([[90, 100, 90], [200, 60, 50], [60, 80, 210]])
    image = colors[labels] + generator.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), labels


def make_shapes(folder, train=12, val=6, seed=0):
    """train/ and val/ with images/ (JPEG) and masks/ (PNG: 0, 1, 2 and a corner of 255)."""
    generator = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True)
        for i in range(count):
            image, labels = draw(generator, 40 + 2 * i, 56)
            labels[:3, :5] = 255
            Image.fromarray(image).save(folder / part / "images" / f"{i}.jpg", quality=95)
            Image.fromarray(labels).save(folder / part / "masks" / f"{i}.png")
    return folder
