"""Sheets of maps: where each patch is, what is framed."""

import numpy as np
import torch
from PIL import Image

from torchmae.report.sheets.tokens import (
    SIDE,
    Marked,
    colored,
    frame,
    picture,
    sheet_of_maps,
    tile_size,
)


def test_a_map_lies_on_its_image() -> None:
    """A patch of the map covers the pixels of the patch of the image."""
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    image[:, 8:16, 24:32] = 255  # row 1, column 3 of 4 x 8
    values = torch.zeros(4, 8)
    values[1, 3] = 1
    size = tile_size(32, 64)
    assert size == (SIDE // 2, SIDE)
    shown = np.asarray(picture(image, size)) > 127
    drawn = np.asarray(colored(values.repeat(3, 1, 1)).resize(size[::-1], 0)) > 127
    assert np.array_equal(shown, drawn)
    box = Marked(0, 1, 3, (4, 8)).box(size[1], size[0])
    rows, columns = np.nonzero(drawn[..., 0])
    assert box == (columns.min(), rows.min(), columns.max(), rows.max())


def test_a_frame_leaves_the_patch_as_it_is() -> None:
    tile = Image.new("RGB", (80, 40))
    frame(tile, Marked(0, 1, 2, (4, 8)))
    pixels = np.asarray(tile)
    assert pixels[10, 20].tolist() == [255, 255, 255] and pixels[9, 20].tolist() == [208, 0, 0]
    assert not pixels[11:19, 21:29].any()


def test_columns_have_one_size_and_rows_their_names(written: list[str]) -> None:
    images = [torch.zeros(1, 20, 40, dtype=torch.uint8), torch.zeros(1, 400, 30, dtype=torch.uint8)]
    maps = {"norms": [torch.zeros(2, 4), torch.zeros(9, 2)]}
    made = sheet_of_maps(images, maps, "title", ["a.png", "b.png"], ["a note"])
    assert {"image", "norms", "a.png", "b.png", "title", "a note"} <= set(written)
    assert made.width > 2 * SIDE and made.height > 2 * SIDE
