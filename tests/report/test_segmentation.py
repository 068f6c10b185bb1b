"""Label maps as pictures."""

import io

import numpy as np
import torch
from PIL import Image

from torchmae.report.segmentation import colored, draw_sheet, overlay, palette_png, to_tile

COLORS = [(0, 0, 0), (200, 10, 20)]
LABELS = torch.tensor([[0, 1, 255], [1, 1, 0]], dtype=torch.uint8)


def test_a_png_has_the_values_and_shows_the_colors():
    values = np.array([[3, 7], [7, 3]], np.uint8)
    image = Image.open(io.BytesIO(palette_png(values, {3: (1, 2, 3), 7: (9, 8, 7)})))
    assert image.mode == "P" and np.array_equal(np.array(image), values)
    assert image.convert("RGB").getpixel((1, 0)) == (9, 8, 7)


def test_colors_and_overlays():
    assert colored(LABELS, COLORS)[:, 0].T.tolist() == [[0, 0, 0], [200, 10, 20], [255] * 3]
    image = torch.full((3, 2, 3), 100, dtype=torch.uint8)
    found = overlay(image, LABELS, COLORS, clear=(0,))
    assert found[:, 0, 0].tolist() == found[:, 0, 2].tolist() == [100] * 3, "clear and ignored"
    assert found[:, 0, 1].tolist() == [155, 50, 56]
    gray = overlay(image[:1], LABELS, COLORS)
    assert gray.shape == (3, 2, 3) and gray[:, 0, 0].tolist() == [45] * 3


def test_a_sheet_of_images_of_any_size(tmp_path, written):
    images = [torch.zeros(3, 40, 90, dtype=torch.uint8), torch.zeros(3, 300, 10, dtype=torch.uint8)]
    assert {to_tile(one).shape for one in images} == {(3, 256, 256)}
    draw_sheet({"image": images}, "title", ["a", "b"], ["note"], tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").width > 512
    assert {"title", "a", "b", "note", "image"} <= set(written)
