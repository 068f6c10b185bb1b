"""What a model does not get to see of its images is said, and nothing else is."""

import numpy as np
import pytest
from helpers.sources import noise
from PIL import Image

from torchmae.data.scan import scan
from torchmae.data.sources import open_source
from torchmae.data.view import Glance, glance, view_notes

SQUARE = (32, 32)


def notes(sizes: list[tuple[int, int]], crop_pct: float | None = 1.0, stacks: int = 0) -> list[str]:
    seen = Glance(np.array(sizes, dtype=np.int32).reshape(-1, 2), stacks)
    return view_notes(seen, SQUARE, crop_pct)


def test_wide_images_are_cut():
    """A centre crop of 400 x 96 pixels sees 96 of 400 columns."""
    (note,) = notes([(96, 400)] * 10)
    assert note.startswith(
        "the center crop shows little of 10 of 10 images: 24% of one of 400 x 96 px."
    )
    assert notes([(96, 400)] * 10, crop_pct=None) == []  # random crops see every part in time
    assert view_notes(Glance(np.array([[96, 400]] * 10), 0), (24, 100), 1.0) == []  # of that shape
    assert "2 of 10 images" in notes([(96, 96)] * 8 + [(96, 400)] * 2)[0]


def test_large_images_are_shrunk():
    (note,) = notes([(4000, 4000)], crop_pct=None)
    assert note == (
        "1 of 1 image is shrunk more than 4 times, 125.0 times from 4000 x 4000 px to 32 x 32 px: "
        "small details vanish. If they matter, cut the images into tiles"
    )


@pytest.mark.parametrize("crop_pct", [None, 1.0, 0.875])
def test_usual_images_get_no_word(crop_pct):
    assert notes([(72, 128), (128, 72), (96, 96), (30, 30), (8, 9)], crop_pct) == []
    assert notes([(0, 0)] * 3, crop_pct) == notes([], crop_pct) == []  # bad files
    assert notes([(96, 96)] * 99 + [(96, 400)], crop_pct) == []  # a single one


def test_stacks_are_counted(tmp_path):
    """Of files of several pages the first was taken without a word. Pages of one shape are images
    each, where TIFFs have them; these differ."""
    pages = [Image.fromarray(page) for page in noise(3, 20, 20)]
    pages[1:] = [page.resize((10, 10)) for page in pages[1:]]
    for i in range(4):
        pages[0].save(tmp_path / f"{i}.tif", save_all=i < 2, append_images=pages[1:])
    pages[0].save(tmp_path / "5.gif", save_all=True, append_images=pages[1:])
    (tmp_path / "6.tif").write_bytes(b"II*\0 broken")
    seen = glance(open_source(tmp_path))
    found = scan(open_source(tmp_path))
    assert (found.stacks, seen.stacks, len(seen.sizes)) == (3, 3, 5)
    assert scan(open_source(tmp_path)).stacks == 3  # from the cache
    (note,) = view_notes(seen, (20, 20))
    assert note.startswith("3 of 5 files have more than one page or frame (TIFF, GIF, ...): only ")


def test_a_glance_reads_few(tmp_path):
    np.save(tmp_path / "x.npy", noise(1000, 24, 20, 3))
    assert glance(open_source(tmp_path / "x.npy")).sizes.tolist() == [[24, 20]] * 64
